"""Synthetic clips with exact masks: textured objects that move, rotate, scale and cross over a panning background.

A seed gives the same bytes on every machine: pixels are computed with additions, multiplications, divisions and square
roots only, which IEEE 754 rounds exactly; sines and cosines are computed for single numbers, in double precision, and
rounded to float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

MAX_OBJECTS = 20
# training uses seeds from here on; smaller ones are for demos, tests and evaluation
FIRST_TRAINING_SEED = 1_000_000
# a placement is accepted if this share of every object is visible in frame 0
VISIBLE_SHARE = 0.6
ATTEMPTS = 20

_SHAPES = ("blob", "superellipse", "polygon", "star")
_PATTERNS = ("marble", "stripes", "checks", "dots")
# texels per side of an object's texture, which covers [-_REACH, _REACH] in units of the radius
_TEXTURE = 128
_REACH = 1.5
# the background pans by up to this share of the frame's shorter side, in each direction
_PAN = 0.15
_CLUTTER = 14  # shapes in the background


@dataclass(frozen=True, eq=False)
class SyntheticFrame:
    """One frame and its exact mask.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        ids: uint8 [H, W], the front-most object at the pixel's center, 0 for background.
    """

    image: Bytes
    ids: Bytes


class SyntheticClip:
    """A clip whose frames are rendered on access, in any order, so that memory does not grow with its length.

    Speeds are in pixels per frame and do not depend on the length. Ids are 1 to `objects`; their depth order is random
    and constant. In frame 0, every object is visible (see `VISIBLE_SHARE`).

    Args:
        seed: determines the whole clip.
        frames: number of frames T.
        height, width: size in pixels.
        objects: number of objects, at most 20.
        speed: at 1, an object crosses the frame in about 50 frames; at 0, nothing moves.
        object_size: smallest and largest radius of the objects, as a share of the frame's shorter side.
        hidden: the fewest and the most frames for which an object disappears, and then is visible again, over and
            over, each object at its own times; None: they are never hidden. Nothing else about the clip changes.

    Raises:
        ValueError: a number is outside these limits, or the objects do not fit side by side.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        frames: int = 40,
        height: int = 240,
        width: int = 432,
        objects: int = 3,
        speed: float = 1.0,
        object_size: tuple[float, float] = (0.16, 0.24),
        hidden: tuple[int, int] | None = None,
    ) -> None:
        if frames < 1 or height < 16 or width < 16:
            raise ValueError(f"frames, height, width: {frames}, {height}, {width}, expected at least 1, 16, 16")
        if not 0 <= objects <= MAX_OBJECTS:
            raise ValueError(f"objects: {objects}, expected 0 to {MAX_OBJECTS}")
        if not 0 < object_size[0] <= object_size[1] <= 0.5:
            raise ValueError(f"object_size: {object_size}, expected 0 < smallest <= largest <= 0.5")
        if hidden is not None and not 1 <= hidden[0] <= hidden[1]:
            raise ValueError(f"hidden: {hidden}, expected 1 <= fewest <= most")
        self.frames, self.height, self.width, self.objects = frames, height, width, objects
        self._absences = (
            [] if hidden is None else _draw_absences(np.random.default_rng([seed, 1]), objects, frames, hidden)
        )
        generator = np.random.default_rng(seed)
        self._background = _Background(generator, height, width, speed)
        for _ in range(ATTEMPTS):
            self._sprites = _draw_sprites(generator, objects, height, width, speed, object_size)
            if self._all_visible():
                return
        raise ValueError(f"objects: {objects} of size {object_size} do not fit side by side in {width}x{height}")

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> SyntheticFrame:
        """Frame `index`; negative indices count from the end. Raises IndexError outside the clip."""
        time = self._time(index)
        image = self._background.render(time)  # [H, W, 3]
        ids = self._paint(time, image)
        return SyntheticFrame((image + np.float32(0.5)).astype(np.uint8), ids)

    def ids(self, index: int) -> Bytes:
        """The mask of frame `index` alone, which is much faster. Raises IndexError outside the clip."""
        return self._paint(self._time(index), None)

    def __iter__(self) -> Iterator[SyntheticFrame]:
        return (self[index] for index in range(self.frames))

    def stack(self) -> tuple[Bytes, Bytes]:
        """The whole clip: images uint8 [T, H, W, 3] and ids uint8 [T, H, W]."""
        images = np.empty((self.frames, self.height, self.width, 3), np.uint8)
        ids = np.empty((self.frames, self.height, self.width), np.uint8)
        for index, frame in enumerate(self):
            images[index], ids[index] = frame.image, frame.ids
        return images, ids

    def _time(self, index: int) -> int:
        if not -self.frames <= index < self.frames:
            raise IndexError(f"frame {index} of {self.frames}")
        return index % self.frames

    def _paint(self, time: int, image: Floats | None) -> Bytes:
        """Draws the objects over the image, if given. Returns their ids, uint8 [H, W]."""
        ids = np.zeros((self.height, self.width), np.uint8)
        for sprite in self._sprites:
            if not any(absent == sprite.id and time in times for absent, times in self._absences):
                sprite.paint(time, image, ids)
        return ids

    def _all_visible(self) -> bool:
        together = np.zeros((self.height, self.width), np.uint8)
        alone = []
        for sprite in self._sprites:
            own = np.zeros_like(together)
            for target in (together, own):
                sprite.paint(0, None, target)
            alone.append(np.count_nonzero(own))
        seen = [np.count_nonzero(together == sprite.id) for sprite in self._sprites]
        return all(count > 0 and part >= VISIBLE_SHARE * count for part, count in zip(seen, alone, strict=True))


