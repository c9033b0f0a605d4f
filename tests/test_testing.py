"""The criterion itself: it accepts rounding and catches every planted fault."""

import math

import pytest
import torch

from stm_fast.ops import backends, reference
from stm_fast.ops.backends import Backend
from stm_fast.testing import CASES, ReadCase, check_case, make_tensors
from stm_fast.testing.criterion import allowance, assert_no_worse_than_eager, distance
from stm_fast.testing.runs import leaves, random_upstream, read_outputs, with_gradients

CASE = ReadCase(batch=1, queries=180, return_usage=True)


def scaled(tensor, factor, at=...):
    factors = torch.ones_like(tensor)
    factors[at] = factor
    return tensor * factors


def largest_row(out):
    return out[0].detach().abs().amax(-1).argmax()


def with_value(tensor, value):
    return tensor.masked_fill(torch.arange(tensor.numel()).reshape(tensor.shape) == 5, value)


def gradient_scaled(tensor, factor, at=...):
    """The same numbers, whose gradient is `factor` times what it should be."""
    factors = torch.ones_like(tensor)
    factors[at] = factor
    return tensor.detach() + factors * (tensor - tensor.detach())


def result(change):
    return lambda inputs: change(reference.read(inputs))


LARGE_FAULTS = {
    "one row of 180 is off by 5 %": result(lambda r: r._replace(out=scaled(r.out, 1.05, (0, largest_row(r.out))))),
    "one NaN": result(lambda r: r._replace(out=with_value(r.out, math.nan))),
    "one infinity": result(lambda r: r._replace(out=with_value(r.out, math.inf))),
    "one lse of -inf": result(lambda r: r._replace(lse=with_value(r.lse, -math.inf))),
    "lse in base 2": result(lambda r: r._replace(lse=r.lse / math.log(2))),
    "lse without the largest score": result(lambda r: r._replace(lse=torch.zeros_like(r.lse))),
    "the last memory row is missing": lambda inputs: reference.read(
        inputs._replace(lengths=torch.tensor([inputs.key.shape[1] - 1]))
    ),
    "scale for another width": lambda inputs: reference.read(inputs._replace(scale=inputs.scale * 1.1)),
}
SMALL_FAULTS = {
    "usage lacks one query": result(lambda r: r._replace(usage=r.usage * 179 / 180)),
    "out is off by a thousandth": result(lambda r: r._replace(out=r.out * 1.001)),
    "scores in bfloat16": lambda inputs: reference.read(
        inputs._replace(query=inputs.query.bfloat16().to(inputs.query.dtype))
    ),
}
GRADIENT_FAULTS = {
    "lse has no gradient": result(lambda r: r._replace(lse=gradient_scaled(r.lse, 0))),
    "one row of out has no gradient": result(lambda r: r._replace(out=gradient_scaled(r.out, 0, (0, 77)))),
    "key's gradient is 5 % too small": lambda inputs: reference.read(
        inputs._replace(key=gradient_scaled(inputs.key, 0.95))
    ),
    "one row of value has no gradient": lambda inputs: reference.read(
        inputs._replace(value=gradient_scaled(inputs.value, 0, (0, 3)))
    ),
}


@pytest.fixture
def install(monkeypatch):
    """Registers a function from inputs to results as the backend "planted"."""

    def install(read):
        planted = Backend("planted", list, lambda _inputs: [], read)
        monkeypatch.setattr(backends, "BACKENDS", (planted, *backends.BACKENDS))

    return install


def test_the_unchanged_reference_passes_as_a_planted_backend(install):
    install(reference.read)
    check_case(CASE, torch.float32, "planted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", LARGE_FAULTS)
