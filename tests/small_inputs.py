"""Clips, masks, weights and benchmark sets, small enough for a test."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stm_fast.data.synthetic import SyntheticClip
from stm_fast.network import STM, save_checkpoint, stm_resnet18
from stm_fast.runs.given import GivenMasks, find_masks, match_masks
from stm_fast.video import FrameReader, OverlayVideoWriter, write_mask

SIZE = HEIGHT, WIDTH = 32, 48
SMALL = {"key_dim": 16, "value_dim": 32, "decoder_dim": 16}
FRAMES = 5  # per sequence


def small_network() -> STM:
    torch.manual_seed(0)
    return stm_resnet18(**SMALL).eval()


def given_masks(path: Path, reader: FrameReader, mask_frame: int | str | None = None) -> GivenMasks:
    return match_masks(find_masks(path, reader.path), reader, mask_frame)


def write_weights(path: Path) -> Path:
    save_checkpoint(small_network(), path)
    return path


def write_video(path: Path, count: int) -> Path:
    """Frames of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with OverlayVideoWriter(path, WIDTH, HEIGHT, Fraction(25)) as writer:
        for number in range(count):
            image = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            writer.write(image, number / 25)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and those below it, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_object(object_id: int = 3) -> np.ndarray:
    """Ids [H, W]."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:20, 8:24] = object_id
    return ids


def draw(seed=0, objects=2, frames=FRAMES):
    """Pictures [T, H, W, 3] and ids [T, H, W] of a clip."""
    clip = SyntheticClip(seed, frames=frames, height=HEIGHT, width=WIDTH, objects=objects)
    return np.stack([frame.image for frame in clip]), np.stack([frame.ids for frame in clip])


def write_sequence(pictures_folder, masks_folder, pictures, masks, step=1):
    """Writes all frames as JPEGs and `masks`, a dictionary by frame index, as PNGs."""
    pictures_folder.mkdir(parents=True)
    masks_folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(pictures_folder / f"{index * step:05d}.jpg", quality=95)
    for index, ids in masks.items():
        write_mask(masks_folder / f"{index * step:05d}.png", ids)


def write_davis(
    root, names=("blob", "star"), split_file="ImageSets/2017/val.txt", change=lambda ids: ids, frames=FRAMES
):
    for seed, name in enumerate(names):
        pictures, ids = draw(seed, frames=frames)
        masks = dict(enumerate(change(ids)))
        write_sequence(root / "JPEGImages/480p" / name, root / "Annotations/480p" / name, pictures, masks)
    (root / split_file).parent.mkdir(parents=True)
    (root / split_file).write_text("\n".join(names) + "\n")
    return root


def write_youtube(root):
    """A video with all frames, of which every fifth is required; object 2 appears in frame 10."""
    pictures, ids = draw(3, frames=16)
    late = np.where(ids[10] == 2, 2, 0).astype(np.uint8)
    masks = {0: np.where(ids[0] == 1, 1, 0).astype(np.uint8), 10: late}
    write_sequence(root / "all_frames/valid_all_frames/JPEGImages/v1", root / "valid/Annotations/v1", pictures, masks)
    every_fifth = root / "valid/JPEGImages/v1"
    every_fifth.mkdir(parents=True)
    for index in range(0, 16, 5):
        Image.fromarray(pictures[index]).save(every_fifth / f"{index:05d}.jpg")
    frames = [f"{index:05d}" for index in range(0, 16, 5)]
    meta = {"1": {"category": "blob", "frames": frames}, "2": {"category": "star", "frames": frames[2:]}}
    (root / "valid/meta.json").write_text(json.dumps({"videos": {"v1": {"objects": meta}}}))
    return root, late
