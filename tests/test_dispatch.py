"""The choice of a backend: by preference, logged, and with the reasons of every refusal."""

import logging

import pytest
import torch

from stm_fast import memory_read
from stm_fast.ops import backends, triton_ops
from stm_fast.ops.backends import Backend
from stm_fast.ops.inputs import ReadResult
from stm_fast.testing import ReadCase, make_tensors
from stm_fast.testing.cases import read_inputs


def read():
    return memory_read(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4, 5), backend="auto")


def fake(name, absent=(), refused=()):
    def answer(inputs):
        return ReadResult(torch.full((), ord(name[0])), torch.zeros(()), None)

    return Backend(name, lambda: list(absent), lambda _inputs: list(refused), answer)


@pytest.fixture
def install(monkeypatch):
    """Replaces the list of backends."""

    def replace(*chosen):
        monkeypatch.setattr(backends, "BACKENDS", chosen)

    return replace


def test_auto_takes_the_first_backend_that_can_run(install):
    install(fake("absent", absent=["no compiler"]), fake("refuses", refused=["too big"]), fake("works"), fake("later"))
    assert read() == ord("w")


def test_the_choice_and_every_refusal_are_logged(install, caplog):
    install(fake("absent", absent=["no compiler"]), fake("refuses", refused=["too big", "too odd"]), fake("works"))
    with caplog.at_level(logging.DEBUG, logger="stm_fast"):
        read()
    assert [record.getMessage() for record in caplog.records] == [
        "memory_read: not absent: no compiler",
        "memory_read: not refuses: too big; too odd",
        "memory_read: works",
    ]


def test_an_absent_backend_is_not_asked_what_it_supports(install):
    absent = fake("absent", absent=["no compiler"])
    install(absent._replace(unsupported_reasons=lambda _: pytest.fail("asked")), fake("works"))
    assert read() == ord("w")


def test_a_named_backend_is_logged_too(caplog):
    with caplog.at_level(logging.DEBUG, logger="stm_fast"):
        memory_read(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4, 5), backend="reference")
    assert [record.getMessage() for record in caplog.records] == ["memory_read: reference"]


def test_the_order_of_preference_ends_with_the_reference_which_runs_everything():
    assert [backend.name for backend in backends.BACKENDS] == ["triton", "cpp", "reference"]
    assert backends.BACKENDS[-1].absent_reasons() == []


def test_a_named_backend_that_refuses_gives_every_reason(install, monkeypatch):
    install(fake("odd", refused=["too big", "too odd"]))
    with pytest.raises(NotImplementedError) as raised:
        memory_read(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4, 5), backend="odd")
    assert str(raised.value) == "backend 'odd' cannot run this memory read: too big; too odd"


def test_a_named_backend_that_is_absent_says_why(install):
    install(fake("away", absent=["no compiler"]))
    with pytest.raises(NotImplementedError, match=r"^backend 'away' cannot run this memory read: no compiler$"):
        memory_read(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4, 5), backend="away")


def test_the_cpp_engine_is_chosen_for_every_option_if_it_is_built(caplog):
    cpp = next(backend for backend in backends.BACKENDS if backend.name == "cpp")
    if cpp.absent_reasons() or torch.cuda.is_available():
        pytest.skip("; ".join(cpp.absent_reasons()) or "a faster backend is available")
    query, key, value = torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4, 5)
    with caplog.at_level(logging.DEBUG, logger="stm_fast"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            memory_read(query.to(dtype), key.to(dtype), value.to(dtype))
        memory_read(query, key, value, top_k=2, lengths=torch.tensor([3]), return_usage=True)
        memory_read(query, key, value, similarity="l2", shrinkage=torch.ones(1, 4), selection=torch.ones(1, 2, 3))
    chosen = [record.getMessage() for record in caplog.records if " not " not in record.getMessage()]
    assert chosen == ["memory_read: cpp"] * 6


def test_triton_declines_a_similarity_that_its_kernels_lack(monkeypatch):
    similarity = pytest.importorskip("stm_fast.kernels.similarity")
    monkeypatch.setattr(similarity, "KINDS", (similarity.DOT,))
    monkeypatch.setattr(triton_ops, "device_reasons", lambda device: [])
    case = ReadCase(similarity="l2")
    inputs = read_inputs(case, make_tensors(case, torch.float32))
    assert triton_ops.unsupported_reasons(inputs) == ["it has no kernel for similarity 'l2'"]
    assert triton_ops.unsupported_reasons(inputs._replace(similarity=similarity.DOT)) == []
