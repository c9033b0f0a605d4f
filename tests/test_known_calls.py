"""Calls of memory_read() that were seen before: they give what they gave, and no call is taken for another.

The Triton engine runs on a GPU or, in a process of its own, under the interpreter.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stm_fast.kernels import plans, tuned
from stm_fast.kernels.plans import Plans, forget_plans
from stm_fast.ops import backends, memory_read
from stm_fast.testing import CASES, ReadCase, make_tensors
from stm_fast.testing.cases import options

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
TRITON = pytest.param("triton", marks=() if INTERPRETED else ON_GPU)
BACKENDS = [TRITON] if INTERPRETED else ["cpp", "reference", TRITON]
SMALL = ReadCase(queries=5, rows=9, key_dim=16, value_dim=16)
EVERYTHING = replace(SMALL, similarity="l2", shrinkage=True, selection=True, lengths=(9, 4), return_usage=True)
# few enough for the interpreter: in one part, in several, copied, with options, and all that looks at each call
FEW = [SMALL, replace(SMALL, rows=300), replace(SMALL, channels_first=True), EVERYTHING, replace(SMALL, top_k=3)]
READS = [
    *([] if INTERPRETED else product(CASES, ["cpp", "reference"])),
    *(pytest.param(case, *TRITON.values, marks=TRITON.marks) for case in FEW),
]


class Chosen:
    """Counts the calls for which a backend is chosen; known calls skip that."""

    def __init__(self) -> None:
        self.count = 0
        self._choose = backends.choose

    def __call__(self, *arguments: Any) -> backends.Backend:
        self.count += 1
        return self._choose(*arguments)

    def of(self, call: Callable[[], Any]) -> int:
        before = self.count
        call()
        return self.count - before


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Chosen:
    counter = Chosen()
    monkeypatch.setattr(backends, "choose", counter)
    return counter


def device_of(backend: str) -> str:
    return "cuda" if backend == "triton" and not INTERPRETED else "cpu"


def call_of(case: ReadCase, backend: str = "reference", seed: int = 0, **changed: Any) -> Callable[[], Any]:
    """A call of memory_read() for a case, with some arguments changed."""
    device = device_of(backend)
    query, key, value, shrinkage, selection = make_tensors(case, torch.float32, device, seed=seed)
    named = {"shrinkage": shrinkage, "selection": selection, "return_lse": True, "return_usage": case.return_usage}
    arguments = {"query": query, "key": key, "value": value, **named, **options(case, device), "backend": backend}
    return lambda: memory_read(**(arguments | changed))


def assert_bit_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("case", "backend"), READS, ids=str)
def test_a_known_call_reads_other_numbers_as_a_new_one_does(case: ReadCase, backend: str, chosen: Chosen) -> None:
    looked_at_each_time = backend == "triton" and case.top_k is not None and case.top_k < case.rows
    assert chosen.of(call_of(case, backend)) == 1
    again = call_of(case, backend, seed=1)
    found = again()
    assert chosen.count == 1 + looked_at_each_time
    forget_plans()
    assert_bit_equal(found, again())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_a_known_call_that_asks_for_no_lse_reads_the_same(case: ReadCase, backend: str) -> None:
    call_of(case, backend, return_lse=False)()
    found = call_of(case, backend, seed=1, return_lse=False)()
    forget_plans()
    out, _lse, *usage = call_of(case, backend, seed=1)()
    assert_bit_equal(found, (out, *usage) if usage else out)


def shifted(tensor: Tensor) -> Tensor:
    """The same numbers one element behind an aligned address."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "strides": lambda given: {"key": given["key"].mT.contiguous().mT},
    "strides of the batch": lambda given: {"key": given["key"][:1].expand_as(given["key"])},
    "alignment": lambda given: {"value": shifted(given["value"])},
    "alignment of an option": lambda given: {"shrinkage": shifted(given["shrinkage"])},
    "rows": lambda given: {name: given[name][:, :7] for name in ("key", "value", "shrinkage")},
    "queries": lambda given: {name: given[name][:, :3] for name in ("query", "selection")},
    "shared query": lambda given: {name: given[name][:1] for name in ("query", "selection")},
    "dtype": lambda given: {name: given[name].half() for name in ("query", "key", "value")},
    "dtype of an option": lambda given: {"shrinkage": given["shrinkage"].double()},
    "scale": lambda given: {"scale": 0.5},
    "similarity": lambda given: {"similarity": "dot", "shrinkage": None, "selection": None},
    "no shrinkage": lambda given: {"shrinkage": None},
    "no selection": lambda given: {"selection": None},
    "no lengths": lambda given: {"lengths": None},
    "query_norm": lambda given: {"query_norm": False},
    "top_k": lambda given: {"top_k": 2},
    "usage": lambda given: {"return_usage": False},
    "lse": lambda given: {"return_lse": False},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_no_call_is_taken_for_one_that_differs(change: str, backend: str, chosen: Chosen) -> None:
    device = device_of(backend)
    query, key, value, shrinkage, selection = make_tensors(EVERYTHING, torch.float32, device)
    lengths = torch.tensor([7, 4], dtype=torch.int32, device=device)
    given = {"query": query, "key": key, "value": value, "shrinkage": shrinkage, "selection": selection}
    given |= {"lengths": lengths, "similarity": "l2", "return_lse": True, "return_usage": True, "backend": backend}
    changed = given | CHANGES[change](given)
    assert chosen.of(lambda: memory_read(**given)) == 1
    assert chosen.of(lambda: memory_read(**given)) == 0
    found = memory_read(**changed)
    assert chosen.count == 2
    forget_plans()
    assert_bit_equal(found, memory_read(**changed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_with_the_negative_bit_are_resolved(backend: str) -> None:
    query, key, value = make_tensors(SMALL, torch.float32, device_of(backend))[:3]
    whole = torch.complex(query, -query)
    negated = whole.conj().imag
    assert negated.is_neg()
    for given in (whole.imag, negated, negated):  # strides and alignment are the same
        found = memory_read(given, key, value, backend=backend)
        assert_bit_equal(found, memory_read(given.clone(), key, value, backend=backend))


def test_numbers_of_numpy_are_known_as_others_are(chosen: Chosen) -> None:
    call = call_of(SMALL, scale=np.float32(0.25), top_k=np.int64(3))
    assert chosen.of(call) == 1
    assert chosen.of(call) == 0
    assert chosen.of(call_of(SMALL, scale=0.25, top_k=3)) == 0
    assert chosen.of(call_of(SMALL, scale=0.25, top_k=2)) == 1


def test_lengths_are_looked_at_each_time() -> None:
    query, key, value = make_tensors(SMALL, torch.float32, "cpu")[:3]
    for counts in ((9, 4), (0, 9), (2, 2)):
        lengths = torch.tensor(counts, dtype=torch.int32)
        found = memory_read(query, key, value, lengths=lengths)
        assert isinstance(found, Tensor)
        for index, count in enumerate(counts):
            one = (tensor[index : index + 1] for tensor in (query, key[:, :count], value[:, :count]))
            torch.testing.assert_close(found[index : index + 1], memory_read(*one))
    with pytest.raises(ValueError, match="lengths: found"):
        memory_read(query, key, value, lengths=torch.tensor([10, 4], dtype=torch.int32))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"top_k": True}, TypeError),
        ({"top_k": 1.0}, TypeError),
        ({"scale": True}, TypeError),
        ({"scale": np.float32(np.nan)}, ValueError),
        ({"scale": [0.25]}, TypeError),
        ({"similarity": ["dot"]}, ValueError),
        ({"backend": ["reference"]}, ValueError),
        ({"query": None}, TypeError),
        ({"key": [[1.0]]}, TypeError),
        ({"value": torch.zeros(2, 8, 16)}, ValueError),
        ({"value": torch.zeros(2, 9, 16, dtype=torch.float64)}, TypeError),
        ({"value": torch.zeros(2, 9, 16, device="meta")}, ValueError),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_after_right_ones(wrong: dict[str, Any], error: type[Exception]) -> None:
    query, key, value = make_tensors(SMALL, torch.float32, "cpu")[:3]
    right = {"query": query, "key": key, "value": value, "scale": 0.25, "top_k": 1, "backend": "reference"}
    memory_read(**right)
    memory_read(**right)
    with pytest.raises(error, match=f"{next(iter(wrong))}: "):
        memory_read(**(right | wrong))