def test_a_fault_is_caught_in_every_dtype(install, fault, dtype):
    install(LARGE_FAULTS[fault])
    with pytest.raises(AssertionError, match=r"error .* allowed"):
        check_case(CASE, dtype, "planted", gradients=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fault", SMALL_FAULTS)
def test_a_small_fault_is_caught_in_precise_dtypes(install, fault, dtype):
    install(SMALL_FAULTS[fault])
    with pytest.raises(AssertionError, match=r"error .* allowed"):
        check_case(CASE, dtype, "planted", gradients=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", GRADIENT_FAULTS)
def test_a_fault_of_a_gradient_is_caught(install, fault, dtype):
    install(GRADIENT_FAULTS[fault])
    check_case(CASE, dtype, "planted", gradients=False)  # the outputs do not show it
    with pytest.raises(AssertionError, match=r"grad_.*error .* allowed"):
        check_case(CASE, dtype, "planted")


def test_a_wrong_shape_is_caught(install):
    install(result(lambda r: r._replace(lse=r.lse[:, :-1])))
    with pytest.raises(AssertionError, match="lse: shape"):
        check_case(CASE, torch.float32, "planted", gradients=False)


def test_a_read_into_spare_rows_is_caught(install):
    install(lambda inputs: reference.read(inputs._replace(lengths=inputs.lengths + 1)))
    with pytest.raises(AssertionError, match="error inf"):
        check_case(ReadCase(lengths=(96, 40)), torch.float32, "planted", gradients=False)


def test_an_exact_gradient_of_zero_may_be_off_by_the_roundings_that_cancel(install):
    # with one row the softmax is 1 for any key: dP - delta is a difference of equal sums
    one_row = ReadCase(batch=1, queries=4, rows=1)
    exact = leaves(make_tensors(one_row, torch.float64), torch.float64, True)
    outputs = read_outputs(one_row, exact, "reference")
    upstream = random_upstream(outputs) | {"lse": torch.zeros_like(outputs["lse"])}
    assert with_gradients(outputs, exact, upstream)["grad_key"].abs().max() < 1e-15

    def noisy(size):
        # a gradient of the score of `size` where it should be 0
        def read(inputs):
            r = reference.read(inputs)
            score = (inputs.query @ inputs.key.mT)[..., 0]
            return r._replace(lse=r.lse + size * (score - score.detach()))

        return read

    install(noisy(1e-6))
    check_case(one_row, torch.float32, "planted")
    install(noisy(1e-3))
    with pytest.raises(AssertionError, match="grad_"):
        check_case(one_row, torch.float32, "planted")


def test_eager_that_overflows_excuses_nothing():
    exact = {"out": torch.ones(3, dtype=torch.float64)}
    overflowed = {"out": torch.tensor([1.0, math.inf, 1.0])}
    with pytest.raises(AssertionError, match="out: error"):
        assert_no_worse_than_eager({"out": torch.tensor([1.0, 1.1, 1.0])}, overflowed, exact, exact)
    assert_no_worse_than_eager({"out": torch.ones(3)}, overflowed, exact, exact)


def test_distance_counts_infinities_only_where_they_differ():
    infinite = torch.tensor([-math.inf, 0.0])
    assert distance(infinite, infinite.double()) == 0
    assert distance(infinite, torch.zeros(2).double()) == math.inf
    assert distance(torch.zeros(2), infinite.double()) == math.inf
    assert distance(torch.tensor([math.nan, 0.0]), infinite.double()) == math.inf
    assert distance(torch.zeros(0), torch.zeros(0).double()) == 0


def test_the_allowance_is_twice_the_larger_measure_plus_two_roundings():
    exact = torch.tensor([4.0, 0.0], dtype=torch.float64)
    eager, rounded = torch.tensor([4.5, 0.0]), torch.tensor([4.0, 0.25])
    two_roundings = torch.finfo(torch.float32).eps * 4
    assert allowance(torch.float32, eager, rounded, exact) == 2 * 0.5 + two_roundings
    assert allowance(torch.float32, exact, rounded, exact) == 2 * 0.25 + two_roundings


def test_cases_have_distinct_names():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)
    assert str(ReadCase()) == "default"
    assert str(ReadCase(rows=3, top_k=2)) == "rows=3-top_k=2"


def test_exactly_the_rows_that_do_not_count_are_poisoned():
    case = ReadCase(lengths=(3, 90), shared_key=True, similarity="l2", shrinkage=True)
    query, key, value, shrinkage, _ = make_tensors(case, torch.float32)
    assert query.isfinite().all()
    assert key[0].isnan().any(-1).nonzero().flatten().tolist() == list(range(90, 97))
    assert shrinkage[0].isnan().nonzero().flatten().tolist() == list(range(90, 97))
    assert value[0].isnan().all(-1).nonzero().flatten().tolist() == list(range(3, 97))
    assert value[1].isnan().all(-1).nonzero().flatten().tolist() == list(range(90, 97))
