"""The commands of stm-fast: their options, and what can be wrong with them before torch is imported.

What a command does lies in `stm_fast.tasks`, whose names are imported when they are called.
"""