def test_a_table_of_tiles_is_asked_for_each_time(chosen: Chosen) -> None:
    call = call_of(SMALL)
    call()
    with tuned.using({}):
        assert chosen.of(call) == 1
        assert chosen.of(call) == 0
    with tuned.using({}):
        assert chosen.of(call) == 1
    assert chosen.of(call) == 0


def test_the_precision_of_products_is_asked_for_each_time(chosen: Chosen) -> None:
    call, matmul = call_of(SMALL), torch.backends.cuda.matmul
    call()
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        assert chosen.of(call) == 1
    finally:
        matmul.fp32_precision = before
    assert chosen.of(call) == 0


def test_autocast_is_asked_for_each_time(chosen: Chosen) -> None:
    floats = make_tensors(SMALL, torch.float32, "cpu")[:3]
    halves = [tensor.bfloat16() for tensor in floats]
    memory_read(*floats)
    memory_read(*halves)
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen.of(lambda: memory_read(*floats)) == 1
        assert memory_read(*floats).dtype == torch.bfloat16
        expected = memory_read(*halves)
        assert chosen.of(lambda: memory_read(*halves)) == 0
        assert_bit_equal(memory_read(*halves), expected)


def test_gradients_flow_after_a_call_without_any(chosen: Chosen) -> None:
    query, key, value = make_tensors(SMALL, torch.float32, "cpu")[:3]
    memory_read(query, key, value)
    query.requires_grad_()
    out = memory_read(query, key, value)
    assert isinstance(out, Tensor)
    out.sum().backward()
    assert query.grad is not None
    with torch.no_grad():
        assert chosen.of(lambda: memory_read(query, key, value)) == 0


