"""Times the memory read beside every route a PyTorch user has today, and whole frames beside the published loop."""
