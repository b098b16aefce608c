"""CTC models of the wav2vec2 family: loading, alphabets, training, decoding."""
