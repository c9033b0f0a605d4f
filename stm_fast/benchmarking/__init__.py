"""Times the memory read beside every route a PyTorch user has today, and whole frames beside the published loop."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.benchmarking.reads import Selection, time_routes
    from stm_fast.benchmarking.records import FrameRow, ReadRow, Record, read_record
    from stm_fast.benchmarking.routes import ROUTES
    from stm_fast.benchmarking.shapes import FrameWorkload, Shape, grid, parse_shape, parse_workload
    from stm_fast.benchmarking.workload import DTYPES, PASSES, Workload
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "stm_fast.benchmarking.reads": ("Selection", "time_routes"),
            "stm_fast.benchmarking.records": ("FrameRow", "ReadRow", "Record", "read_record"),
            "stm_fast.benchmarking.routes": ("ROUTES",),
            "stm_fast.benchmarking.shapes": ("FrameWorkload", "Shape", "grid", "parse_shape", "parse_workload"),
            "stm_fast.benchmarking.workload": ("DTYPES", "PASSES", "Workload"),
        },
    )

__all__ = [
    "DTYPES",
    "PASSES",
    "ROUTES",
    "FrameRow",
    "FrameWorkload",
    "ReadRow",
    "Record",
    "Selection",
    "Shape",
    "Workload",
    "grid",
    "parse_shape",
    "parse_workload",
    "read_record",
    "time_routes",
]
