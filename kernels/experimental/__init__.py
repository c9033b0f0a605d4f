"""Kernels in Gluon, whose API may change with any release of Triton: forward.py does without them where it has."""
