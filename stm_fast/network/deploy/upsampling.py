"""A map of twice the resolution added to another one, as one operator in float32 and bfloat16 on a CPU."""

import torch
from torch import Tensor, nn

from stm_fast.network.deploy.shared_work import Merge
from stm_fast.ops import cpp_ops

DTYPES = (torch.float32, torch.bfloat16)

torch.library.define("stm_fast::upsample_and_add", "(Tensor(a!) out, Tensor x, Tensor detail) -> ()")
torch.library.register_fake("stm_fast::upsample_and_add", lambda *_: None)  # only writes to `out`


def absent_reasons() -> list[str]:
    """Why the extension's operator is not available; empty if it is."""
    return cpp_ops.operator_absent_reasons("stm_fast::upsample_and_add")


class FusedMerge(Merge):
    """A `Merge` that stores only its result, rounded once; without gradients."""

    def forward(self, coarse: Tensor, detail: Tensor) -> Tensor:
        """As in `Merge`; channels last.

        Raises:
            RuntimeError: other shapes, or a dtype that is not in `DTYPES`.
        """
        images, added = (x.detach().permute(0, 2, 3, 1).contiguous() for x in (coarse, detail))
        batch, height, width, channels = images.shape
        out = images.new_empty(batch, 2 * height, 2 * width, channels)
        torch.ops.stm_fast.upsample_and_add(out, images, added)
        return out.permute(0, 3, 1, 2)


def replace_merges(module: nn.Module) -> None:
    """Replaces every `Merge` in `module`."""
    for name, child in module.named_children():
        if isinstance(child, Merge):
            setattr(module, name, FusedMerge())
        else:
            replace_merges(child)
