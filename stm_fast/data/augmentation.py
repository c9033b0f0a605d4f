"""Settings of the random augmentation of training clips; a YAML file can set each of them."""

from dataclasses import dataclass
from typing import Annotated

from stm_fast.arguments import Limits

Share = Annotated[float, Limits(ge=0, le=1)]
Shares = tuple[Annotated[float, Limits(gt=0, le=1)], Annotated[float, Limits(gt=0, le=1)]]  # least, most
Amount = Annotated[float, Limits(ge=0, le=1000)]


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities. Limits are checked when a file is read. A range r of a motion is from -r to r.

    Motion accumulates: each frame is moved at random relative to the one before, so that the last frame differs most
    from the first, as in a video. Colors change once for the whole clip, and again for each frame, `frame_colour` times
    as much.

    Attributes:
        crop_area: smallest and largest share of the image's area that the crop covers.
        crop_stretch: largest factor by which the crop's aspect ratio changes.
        flip: probability of mirroring the clip left to right.
        reverse: probability of playing a video backwards.
        min_area: objects that cover less than this share of the first frame are left out.
        still_rotation, still_shear: degrees per frame, of a still image.
        still_zoom: natural logarithm of the zoom per frame, of a still image.
        still_translation: share of the crop's shorter side per frame, of a still image.
        warp: probability that the frames of a still image are bent by a thin-plate spline.
        warp_strength: motion of the spline's 4 x 4 control points per frame, as a share of the crop's shorter side.
        video_rotation, video_shear, video_zoom, video_translation: the same, on top of a video's own motion.
        paste, video_paste: probability that objects of still images are pasted over a still image, or over a video.
        paste_most: the most objects that are pasted.
        paste_size: smallest and largest longer side of a pasted object as a share of the crop's shorter side.
        paste_translation: share of the crop's shorter side per frame; rotation, shear and zoom are as for still images.
        brightness, contrast, saturation: largest difference of these factors from 1.
        hue: degrees of rotation about the gray axis.
        grey: probability of a clip without colors.
        frame_colour: how strongly the colors of single frames change, relative to those of the clip.

    Raises:
        ValueError: a range whose first number is larger than its second.
    """

    crop_area: Shares = (0.36, 1.0)
    crop_stretch: Annotated[float, Limits(ge=1, le=1000)] = 1.2
    flip: Share = 0.5
    reverse: Share = 0.5
    min_area: Share = 0.003
    still_rotation: Amount = 15.0
    still_shear: Amount = 8.0
    still_zoom: Amount = 0.12
    still_translation: Amount = 0.08
    warp: Share = 0.3
    warp_strength: Amount = 0.03
    video_rotation: Amount = 5.0
    video_shear: Amount = 3.0
    video_zoom: Amount = 0.04
    video_translation: Amount = 0.02
    paste: Share = 0.5
    video_paste: Share = 0.0
    paste_most: Annotated[int, Limits(ge=1)] = 2  # paste: 0 for none
    paste_size: Shares = (0.2, 0.6)
    paste_translation: Amount = 0.12
    brightness: Amount = 0.2
    contrast: Amount = 0.2
    saturation: Amount = 0.3
    hue: Amount = 10.0
    grey: Share = 0.05
    frame_colour: Amount = 0.2

    def __post_init__(self) -> None:
        for name in ("crop_area", "paste_size"):
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"{name}: found [{least:g}, {most:g}], expected the smaller number first")
