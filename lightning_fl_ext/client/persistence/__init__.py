"""What a client keeps on disk from one round to the next."""
