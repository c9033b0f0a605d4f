"""Times the memory read and every route a PyTorch user has today, and whole frames compared with the published loop."""
