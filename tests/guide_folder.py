"""What the guides assume: a folder with a clip and its first mask, more of both, small data sets; a model to adapt."""

import shutil
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from family_formulas import weighted
from small_inputs import small_network, write_davis, write_sequence
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.network.checkpoint import published_name
from stm_fast.video import OverlayVideoWriter, write_mask

_FRAMES = 3


def prepare_guide_folder(folder: Path) -> None:
    """Writes the clip of `stm-fast demo`, shortened, as a video and as images, and what is made of it."""
    clip = SyntheticClip(0, frames=_FRAMES)
    with OverlayVideoWriter(folder / "clip.mp4", clip.width, clip.height, Fraction(24)) as writer:
        for index, frame in enumerate(clip):
            writer.write(frame.image, index / 24)
    write_mask(folder / "first.png", clip[0].ids)
    write_sequence(folder / "frames", folder / "true", [frame.image for frame in clip], {0: clip[0].ids})
    for folder_of_many in ("many", "masks"):
        (folder / folder_of_many).mkdir()
    for name in ("a", "b"):
        shutil.copy(folder / "clip.mp4", folder / f"many/{name}.mp4")
        shutil.copy(folder / "first.png", folder / f"masks/{name}.png")
    write_davis(folder / "DAVIS", frames=_FRAMES)
    published = {f"module.{published_name(name)}": value for name, value in small_network().state_dict().items()}
    torch.save(published, folder / "STM_weights.pth")


class Memory(nn.Module):
    """The memory read of STM, with the name and the arguments that its authors published."""

    def forward(self, m_in: Tensor, m_out: Tensor, q_in: Tensor, q_out: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, Ck, T, H, W] and values [B, Cv, T, H, W], those of the frame without T: [B, 2 Cv, H, W]."""
        score = m_in.flatten(2).mT @ q_in.flatten(2) / m_in.shape[1] ** 0.5  # [B, N, M]
        read = weighted(score, m_out.flatten(2)).unflatten(2, q_in.shape[2:])
        return torch.cat([read, q_out], 1), score


class YourModel(nn.Module):
    """A network that reads a memory as STM does."""

    def __init__(self) -> None:
        super().__init__()
        self.Memory = Memory()
