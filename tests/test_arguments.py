"""Each wrong call of the memory read, with its message: the argument, what was found, what was expected."""

import pytest
import torch

from stm_fast import memory_read, merge_reads
from stm_fast.ops import backends

BACKENDS = f'"auto" or one of {", ".join(backends.NAMES)}'
LISTED = "torch.float16, torch.bfloat16, torch.float32, torch.float64"
SHAPES = "query (2, 5, 4), key {key}, value {value}"


def arguments(**changed):
    default = {"query": torch.zeros(2, 5, 4), "key": torch.zeros(2, 7, 4), "value": torch.zeros(2, 7, 3)}
    return default | changed


def l2(**changed):
    return arguments(similarity="l2", **changed)


WRONG_CALLS = [
    (arguments(query=[1.0]), TypeError, "query: found list, expected a tensor"),
    (arguments(key=None), TypeError, "key: found NoneType, expected a tensor"),
    (l2(shrinkage=2.0), TypeError, "shrinkage: found float, expected a tensor or None"),
    (l2(selection=[1]), TypeError, "selection: found list, expected a tensor or None"),
    (arguments(lengths=[7, 3]), TypeError, "lengths: found list, expected a tensor or None"),
    (arguments(query=torch.zeros(5, 4)), ValueError, "query: found shape (5, 4), expected 3 dimensions"),
    (arguments(value=torch.zeros(2, 3, 7, 1)), ValueError, "value: found shape (2, 3, 7, 1), expected 3 dimensions"),
    (arguments(query=torch.zeros(2, 5, 4).int()), TypeError, f"query: found torch.int32, expected one of {LISTED}"),
    (arguments(key=torch.zeros(2, 7, 4).cfloat()), TypeError, f"key: found torch.complex64, expected one of {LISTED}"),
    (
        arguments(key=torch.zeros(2, 7, 4).half()),
        TypeError,
        "key: found torch.float16, expected torch.float32 as query has",
    ),
    (
        arguments(value=torch.zeros(2, 7, 3).double()),
        TypeError,
        "value: found torch.float64, expected torch.float32 as query has",
    ),
    (
        arguments(key=torch.zeros(2, 7, 4, device="meta")),
        ValueError,
        "key: found on meta, expected on cpu as query is",
    ),
    (
        arguments(key=torch.zeros(2, 7, 6)),
        ValueError,
        f"key: width differs from query's or is 0: {SHAPES.format(key=(2, 7, 6), value=(2, 7, 3))}, "
        "expected [B, M, Ck] and [B, N, Ck]",
    ),
    (
        arguments(query=torch.zeros(2, 5, 0), key=torch.zeros(2, 7, 0)),
        ValueError,
        "key: width differs from query's or is 0: query (2, 5, 0), key (2, 7, 0), value (2, 7, 3), "
        "expected [B, M, Ck] and [B, N, Ck]",
    ),
    (
        arguments(value=torch.zeros(2, 8, 3)),
        ValueError,
        f"value: number of rows differs from key's: {SHAPES.format(key=(2, 7, 4), value=(2, 8, 3))}, "
        "expected [B, N, Ck] and [B, N, Cv]",
    ),
    (
        arguments(query=torch.zeros(3, 5, 4)),
        ValueError,
        "query: batch is neither 1 nor value's: query (3, 5, 4), key (2, 7, 4), value (2, 7, 3)",
    ),
    (
        arguments(value=torch.zeros(1, 7, 3)),
        ValueError,
        f"query: batch is neither 1 nor value's: {SHAPES.format(key=(2, 7, 4), value=(1, 7, 3))}",
    ),
    (arguments(scale="big"), TypeError, "scale: found str, expected a number or None"),
    (arguments(similarity="cosine"), ValueError, 'similarity: found \'cosine\', expected "dot" or "l2"'),
    (
        arguments(shrinkage=torch.ones(2, 7)),
        ValueError,
        'shrinkage: given with similarity "dot", expected with "l2" only',
    ),
    (
        arguments(selection=torch.ones(2, 5, 4)),
        ValueError,
        'selection: given with similarity "dot", expected with "l2" only',
    ),
    (l2(shrinkage=torch.ones(2, 8)), ValueError, "shrinkage: found shape (2, 8), expected (1, 7) or (2, 7)"),
    (l2(shrinkage=torch.ones(2, 7).int()), TypeError, "shrinkage: found torch.int32, expected a floating point dtype"),
    (
        l2(shrinkage=torch.ones(2, 7, device="meta")),
        ValueError,
        "shrinkage: found on meta, expected on cpu as query is",
    ),
    (l2(selection=torch.ones(1, 5, 4)), ValueError, "selection: found shape (1, 5, 4), expected (2, 5, 4)"),
    (arguments(lengths=torch.ones(2)), TypeError, "lengths: found torch.float32, expected torch.int32 or torch.int64"),
    (
        arguments(lengths=torch.ones(2, dtype=torch.int64, device="meta")),
        ValueError,
        "lengths: found on meta, expected on cpu as query is",
    ),
    (arguments(lengths=torch.tensor([1])), ValueError, "lengths: found shape (1,), expected (2,) for the batch"),
    (arguments(lengths=torch.tensor([7, -1])), ValueError, "lengths: found [7, -1], expected values from 0 to 7"),
    (arguments(lengths=torch.tensor([8, 1])), ValueError, "lengths: found [8, 1], expected values from 0 to 7"),
    (arguments(top_k=0), ValueError, "top_k: found 0, expected at least 1"),
    (arguments(top_k=2.0), TypeError, "top_k: found float, expected an integer or None"),
    (arguments(top_k=True), TypeError, "top_k: found bool, expected an integer or None"),
    (arguments(backend="cuda"), ValueError, f"backend: found 'cuda', expected {BACKENDS}"),
    (arguments(backend=None), ValueError, f"backend: found None, expected {BACKENDS}"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG_CALLS, ids=[message[:60] for *_, message in WRONG_CALLS])
def test_a_wrong_call_says_what_is_wrong_before_any_kernel_runs(monkeypatch, call, error, message):
    def refuse(*_):
        pytest.fail("a backend ran")

    monkeypatch.setattr(backends, "BACKENDS", tuple(backend._replace(read=refuse) for backend in backends.BACKENDS))
    with pytest.raises(error) as raised:
        memory_read(**call)
    assert str(raised.value) == message


def test_the_same_errors_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match=r"query: found torch\.int32"):
        memory_read(**arguments(query=torch.zeros(2, 5, 4).int()))


