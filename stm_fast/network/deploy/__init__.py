"""Deployment of a trained network: inference modules, dtype, compilation and memory footprint."""

from stm_fast.network.deploy.deployment import for_inference

__all__ = ["for_inference"]
