"""Measures of the quality of masks."""

from stm_fast.evaluation.metrics import Statistics, contour_accuracy, region_similarity, statistics

__all__ = ["Statistics", "contour_accuracy", "region_similarity", "statistics"]
