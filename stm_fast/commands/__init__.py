"""Commands of stm-fast that have a file of their own, and what the commands share."""
