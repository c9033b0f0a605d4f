"""Kernels in Gluon, whose API may change in any release of Triton; if it has, forward.py uses the portable kernel."""
