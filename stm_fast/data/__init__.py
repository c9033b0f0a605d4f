"""Clips to train, show and test on."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.data.synthetic import SyntheticClip, SyntheticFrame
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["SyntheticClip", "SyntheticFrame"]
