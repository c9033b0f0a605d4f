"""A run over a video: the loop over its frames, its input and its output."""
