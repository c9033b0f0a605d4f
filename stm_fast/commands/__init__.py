"""The commands of stm-fast: their options, and what can be wrong with them before torch is imported.

What a command does is in `stm_fast.tasks`, which each command imports once it has checked its options.
"""
