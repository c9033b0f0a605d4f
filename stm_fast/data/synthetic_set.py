"""A benchmark set of synthetic clips with exact masks, rendered on first use."""

import shutil
from pathlib import Path

from PIL import Image

from stm_fast.data.synthetic import FIRST_TRAINING_SEED, SyntheticClip
from stm_fast.errors import InputError, option
from stm_fast.video import write_mask
from stm_fast.whole_file import refuse_links, whole_folder, writing

SEQUENCES = 8
_FRAMES = 40
_OBJECTS = 3


def draw_set(root: Path, first_seed: int) -> list[str]:
    """Renders the missing clips of a split, as ``JPEGImages/<name>`` (PNGs) and ``Annotations/<name>``.

    Args:
        root: a folder for nothing else.
        first_seed: seed of the first clip; those of the others follow. Training never uses these seeds.

    Returns:
        The names of the sequences.

    Raises:
        InputError: a seed that is reserved for training, or a folder that cannot be written.
    """
    if not 0 <= first_seed <= FIRST_TRAINING_SEED - SEQUENCES:
        raise InputError(f"{option('split')}: found seed {first_seed}, expected 0 to {FIRST_TRAINING_SEED - SEQUENCES}")
    names = []
    for seed in range(first_seed, first_seed + SEQUENCES):
        names.append(f"seed{seed:06}")
        if not (root / "Annotations" / names[-1]).is_dir():
            draw_sequence(root, names[-1], SyntheticClip(seed, frames=_FRAMES, objects=_OBJECTS))
    return names


def draw_sequence(root: Path, name: str, clip: SyntheticClip) -> None:
    """Renders a clip as ``JPEGImages/<name>`` and ``Annotations/<name>``.

    The annotations are renamed into place last, so a sequence that has them is complete; images without annotations are
    replaced.

    Raises:
        InputError: a folder that cannot be written, or is a link.
    """
    images, annotations = root / "JPEGImages" / name, root / "Annotations" / name
    refuse_links(images.parent, images, annotations.parent, annotations)
    shutil.rmtree(images, ignore_errors=True)
    with whole_folder(annotations) as masks, whole_folder(images) as frames:
        for time, frame in enumerate(clip):
            with writing(frames):
                # the default level takes longer than rendering
                Image.fromarray(frame.image).save(frames / f"{time:05}.png", compress_level=1)
            write_mask(masks / f"{time:05}.png", frame.ids)
