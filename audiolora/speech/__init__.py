"""Speech recognition: manifests, audio, channels, collation, metrics, and Whisper and CTC training."""
