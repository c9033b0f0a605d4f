"""The two encoders: memory from a frame and masks, query from a frame alone (STM, "Key and Value Embedding")."""

from torch import Tensor, nn

from stm_fast.network.backbone import RESNETS, Backbone
from stm_fast.network.efficientnet import LITE

# by the names of `STM`'s argument `backbone`
BACKBONES = RESNETS | LITE


class MemoryEncoder(Backbone):
    """Encodes a frame together with the mask of one object and the union of the others."""

    def __init__(self, backbone: str) -> None:
        super().__init__(backbone)
        stem = self.conv1.out_channels
        self.conv1_mask = nn.Conv2d(1, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.conv1_others = nn.Conv2d(1, stem, kernel_size=7, stride=2, padding=3, bias=False)

    def forward(self, frame: Tensor, mask: Tensor, others: Tensor, batch_index: Tensor | None = None) -> Tensor:
        """Features at stride 16.

        Args:
            frame: [B, 3, H, W] in [0, 1].
            mask: [O, 1, H, W], soft mask of each object.
            others: [O, 1, H, W], soft mask of the union of the other objects.
            batch_index: [O] int64, the frame of each object; None: one frame for all objects, or one for each object.

        Returns:
            r4 [O, C4, H/16, W/16].
        """
        of_frame = self.conv1(self.normalize(frame))  # [B, C1, H/2, W/2]
        if batch_index is not None:
            of_frame = of_frame[batch_index]
        r4, _, _ = self.stages(of_frame + self.conv1_mask(mask) + self.conv1_others(others))
        return r4


class QueryEncoder(Backbone):
    """Encodes a frame, once for all objects."""

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B, 3, H, W] in [0, 1] to r4 [B, C4, H/16, W/16], r3 [B, C3, H/8, W/8] and r2 [B, C2, H/4, W/4]."""
        return self.stages(self.conv1(self.normalize(frame)))