def test_the_logged_choice_is_the_one_made(caplog: pytest.LogCaptureFixture) -> None:
    call = call_of(SMALL)
    call()
    with caplog.at_level(logging.DEBUG, logger="stm_fast"):
        call()
    assert "memory_read: reference" in caplog.messages


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of every check of a shape
def test_modes_and_tracers_see_the_operator() -> None:
    query, key, value = make_tensors(SMALL, torch.float32, "cpu")[:3]
    memory_read(query, key, value, backend="cpp")
    with Operators() as operators:
        memory_read(query, key, value, backend="cpp")
    assert "stm_fast::memory_read_cpp" in operators.names
    traced = torch.jit.trace(lambda *tensors: memory_read(*tensors, backend="cpp"), (query, key, value))
    assert "stm_fast::memory_read_cpp" in str(traced.graph)


def test_a_transform_sees_what_is_read() -> None:
    query, key, value = make_tensors(SMALL, torch.float32, "cpu")[:3]
    expected = memory_read(query, key, value)
    mapped = torch.func.vmap(lambda *tensors: memory_read(*(tensor[None] for tensor in tensors))[0])(query, key, value)
    torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_that_was_first_seen_in_inference_mode_gives_plain_tensors_outside(backend: str) -> None:
    call = call_of(SMALL, backend)
    with torch.inference_mode():
        assert all(tensor.is_inference() for tensor in call())
    out, _ = call()
    assert not out.is_inference()
    weight = torch.ones_like(out, requires_grad=True)
    (out * weight).sum().backward()  # saves `out`, which inference tensors refuse


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensor_of_a_call_is_kept(backend: str) -> None:
    tensors = make_tensors(EVERYTHING, torch.float32, device_of(backend))
    kept = [weakref.ref(tensor) for tensor in tensors]
    query, key, value, shrinkage, selection = tensors
    result = memory_read(query, key, value, similarity="l2", shrinkage=shrinkage, selection=selection, backend=backend)
    kept.append(weakref.ref(result))
    del tensors, query, key, value, shrinkage, selection, result
    assert [reference() for reference in kept] == [None] * 6


def test_old_plans_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST_PLANS", 3)
    kept: Plans[int] = Plans()
    for number in range(10):
        assert kept.keep(number, number) == number
    assert len(kept) == 3
    assert [kept.get(number) for number in range(10)] == [None] * 7 + [7, 8, 9]
    forget_plans()
    assert len(kept) == 0


# Triton's interpreter runs in one thread
@pytest.mark.parametrize("backend", ["reference"] if INTERPRETED else BACKENDS)
def test_threads_share_what_is_known(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST_PLANS", 2)  # so few that they are made and forgotten all the time
    calls = [call_of(replace(SMALL, rows=rows), backend) for rows in (5, 9, 12, 30)]
    expected = [call() for call in calls]
    wrong: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for turn in range(40):
                index = (start + turn) % len(calls)
                assert_bit_equal(calls[index](), expected[index])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
