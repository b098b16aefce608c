"""Whisper: weights, adapters, training, decoding, and other programs' formats."""
