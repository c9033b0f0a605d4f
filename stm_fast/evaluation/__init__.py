"""How good masks are."""

from stm_fast.evaluation.metrics import region_similarity

__all__ = ["region_similarity"]
