"""Times the memory read beside every route a PyTorch user has today."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.benchmarking.records import Record, Row, read_record, write_record
    from stm_fast.benchmarking.routes import ROUTES
    from stm_fast.benchmarking.runner import run_benchmark
    from stm_fast.benchmarking.selection import Selection
    from stm_fast.benchmarking.shapes import Shape, grid, parse_shape
    from stm_fast.benchmarking.workload import DTYPES, PASSES, Workload
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "stm_fast.benchmarking.records": ("Record", "Row", "read_record", "write_record"),
            "stm_fast.benchmarking.routes": ("ROUTES",),
            "stm_fast.benchmarking.runner": ("run_benchmark",),
            "stm_fast.benchmarking.selection": ("Selection",),
            "stm_fast.benchmarking.shapes": ("Shape", "grid", "parse_shape"),
            "stm_fast.benchmarking.workload": ("DTYPES", "PASSES", "Workload"),
        },
    )

__all__ = [
    "DTYPES",
    "PASSES",
    "ROUTES",
    "Record",
    "Row",
    "Selection",
    "Shape",
    "Workload",
    "grid",
    "parse_shape",
    "read_record",
    "run_benchmark",
    "write_record",
]
