"""How a trained network runs: prepared for inference, in which dtype, compiled, and in how much memory."""

from stm_fast.network.deploy.deployment import for_inference

__all__ = ["for_inference"]
