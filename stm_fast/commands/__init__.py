"""The commands of stm-fast: their options, which are checked before torch is imported.

The work of a command is in `stm_fast.tasks`, which it imports once its options have been checked.
"""
