"""A fuzz of everything that reads a file: valid samples, changed where their format has its fields, and read.

A reader passes where it returns or raises `InputError` in one line, within the limits of memory and time of `worker`.
"""
