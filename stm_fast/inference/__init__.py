"""The engine, which segments a video frame by frame."""
