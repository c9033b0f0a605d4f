"""The model: frames and masks to memory, frames and memory to logits."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.network.architecture import Architecture
    from stm_fast.network.builders import stm_lite0, stm_lite2, stm_resnet18, stm_resnet18_half, stm_resnet50
    from stm_fast.network.checkpoint import architecture_of, load_checkpoint, save_checkpoint
    from stm_fast.network.loading import load
    from stm_fast.network.object_batch import ObjectBatch
    from stm_fast.network.stm import STM, QueryFeatures
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "stm_fast.network.architecture": ("Architecture",),
            "stm_fast.network.builders": (
                "stm_lite0",
                "stm_lite2",
                "stm_resnet18",
                "stm_resnet18_half",
                "stm_resnet50",
            ),
            "stm_fast.network.checkpoint": ("architecture_of", "load_checkpoint", "save_checkpoint"),
            "stm_fast.network.loading": ("load",),
            "stm_fast.network.object_batch": ("ObjectBatch",),
            "stm_fast.network.stm": ("STM", "QueryFeatures"),
        },
    )

__all__ = [
    "STM",
    "Architecture",
    "ObjectBatch",
    "QueryFeatures",
    "architecture_of",
    "load",
    "load_checkpoint",
    "save_checkpoint",
    "stm_lite0",
    "stm_lite2",
    "stm_resnet18",
    "stm_resnet18_half",
    "stm_resnet50",
]
