"""The decoder: residual blocks and two refinement stages (STM, "Decoder")."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def upsampled(x: Tensor, factor: int) -> Tensor:
    """[B, C, H, W] to [B, C, factor * H, factor * W], bilinear."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        residual: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return x + residual


class Refine(nn.Module):
    """Merges a coarse map with skip features of twice its resolution."""

    def __init__(self, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, channels, kernel_size=3, padding=1)
        self.skip_block = ResidualBlock(channels)
        self.merged_block = ResidualBlock(channels)

    def forward(self, skip: Tensor, coarse: Tensor, batch_index: Tensor | None = None) -> Tensor:
        """Skip features [B, Cs, 2H, 2W] and coarse map [O, C, H, W] to [O, C, 2H, 2W]; the index as in `Decoder`."""
        detail: Tensor = self.skip_block(self.skip_conv(skip))  # [B, C, 2H, 2W]
        if batch_index is not None:
            detail = detail[batch_index]  # [O, C, 2H, 2W]
        merged: Tensor = self.merged_block(detail + upsampled(coarse, 2))
        return merged


class Decoder(nn.Module):
    """Predicts background and object at stride 4 and resizes the prediction to the frame."""

    def __init__(self, channels: int, r3_channels: int, r2_channels: int, decoder_dim: int) -> None:
        super().__init__()
        self.compress = nn.Conv2d(channels, decoder_dim, kernel_size=3, padding=1)
        self.merged_block = ResidualBlock(decoder_dim)
        self.refine3 = Refine(r3_channels, decoder_dim)
        self.refine2 = Refine(r2_channels, decoder_dim)
        self.predict = nn.Conv2d(decoder_dim, 2, kernel_size=3, padding=1)

    def forward(
        self, read: Tensor, query_value: Tensor, r3: Tensor, r2: Tensor, batch_index: Tensor | None = None
    ) -> Tensor:
        """Logits of background and object.

        Features that only depend on the frame are computed once for all of its objects.

        Args:
            read: [O, Cv, h, w], what each object read.
            query_value: [B, Cv, h, w], of B frames.
            r3: [B, C3, 2h, 2w], skip features of the B frames.
            r2: [B, C2, 4h, 4w], likewise.
            batch_index: [O] int64, the frame of each object; None: one frame for all objects, or one for each object.

        Returns:
            [O, 2, 16h, 16w].
        """
        query_value = query_value.expand(read.shape[0], -1, -1, -1) if batch_index is None else query_value[batch_index]
        r4 = torch.cat([read, query_value], dim=1)  # [O, 2 Cv, h, w]
        m4 = self.merged_block(self.compress(r4))  # [O, D, h, w]
        m3 = self.refine3(r3, m4, batch_index)  # [O, D, 2h, 2w]
        m2 = self.refine2(r2, m3, batch_index)  # [O, D, 4h, 4w]
        logits = self.predict(F.relu(m2))  # [O, 2, 4h, 4w]
        return upsampled(logits, 4)