@dataclass(frozen=True)
class _Oscillation:
    """center + reach * sin(phase + rate * time)."""

    center: float
    reach: float
    phase: float
    rate: float

    def __call__(self, time: int) -> float:
        return self.center + self.reach * math.sin(self.phase + self.rate * time)


class _Shape:
    """An outline of radius about 1, as a signed distance function (negative inside)."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._kind = _SHAPES[generator.integers(len(_SHAPES))]
        self._aspect = np.float32(generator.uniform(0.65, 1.0))
        corners = int(generator.integers(3, 8))
        self._corners = max(corners, 5) if self._kind == "star" else corners
        self._sides = [2 * math.pi * (k + generator.uniform(-0.15, 0.15)) / corners for k in range(corners)]
        self._waves = generator.uniform(-0.12, 0.12, (3, 2)).astype(np.float32)

    def outside(self, x: Floats, y: Floats) -> Floats:
        """Approximate signed distance in radii."""
        if self._kind == "polygon":
            return self._outside_polygon(x, y)
        if self._kind == "superellipse":
            return self._outside_superellipse(x, y)
        return self._outside_waves(x, y)

    def _outside_polygon(self, x: Floats, y: Floats) -> Floats:
        """Distance to the farthest side; a circle cuts off long corners."""
        sides = [x * np.float32(math.cos(a)) + y * np.float32(math.sin(a)) for a in self._sides]
        circle = np.sqrt(x * x + y * y) - np.float32(1.25)
        distance: Floats = np.maximum(np.maximum.reduce(sides) - np.float32(0.75), circle)
        return distance

    def _outside_superellipse(self, x: Floats, y: Floats) -> Floats:
        """Distance to x^4 + (y / aspect)^4 = 1."""
        u, v = x * x, (y / self._aspect) * (y / self._aspect)
        distance: Floats = (np.sqrt(np.sqrt(u * u + v * v)) - 1) * self._aspect
        return distance

    def _outside_waves(self, x: Floats, y: Floats) -> Floats:
        """Distance to the radius 0.85 + sum of waves around the center; a star has one strong wave."""
        radius = np.sqrt(x * x + y * y) + np.float32(1e-6)
        cos, sin = x / radius, y / radius
        outline = np.full_like(radius, 0.85)
        multiple_cos, multiple_sin = cos, sin
        # cos and sin of k times the angle by the addition theorem
        for k in range(2, self._corners + 1 if self._kind == "star" else 5):
            multiple_cos, multiple_sin = (
                multiple_cos * cos - multiple_sin * sin,
                multiple_sin * cos + multiple_cos * sin,
            )
            if self._kind == "blob":
                outline += self._waves[k - 2, 0] * multiple_cos + self._waves[k - 2, 1] * multiple_sin
        if self._kind == "star":
            outline += np.float32(0.2) * multiple_cos
        return radius - outline


class _Sprite:
    """One object: outline, texture and motion."""

    def __init__(
        self,
        generator: np.random.Generator,
        label: int,
        size: float,
        across: _Oscillation,
        down: _Oscillation,
        speed: float,
        texture: Floats,
    ) -> None:
        self.id = label
        self._size = size
        self._across, self._down = across, down
        self._shape = _Shape(generator)
        self._texture = texture  # [texels, texels, 3]
        self._turn = (generator.uniform(0, 2 * math.pi), generator.uniform(-0.05, 0.05) * speed)
        phase, rate = generator.uniform(0, 2 * math.pi), generator.uniform(0.04, 0.09) * speed
        self._scale = _Oscillation(1.0, 0.18, phase, rate)

    def paint(self, time: int, image: Floats | None, ids: Bytes) -> None:
        """Draws over image float32 [H, W, 3], if given, and ids uint8 [H, W]; only the image has soft edges."""
        height, width = ids.shape
        radius = self._size * self._scale(time)
        center_x, center_y = self._across(time), self._down(time)
        left, right = _clip_range(center_x, radius * _REACH, width)
        top, bottom = _clip_range(center_y, radius * _REACH, height)
        if left >= right or top >= bottom:
            return
        angle = self._turn[0] + self._turn[1] * time
        cos, sin = np.float32(math.cos(angle) / radius), np.float32(math.sin(angle) / radius)
        across = np.arange(left, right, dtype=np.float32) - np.float32(center_x)  # [w]
        down = (np.arange(top, bottom, dtype=np.float32) - np.float32(center_y))[:, None]  # [h, 1]
        x, y = cos * across + sin * down, cos * down - sin * across  # [h, w], in radii
        distance = self._shape.outside(x, y) * np.float32(radius)  # [h, w], in pixels
        window = np.s_[top:bottom, left:right]
        ids[window][distance <= 0] = self.id
        if image is not None:
            near = distance < np.float32(0.5)
            cover = np.minimum(np.float32(0.5) - distance[near], 1)[:, None]  # [pixels, 1]
            under = image[window]
            under[near] += cover * (self._color(x[near], y[near]) - under[near])

    def _color(self, x: Floats, y: Floats) -> Floats:
        """The texture at points, in radii, darker towards the outline: [pixels, 3]."""
        texel = np.float32((_TEXTURE - 2) / (2 * _REACH))
        color = _sample(self._texture, (x + np.float32(_REACH)) * texel, (y + np.float32(_REACH)) * texel)
        shade = np.float32(1.1) - np.float32(0.3) * (x * x + y * y)
        return np.clip(color * shade[:, None], 0, 255)


class _Background:
    """A cluttered canvas larger than the frame; the visible window pans slowly."""

    def __init__(self, generator: np.random.Generator, height: int, width: int, speed: float) -> None:
        self._height, self._width = height, width
        margin = max(2, round(_PAN * min(height, width)))
        rows, columns = height + 2 * margin + 2, width + 2 * margin + 2
        tint, other = generator.uniform(50, 190, (2, 3)).astype(np.float32)
        share = _value_noise(generator, rows, columns, cells=5, octaves=6, roughness=0.65)[..., None]
        self._canvas: Floats = tint + share * (other - tint)  # [rows, columns, 3]
        self._add_clutter(generator, (tint + other) / 2)
        rates = generator.uniform(0.015, 0.035, 2) * speed
        phases = generator.uniform(0, 2 * math.pi, 2)
        self._across = _Oscillation(margin, margin, phases[0], rates[0])
        self._down = _Oscillation(margin, margin, phases[1], rates[1])

    def render(self, time: int) -> Floats:
        """The window at this time, bilinearly interpolated: float32 [H, W, 3] in 0..255."""
        x, y = self._across(time), self._down(time)
        column, row = int(x), int(y)
        part_x, part_y = np.float32(x - column), np.float32(y - row)
        window = self._canvas[row : row + self._height + 1, column : column + self._width + 1]
        across = window[:, :-1] + part_x * (window[:, 1:] - window[:, :-1])
        return across[:-1] + part_y * (across[1:] - across[:-1])

    def _add_clutter(self, generator: np.random.Generator, tint: Floats) -> None:
        """Static shapes of similar colors, so that an outline alone does not identify an object."""
        rows, columns = self._canvas.shape[:2]
        ignored = np.zeros((rows, columns), np.uint8)
        for _ in range(_CLUTTER):
            size = generator.uniform(0.04, 0.13) * min(rows, columns)
            across = _Oscillation(generator.uniform(0, columns), 0, 0, 0)
            down = _Oscillation(generator.uniform(0, rows), 0, 0, 0)
            texture = tint + np.float32(0.35) * (_paint_texture(generator) - tint)
            _Sprite(generator, 1, size, across, down, 0, texture).paint(0, self._canvas, ignored)


def _draw_absences(
    generator: np.random.Generator, objects: int, frames: int, lengths: tuple[int, int]
) -> list[tuple[int, range]]:
    """Ids of objects and the times at which they are hidden."""
    absences = []
    for label in range(1, objects + 1):
        time = 0
        while time < frames:
            shown, gone = generator.integers(lengths[0], lengths[1] + 1, 2).tolist()
            absences.append((label, range(time + shown, time + shown + gone)))
            time += shown + gone
    return absences


def _draw_sprites(
    generator: np.random.Generator,
    objects: int,
    height: int,
    width: int,
    speed: float,
    object_size: tuple[float, float],
) -> list[_Sprite]:
    """Objects from back to front. They start side by side and cross one another."""
    places = generator.permutation(objects)
    sprites = []
    for label, place in enumerate(places, start=1):
        size = generator.uniform(*object_size) * min(height, width)
        start = 0.0 if objects == 1 else 1.8 * place / (objects - 1) - 0.9
        # the phase at which the oscillation is at this position; objects on the right move left first
        phase = math.asin(start) if start < 0 else math.pi - math.asin(start)
        across = _Oscillation(width / 2, 0.36 * width, phase, generator.uniform(0.04, 0.07) * speed)
        down = _Oscillation(
            height * generator.uniform(0.38, 0.62),
            height * generator.uniform(0.06, 0.2),
            generator.uniform(0, 2 * math.pi),
            generator.uniform(0.03, 0.08) * speed,
        )
        sprites.append(_Sprite(generator, label, size, across, down, speed, _paint_texture(generator)))
    return [sprites[at] for at in generator.permutation(objects)]


def _paint_texture(generator: np.random.Generator) -> Floats:
    """A two-color pattern under uneven light: float32 [texels, texels, 3] in 0..255."""
    first, second = generator.uniform(20, 245, (2, 3)).astype(np.float32)
    cloud = _value_noise(generator, _TEXTURE, _TEXTURE, cells=4, octaves=4)
    grid = np.linspace(0, 1, _TEXTURE, dtype=np.float32)
    x, y = grid[None, :], grid[:, None]
    count = np.float32(generator.integers(4, 9))
    pattern = _PATTERNS[generator.integers(len(_PATTERNS))]
    if pattern == "stripes":
        share = _soft_step(_triangle_wave(x * count + cloud * np.float32(0.6)))
    elif pattern == "checks":
        share = np.abs(_soft_step(_triangle_wave(x * count)) - _soft_step(_triangle_wave(y * count)))
    elif pattern == "dots":
        u, v = _triangle_wave(x * count) - 1, _triangle_wave(y * count) - 1
        share = _soft_step(np.float32(1.1) - u * u - v * v)
    else:
        share = _soft_step(_triangle_wave(cloud * np.float32(4)))
    light = np.float32(0.75) + np.float32(0.5) * cloud[..., None]
    texture: Floats = np.clip((first + share[..., None] * (second - first)) * light, 0, 255)
    return texture


def _triangle_wave(x: Floats) -> Floats:
    """Triangle wave of period 1 between 0 and 1, which rounds exactly, unlike a cosine."""
    wave: Floats = np.abs(x - np.floor(x + np.float32(0.5))) * 2
    return wave


def _soft_step(x: Floats) -> Floats:
    """0 to 1 over a soft step at one half."""
    step: Floats = np.clip((x - np.float32(0.5)) * 6 + np.float32(0.5), 0, 1)
    return step


def _value_noise(
    generator: np.random.Generator, rows: int, columns: int, *, cells: int, octaves: int, roughness: float = 0.5
) -> Floats:
    """Noise in 0..1, float32 [rows, columns]: a sum over grids of twice the resolution and `roughness` the strength."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(octaves):
        across = cells << octave
        down = max(1, across * rows // columns)
        values = generator.random((down + 2, across + 2), np.float32)
        total += np.float32(roughness**octave) * _enlarge(_enlarge(values, down, rows).T, across, columns).T
    total -= total.min()
    total /= total.max()
    return total


def _enlarge(grid: Floats, cells: int, size: int) -> Floats:
    """Interpolates the first `cells` rows of grid [> cells, n] linearly to `size` rows: [size, n]."""
    at = np.linspace(0, cells, size, dtype=np.float32)
    row = at.astype(np.intp)
    part = (at - row.astype(np.float32))[:, None]
    return grid[row] + part * (grid[row + 1] - grid[row])


def _sample(grid: Floats, x: Floats, y: Floats) -> Floats:
    """Bilinear values of grid [rows, columns, 3] at columns x and rows y [points], all inside: [points, 3]."""
    column, row = x.astype(np.intp), y.astype(np.intp)
    part_x, part_y = (x - column.astype(np.float32))[:, None], (y - row.astype(np.float32))[:, None]
    upper = grid[row, column] + part_x * (grid[row, column + 1] - grid[row, column])
    lower = grid[row + 1, column] + part_x * (grid[row + 1, column + 1] - grid[row + 1, column])
    return upper + part_y * (lower - upper)


def _clip_range(center: float, reach: float, size: int) -> tuple[int, int]:
    """The range of pixels within `reach` of the center, clipped to the image."""
    return max(0, math.floor(center - reach)), min(size, math.ceil(center + reach) + 1)
