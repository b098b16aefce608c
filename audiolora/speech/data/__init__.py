"""Speech data: utterances, where they lie, how they are read and split."""
