"""Fuzzes everything that reads a file: valid samples are mutated in the fields of their format, then read.

A reader passes if it returns or raises a one-line `InputError`, within the memory and time limits of `worker`.
"""
