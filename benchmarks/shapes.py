"""The memory reads that are timed: resolution x memory frames x objects, at the published widths."""

from dataclasses import dataclass

KEY_DIM, VALUE_DIM = 128, 512
# pixels of a frame at stride 16, after padding to a multiple of 16
PIXELS = {"480p": 30 * 54, "720p": 45 * 80, "1080p": 68 * 120}


@dataclass(frozen=True)
class Shape:
    resolution: str
    frames: int  # in the memory
    objects: int

    @property
    def queries(self) -> int:
        return PIXELS[self.resolution]

    @property
    def rows(self) -> int:
        return self.frames * self.queries

    @property
    def flop(self) -> int:
        """Of the two matrix products; the softmax is not counted."""
        return 2 * self.queries * self.rows * (KEY_DIM + VALUE_DIM) * self.objects

    @property
    def affinity_bytes(self) -> int:
        """Of one float32 affinity, which the published read makes and stm_fast does not."""
        return 4 * self.queries * self.rows * self.objects

    def __str__(self) -> str:
        return f"{self.resolution}-T{self.frames}-objects{self.objects}"


# what a CPU reads in seconds, and what a GPU is for
CPU_SHAPES = [Shape("480p", 1, 1), Shape("480p", 5, 1), Shape("480p", 5, 3)]
GPU_SHAPES = [
    Shape("480p", 1, 1),
    Shape("480p", 5, 1),
    Shape("480p", 20, 1),
    Shape("480p", 20, 3),
    Shape("480p", 100, 1),
    Shape("1080p", 20, 1),
]
