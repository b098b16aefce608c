"""The mathematics of low-rank 1-D convolution: torch only, no PEFT, no transformers.

Notation, here and everywhere in audiolora: N batch, C channels, L length, r rank, k kernel, g groups;
x (N, C_in, L), W (C_out, C_in/g, k), y (N, C_out, L_out).
"""
