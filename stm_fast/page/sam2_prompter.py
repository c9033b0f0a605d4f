"""SAM 2 through transformers."""
