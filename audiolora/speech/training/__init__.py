"""What every speech training shares: clips, settings, the Trainer, several devices."""
