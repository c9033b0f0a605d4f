"""The gate: compiles every kernel configuration for every architecture, without a GPU, and holds it to limits.

    PYTHONPATH=tests python -m gate

prints a table and exits with 1 on a breach or on a configuration that no case compiles.
"""
