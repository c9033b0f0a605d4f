"""A small network for interactive segmentation, after Sofiiuk et al., "Reviving Iterative Training with Mask Guidance".

Like theirs, it sees a frame, clicks and the mask so far, and answers with a new mask, so that one network makes first
masks and corrects them. It also sees what a lasso or a box encloses. Prompts enter at stride 4, behind layers that keep
their ImageNet weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.network.decoder import ResidualBlock, upsampled
from stm_fast.network.efficientnet import LITE, MEAN, STD, STEM, Stage, Stem, stages_of

PROMPTS = 4  # planes: enclosed area, mask so far, click that adds, click that takes away
STRIDE = 32  # both sides of a frame are multiples
# of Lite2, the first five stages of the package's networks and one more
STAGES = (*LITE["efficientnet_lite2"].stages, Stage(5, 5, 2, 208))
FROZEN = 2  # the first stages, which, like the stem, keep their weights
_PROMPT_STRIDE = 4
_WIDTH16, _WIDTH8, _WIDTH4, _WIDTH2 = 64, 48, 32, 16


class ClickNetwork(nn.Module):
    """EfficientNet-Lite2 up to stride 32, and a decoder down to stride 2; 3.8 M parameters.

    Weights are initialized from PyTorch's global generator.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(3, STEM, 3, stride=2)
        self.stages = stages_of(STAGES)
        _, r4, r8, _, r16, r32 = (stage.channels for stage in STAGES)
        self.prompt1 = nn.Conv2d(PROMPTS * _PROMPT_STRIDE**2, 64, kernel_size=1)
        self.prompt2 = nn.Conv2d(64, r4, kernel_size=3, padding=1)
        self.skip32 = nn.Conv2d(r32, _WIDTH16, kernel_size=1)
        self.skip16 = nn.Conv2d(r16, _WIDTH16, kernel_size=1)
        self.skip8 = nn.Conv2d(r8, _WIDTH8, kernel_size=1)
        self.skip4 = nn.Conv2d(r4, _WIDTH4, kernel_size=1)
        self.skip2 = nn.Conv2d(STEM + PROMPTS, _WIDTH2, kernel_size=3, padding=1)
        self.merge16 = nn.Conv2d(_WIDTH16 + PROMPTS, _WIDTH16, kernel_size=3, padding=1)
        self.block16 = ResidualBlock(_WIDTH16)
        self.narrow8 = nn.Conv2d(_WIDTH16, _WIDTH8, kernel_size=1)
        self.block8 = ResidualBlock(_WIDTH8)
        self.narrow4 = nn.Conv2d(_WIDTH8, _WIDTH4, kernel_size=1)
        self.block4 = ResidualBlock(_WIDTH4)
        self.narrow2 = nn.Conv2d(_WIDTH4, _WIDTH2, kernel_size=1)
        self.block2 = ResidualBlock(_WIDTH2)
        self.predict = nn.Conv2d(_WIDTH2, 1, kernel_size=3, padding=1)
        # at first, the trunk computes what it does without prompts
        nn.init.zeros_(self.prompt2.weight)
        assert self.prompt2.bias is not None
        nn.init.zeros_(self.prompt2.bias)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), MEAN), persistent=False)
        self.register_buffer("std", torch.full((1, 3, 1, 1), STD), persistent=False)

    def forward(self, frame: Tensor, prompts: Tensor) -> Tensor:
        """The logits [B, 1, H, W] of the object.

        Args:
            frame: [B, 3, H, W] in [0, 1]; H and W are multiples of `STRIDE`.
            prompts: [B, 4, H, W], 0 or 1: the area that a lasso or a box encloses, the mask so far, a disk at a click
                that adds to the object, and one at a click that takes away from it.
        """
        r2 = self.stem((frame - self.mean) / self.std)
        r4 = self.stages[1](self.stages[0](r2))
        x = r4 + self.prompt2(F.relu(self.prompt1(F.pixel_unshuffle(prompts, _PROMPT_STRIDE))))
        maps = []
        for stage in self.stages[FROZEN:]:
            x = stage(x)
            maps.append(x)
        r8, _, r16, r32 = maps
        m = F.relu(self.skip16(r16) + upsampled(self.skip32(r32), 2))
        m = self.block16(self.merge16(torch.cat([m, F.avg_pool2d(prompts, 16)], dim=1)))
        m = self.block8(upsampled(self.narrow8(m), 2) + self.skip8(r8))
        m = self.block4(upsampled(self.narrow4(m), 2) + self.skip4(r4))
        m = upsampled(self.narrow2(m), 2) + self.skip2(torch.cat([r2, F.avg_pool2d(prompts, 2)], dim=1))
        return upsampled(self.predict(F.relu(self.block2(m))), 2)
