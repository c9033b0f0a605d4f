"""What is changed at random in a training clip: plain numbers, so that a YAML file can fill them in."""

from dataclasses import dataclass

from stm_fast.errors import InputError

_PROBABILITIES = ("flip", "reverse", "warp", "paste", "video_paste", "grey", "min_area")
_RANGES = ("crop_area", "paste_size")


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities. A range r of a motion means a number from -r to r.

    Motions: the first frame is moved by one draw, and every further frame goes on from the frame before by another, so
    that the last frame differs most from the first, as in a video. Colours: one draw for the clip, one more for every
    frame, `frame_colour` times as strong.

    Attributes:
        crop_area: least and most of the picture's area that the crop covers.
        crop_stretch: the crop's sides are stretched against each other by up to this factor, at least 1.
        flip: probability of mirroring the clip left to right.
        reverse: probability of playing a video backwards.
        min_area: share of the first frame below which an object is not drawn.
        still_rotation, still_shear: degrees a frame, of stills.
        still_zoom: natural logarithm of the zoom a frame, of stills.
        still_translation: share of the crop's shorter side a frame, of stills.
        warp: probability that the frames of a still are bent by a thin-plate spline.
        warp_strength: how far its 4 x 4 control points go a frame, as a share of the crop's shorter side.
        video_rotation, video_shear, video_zoom, video_translation: the same as for stills, on top of a video's motion.
        paste, video_paste: probability that objects of other stills are put over a still, over a video.
        paste_most: most objects that are.
        paste_size: smallest and largest side of such an object as a share of the crop's shorter side.
        paste_translation: share of the crop's shorter side a frame; turned, sheared and zoomed they are as stills are.
        brightness, contrast, saturation: by which these factors differ from 1 at most.
        hue: degrees of turn round the grey axis.
        grey: probability of a clip without colours.
        frame_colour: how strong the colours of single frames change, relative to those of the clip.

    Raises InputError for numbers that make no sense.
    """

    crop_area: tuple[float, float] = (0.36, 1.0)
    crop_stretch: float = 1.2
    flip: float = 0.5
    reverse: float = 0.5
    min_area: float = 0.003
    still_rotation: float = 15.0
    still_shear: float = 8.0
    still_zoom: float = 0.12
    still_translation: float = 0.08
    warp: float = 0.3
    warp_strength: float = 0.03
    video_rotation: float = 5.0
    video_shear: float = 3.0
    video_zoom: float = 0.04
    video_translation: float = 0.02
    paste: float = 0.5
    video_paste: float = 0.0
    paste_most: int = 2
    paste_size: tuple[float, float] = (0.2, 0.6)
    paste_translation: float = 0.12
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3
    hue: float = 10.0
    grey: float = 0.05
    frame_colour: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _RANGES:
                self._require(name, 0 < value[0] <= value[1] <= 1, "two numbers, 0 < least <= most <= 1")
            elif name in _PROBABILITIES:
                self._require(name, 0 <= value <= 1, "a number from 0 to 1")
            else:
                self._require(name, value >= 0, "no negative number")
        self._require("crop_stretch", self.crop_stretch >= 1, "a factor of at least 1")
        self._require("paste_most", self.paste_most >= 1, "at least 1; paste: 0 for none")

    def _require(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise InputError(f"augmentation.{name}: {getattr(self, name)}, expected {expected}")
