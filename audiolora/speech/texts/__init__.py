"""What is said: transcriptions, captions, error rates, and whether two runs differ."""
