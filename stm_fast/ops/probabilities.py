"""Probabilities from the decoder's logits, and labels from probabilities, each in one pass on a CPU.

The C++ code is documented in csrc/include/stm_fast/probabilities.h. The same in PyTorch is `STM.probabilities` of
:mod:`stm_fast.network.stm` and `label` of :mod:`stm_fast.inference.objects`.
"""

import torch
from torch import Tensor

from stm_fast.ops import cpp_ops

STRIDE = 4  # pixels of a frame per pixel of the logits
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

torch.library.define(
    "stm_fast::object_probabilities",
    "(Tensor logits, int top, int left, int height, int width, float epsilon) -> Tensor",
)
torch.library.define("stm_fast::most_likely", "(Tensor prob, Tensor ids) -> Tensor")


def _fake_probabilities(logits: Tensor, top: int, left: int, height: int, width: int, epsilon: float) -> Tensor:
    return logits.new_empty(1 + logits.shape[0], height, width, dtype=torch.float32)


def _fake_most_likely(prob: Tensor, ids: Tensor) -> Tensor:
    return prob.new_empty(prob.shape[1:], dtype=torch.uint8)


torch.library.register_fake("stm_fast::object_probabilities", _fake_probabilities)
torch.library.register_fake("stm_fast::most_likely", _fake_most_likely)


def absent_reasons() -> list[str]:
    """Why the extension's operators are not available; empty if they are."""
    return cpp_ops.operator_absent_reasons("stm_fast::most_likely")


def object_probabilities(logits: Tensor, pads: tuple[int, int, int, int], epsilon: float) -> Tensor:
    """The softmax of the soft aggregation of logits, resized by bilinear interpolation and cropped; without gradients.

    All arithmetic is in float32. A NaN logit makes every channel NaN in the pixels that it contributes to. So may an
    infinite logit, because the difference of equal infinities and the mean of opposite ones are NaN.

    Args:
        logits: ``[O, C, h, w]`` in any layout, on a CPU, with one of DTYPES. Two channels are background and object, of
            which only the difference matters; a single channel is that difference.
        pads: left, right, top and bottom, cropped from the resized ``[4 h, 4 w]``.
        epsilon: probabilities of objects and background are clamped to epsilon..1 - epsilon.

    Returns:
        ``[1 + O, H, W]`` float32 that sum to 1 over the channels, background first.
    """
    left, right, top, bottom = pads
    height, width = STRIDE * logits.shape[-2] - top - bottom, STRIDE * logits.shape[-1] - left - right
    found: Tensor = torch.ops.stm_fast.object_probabilities(logits, top, left, height, width, epsilon)
    return found


def most_likely(prob: Tensor, ids: Tensor) -> Tensor:
    """``ids[prob.argmax(0)]``, ``[H, W]``, of float32 ``[C, H, W]`` and uint8 ``[C]`` on a CPU; the first of equals."""
    found: Tensor = torch.ops.stm_fast.most_likely(prob.contiguous(), ids)
    return found
