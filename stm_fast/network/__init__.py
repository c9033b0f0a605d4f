"""The model: frames and masks to memory, frames and memory to logits."""

from stm_fast.network.builders import stm_resnet18, stm_resnet18_half, stm_resnet50
from stm_fast.network.checkpoint import architecture_of, load_checkpoint, save_checkpoint
from stm_fast.network.stm import STM, Architecture, QueryFeatures

__all__ = [
    "STM",
    "Architecture",
    "QueryFeatures",
    "architecture_of",
    "load_checkpoint",
    "save_checkpoint",
    "stm_resnet18",
    "stm_resnet18_half",
    "stm_resnet50",
]
