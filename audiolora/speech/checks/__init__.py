"""What would go wrong with speech data, found before anything is trained."""