OUT, LSE = torch.zeros(2, 5, 3), torch.zeros(2, 5)
WRONG_MERGES = [
    ([], [], ValueError, "outs, lses: found 0 and 0, expected as many of each, at least one"),
    ([OUT], [LSE, LSE], ValueError, "outs, lses: found 1 and 2, expected as many of each, at least one"),
    (
        [OUT, OUT[:, :4]],
        [LSE, LSE],
        ValueError,
        "outs, lses: found (2, 4, 3) and (2, 5), expected [B, M, Cv] and [B, M] alike in every part",
    ),
    (
        [OUT],
        [LSE[0]],
        ValueError,
        "outs, lses: found (2, 5, 3) and (5,), expected [B, M, Cv] and [B, M] alike in every part",
    ),
    (
        [OUT[0]],
        [LSE],
        ValueError,
        "outs, lses: found (5, 3) and (2, 5), expected [B, M, Cv] and [B, M] alike in every part",
    ),
    (
        [OUT, OUT.half()],
        [LSE, LSE],
        TypeError,
        "outs, lses: found torch.float16 and torch.float32, expected one dtype of outs, and lses as memory_read gives",
    ),
    (
        [OUT],
        [LSE.double()],
        TypeError,
        "outs, lses: found torch.float32 and torch.float64, expected one dtype of outs, and lses as memory_read gives",
    ),
]


@pytest.mark.parametrize(("outs", "lses", "error", "message"), WRONG_MERGES, ids=[row[-1][:60] for row in WRONG_MERGES])
def test_a_wrong_merge_says_what_is_wrong(outs, lses, error, message):
    with pytest.raises(error) as raised:
        merge_reads(outs, lses)
    assert str(raised.value) == message
