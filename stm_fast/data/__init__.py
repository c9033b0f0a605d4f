"""Clips to train, show and test on."""

from stm_fast.data.synthetic import SyntheticClip, SyntheticFrame

__all__ = ["SyntheticClip", "SyntheticFrame"]
