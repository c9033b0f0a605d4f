"""Makes the moving picture of README: a box around each object, the masks made of the boxes, and the tracked objects.

python benchmarks/moving_picture.py clip.mp4 docs/images/demo.webp --box 1:235,225,305,340 --credit "Who made the clip"

The boxes are those of `stm-fast segment --box`, all in the first frame; they need OpenCV. `make pictures` makes the one
of README.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image, ImageDraw, ImageFont

import stm_fast
from stm_fast.boxes import Box, parse_box
from stm_fast.progress import progress_bar
from stm_fast.video import draw_overlay, open_frames, read_written_mask
from stm_fast.video.overlay_colors import overlay_colors
from stm_fast.whole_file import whole_file

LOOKING = 1500  # milliseconds for which a page is shown before the objects move, and at the end
BAR, MARGIN = 30, 10  # below the frame, in pixels
TEXT, SMALL = 15, 11  # sizes of the font
DARK, LIGHT, GRAY = (13, 17, 23), (240, 246, 252), (145, 152, 161)
LINE = 3  # pixels, of a box
QUALITY, EFFORT = 62, 6  # of the WebP encoder, up to 100 and 6

Pixels = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Ids = npt.NDArray[np.uint8]  # [H, W] object ids, 0 is background
Boxes = Mapping[int, Box]  # by object id


class Page(NamedTuple):
    """A picture, and the milliseconds for which it is shown."""

    picture: Image.Image
    duration: int


def pages(frames: Sequence[tuple[Pixels, Ids]], boxes: Boxes, width: int, credit: str, pause: int) -> Iterator[Page]:
    """The pages of the moving picture.

    Args:
        frames: every frame that is shown and its masks, of the same size.
        width: of the pages, in pixels.
        credit: who made the clip.
        pause: milliseconds from frame to frame.
    """
    (first, ids), *_ = frames
    drawn = Image.fromarray(first)
    for object_id, box in boxes.items():
        color = tuple(overlay_colors(None)[object_id].tolist())
        thickness = LINE * drawn.width // width
        corners = (box.x, box.y, box.x + box.width, box.y + box.height)
        ImageDraw.Draw(drawn).rectangle(corners, outline=color, width=thickness)
    yield Page(_page(_resized(drawn, width), "1. Draw a box around each object", credit), LOOKING)
    yield Page(_page(_overlay(first, ids, width), "2. The masks made of the boxes", credit), LOOKING)
    for index, (image, ids) in enumerate(frames):
        duration = LOOKING if index == len(frames) - 1 else pause
        yield Page(_page(_overlay(image, ids, width), "3. Tracked through the video", credit), duration)


def _resized(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS)


def _overlay(image: Pixels, ids: Ids, width: int) -> Image.Image:
    """Lines and ids are drawn at the size at which they are shown."""
    small = _resized(Image.fromarray(image), width)
    return Image.fromarray(draw_overlay(np.asarray(small), np.asarray(Image.fromarray(ids).resize(small.size, 0))))


def _page(picture: Image.Image, caption: str, credit: str) -> Image.Image:
    """The picture above a bar with the caption on the left and the credit on the right."""
    page = Image.new("RGB", (picture.width, picture.height + BAR), DARK)
    page.paste(picture)
    draw = ImageDraw.Draw(page)
    middle = picture.height + BAR // 2
    draw.text((MARGIN, middle), caption, LIGHT, ImageFont.load_default(TEXT), "lm")
    draw.text((page.width - MARGIN, middle), credit, GRAY, ImageFont.load_default(SMALL), "rm")
    return page


def write_webp(found: Sequence[Page], output: Path) -> None:
    """Writes an animated WebP file that is repeated without end; replaces an existing file."""
    first, *others = [page.picture for page in found]
    durations = [page.duration for page in found]
    with whole_file(output) as partial:
        first.save(
            partial,
            "WEBP",
            save_all=True,
            append_images=others,
            duration=durations,
            loop=0,
            quality=QUALITY,
            method=EFFORT,
        )


def segmented(clip: Path, boxes: Boxes, max_size: int, step: int) -> Iterator[tuple[Pixels, Ids]]:
    """Every `step`-th frame of a clip and the masks that the package's weights find, from boxes in its first frame."""
    with TemporaryDirectory() as folder, progress_bar("segmenting") as advance:
        output = Path(folder) / "out"
        stm_fast.segment_video(
            clip,
            None,
            output,
            model=stm_fast.load(dtype="float32"),
            boxes={0: boxes},
            max_size=max_size,
            write=["masks"],
            progress=advance,
        )
        for frame in open_frames(clip):
            if frame.index % step == 0:
                yield frame.image, read_written_mask(output / "masks" / f"{frame.name}.png").ids


def main(
    clip: Annotated[Path, typer.Argument(help="The video.")],
    output: Annotated[Path, typer.Argument(help="The WebP file.")],
    box: Annotated[list[str], typer.Option(help="OBJECT:X,Y,WIDTH,HEIGHT in the first frame.")],
    credit: Annotated[str, typer.Option(help="Who made the clip.")] = "",
    max_size: Annotated[int, typer.Option(help="As for stm-fast segment.")] = 480,
    step: Annotated[int, typer.Option(min=1, help="Every so many frames are shown, at the speed of the clip.")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Pixels.")] = 600,
) -> None:
    """Makes the moving picture."""
    prompts = [parse_box(text) for text in box]
    if any(prompt.frame is not None for prompt in prompts):
        raise typer.BadParameter("expected boxes in the first frame")
    boxes = {prompt.object_id or number: prompt.box for number, prompt in enumerate(prompts, 1)}
    frames = list(segmented(clip, boxes, max_size, step))
    pause = round(1000 * step / open_frames(clip).frame_rate)
    write_webp(list(pages(frames, boxes, width, credit, pause)), output)
    print(f"{output}: {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
