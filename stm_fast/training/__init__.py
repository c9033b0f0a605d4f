"""Training: clips in, weights out."""
