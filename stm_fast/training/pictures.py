"""An image of a clip with its annotation and prediction, for the log."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stm_fast.training.step import ClipLoss
from stm_fast.video.overlay import draw_overlay
from stm_fast.whole_file import make_folder, whole_file


@torch.no_grad()
def draw_clip(clip_loss: ClipLoss, frames: Tensor, ids: Tensor, objects: int) -> Image.Image:
    """Draws annotations above predictions, one column per frame; the first frame's prediction is its given mask.

    Args:
        clip_loss: the network inside its loss.
        frames: ``[T, 3, H, W]`` in [0, 1].
        ids: ``[T, H, W]`` int64.
        objects: number of objects.
    """
    training = clip_loss.training
    clip_loss.eval()
    logits = clip_loss.predict(frames[None], ids[None, 0], [objects])[0]  # [T - 1, 1 + O, H, W]
    clip_loss.train(training)
    predicted = torch.cat([ids[:1], logits.argmax(1)])  # [T, H, W]
    images = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # [T, H, W, 3]
    rows = [
        np.concatenate(
            [draw_overlay(image, mask) for image, mask in zip(images, masks, strict=True)],
            axis=1,
        )
        for masks in (labels.to(torch.uint8).cpu().numpy() for labels in (ids, predicted))
    ]
    return Image.fromarray(np.concatenate(rows))


def write_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG atomically, and creates its folder. Raises InputError if that fails."""
    make_folder(path.parent)
    with whole_file(path) as partial:
        picture.save(partial, "png")
