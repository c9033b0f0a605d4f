"""Test cases, random inputs and the float64 criterion of the memory read, for tests and benchmarks."""

from stm_fast.testing.cases import CASES, ReadCase, Tensors, make_tensors, options
from stm_fast.testing.criterion import assert_no_worse_than_eager
from stm_fast.testing.runs import check_case

__all__ = ["CASES", "ReadCase", "Tensors", "assert_no_worse_than_eager", "check_case", "make_tensors", "options"]
