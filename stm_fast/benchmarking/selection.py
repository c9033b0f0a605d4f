"""What a run times, and for how long."""

from dataclasses import dataclass

import torch

from stm_fast.benchmarking.shapes import Shape
from stm_fast.benchmarking.workload import Workload, dtype_name


@dataclass(frozen=True)
class Selection:
    """What is timed, and for how long.

    seconds:  spent on the rounds of one shape and dtype, unless `rounds` of them take longer
    rounds:   at the least
    deadline: seconds after which no further route is started; what is left is recorded as refused
    memory:   whether the extra memory is measured
    product:  rows of the matrices of torch.mm; by default as many as keep the device busy
    """

    shapes: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]
    passes: tuple[str, ...]
    routes: tuple[str, ...]
    device: str
    seconds: float = 10.0
    rounds: int = 5
    deadline: float | None = None
    memory: bool = True
    product: int | None = None

    def workloads(self, shape: Shape, dtype: torch.dtype) -> list[Workload]:
        """The passes over one shape."""
        return [Workload(shape, dtype, pass_name, self.device) for pass_name in self.passes]

    def describe(self) -> dict[str, object]:
        """The settings of a run, for its record."""
        return vars(self) | {
            "shapes": [shape.name for shape in self.shapes],
            "dtypes": [dtype_name(dtype) for dtype in self.dtypes],
        }
