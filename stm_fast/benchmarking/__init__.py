"""Times the memory read beside every route a PyTorch user has today."""

from stm_fast.benchmarking.records import Record, Row, read_record, write_record
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.runner import run_benchmark
from stm_fast.benchmarking.selection import Selection
from stm_fast.benchmarking.workload import DTYPES, PASSES, Shape, Workload, grid, parse_shape

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
