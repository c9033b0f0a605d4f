"""Pictures for the pages, made by the build from a clip that the package draws: `![...](_generated/overlay.png)`.

They are kept in build/pictures until this file changes.
"""

import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from PIL import Image
from sphinx.application import Sphinx
from sphinx.util import logging

from stm_fast.choices import Result
from stm_fast.whole_file import whole_file

FOLDER = Path(__file__).resolve().parents[1] / "build" / "pictures"
NAMES = ("clip", "overlay", "matte", "soft", "cutout", "alpha", "states")
# objects disappear before the second, and are back in the third
SHOWN = (0, 10, 26)
_FRAMES, _HIDDEN = 40, (8, 12)
_FRAME_RATE = Fraction(24)
_RESULTS: tuple[Result, ...] = ("masks", "pictures", "csv", "cutout", "soft")
_GAP = 6  # pixels between pictures side by side
_CHECK = 12  # pixels of a square behind an alpha picture


def absent_or_old() -> bool:
    """Whether a picture is missing or was drawn by an earlier version of this file."""
    drawn = [FOLDER / f"{name}.png" for name in NAMES]
    changed = Path(__file__).stat().st_mtime
    return any(not path.is_file() or path.stat().st_mtime < changed for path in drawn)


def draw() -> None:
    """Segments the clip, and writes every picture."""
    from stm_fast import load, segment_video
    from stm_fast.data.synthetic import SyntheticClip
    from stm_fast.video import OverlayVideoWriter

    clip = SyntheticClip(0, frames=_FRAMES, hidden=_HIDDEN)
    with tempfile.TemporaryDirectory() as folder:
        video, output = Path(folder, "clip.mp4"), Path(folder, "out")
        with OverlayVideoWriter(video, clip.width, clip.height, _FRAME_RATE) as writer:
            for index, frame in enumerate(clip):
                writer.write(frame.image, float(index / _FRAME_RATE))
        segment_video(video, clip[0].ids, output, model=load(dtype="float32"), write=_RESULTS)
        FOLDER.mkdir(parents=True, exist_ok=True)
        _save("clip", _side_by_side(Image.fromarray(clip[index].image) for index in SHOWN))
        _save("overlay", _side_by_side(Image.open(output / f"overlay/{index:05d}.jpg") for index in SHOWN))
        _draw_soft(output, SHOWN[2])
        _draw_states(output)


def _draw_soft(output: Path, index: int) -> None:
    cutout = Image.open(output / f"cutout/{index:05d}.png")
    _save("cutout", cutout)
    _save("matte", cutout.getchannel("A"))
    _save("alpha", Image.alpha_composite(_checks(cutout.size), cutout).convert("RGB"))
    soft = Image.open(output / f"soft/{index:05d}.1.png")
    _save("soft", soft.point(lambda value: value / 257).convert("L"))


def _draw_states(output: Path) -> None:
    """The expected J of every object over time, and the frames in which it is doubtful or lost."""
    from matplotlib.figure import Figure

    from stm_fast.runs.object_table import read_table

    rows = list(read_table(output))
    ids = sorted({row.object_id for row in rows})
    figure = Figure(figsize=(7.5, 4), dpi=120, layout="constrained")
    for axes, object_id in zip(figure.subplots(len(ids), sharex=True), ids, strict=True):
        own = [row for row in rows if row.object_id == object_id]
        axes.plot([row.frame_index for row in own], [100 * float(row.score) for row in own], "black", linewidth=2)
        for state, shade in (("doubtful", "0.85"), ("lost", "0.6")):
            at = [row.frame_index for row in own if row.state == state]
            axes.bar(at, 105, width=1, color=shade, zorder=0, label=state)
        axes.set(ylim=(0, 105), ylabel=f"object {object_id}", yticks=(0, 50, 100))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize="small")
    figure.axes[0].set_title("score, the expected J in percent", fontsize="medium")
    figure.axes[-1].set_xlabel("frame")
    with whole_file(FOLDER / "states.png") as partial:
        figure.savefig(partial, format="png")


def _side_by_side(images: Iterable[Image.Image]) -> Image.Image:
    pictures = [image.convert("RGB") for image in images]
    width, height = pictures[0].size
    together = Image.new("RGBA", (len(pictures) * (width + _GAP) - _GAP, height))
    for position, picture in enumerate(pictures):
        together.paste(picture, (position * (width + _GAP), 0))
    return together


def _checks(size: tuple[int, int]) -> Image.Image:
    """Gray squares, which show where a picture is transparent."""
    columns, rows = (-(-side // _CHECK) for side in size)
    small = Image.new("L", (columns, rows))
    small.putdata([(255, 205)[(index % columns + index // columns) % 2] for index in range(columns * rows)])
    whole = small.resize((columns * _CHECK, rows * _CHECK), Image.Resampling.NEAREST)
    return whole.crop((0, 0, *size)).convert("RGBA")


def _save(name: str, picture: Image.Image) -> None:
    with whole_file(FOLDER / f"{name}.png") as partial:
        picture.save(partial, format="PNG", optimize=True)


def setup(app: Sphinx) -> None:
    """Draws the pictures before the first page is read."""

    def make(_: Sphinx) -> None:
        if absent_or_old():
            logging.getLogger(__name__).info("drawing the pictures of the pages")
            draw()

    app.connect("builder-inited", make)
