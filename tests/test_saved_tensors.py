"""Gradients with saved tensors packed, moved or recomputed: the same bits as without."""

import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from saved_tensors import (
    READ_OPERATORS,
    WAYS,
    Function,
    Way,
    assert_every_way_is_the_same,
    assert_same,
    gradients,
    plainly,
    read_of,
    within,
)
from stm_fast import MemoryRead, memory_read, merge_reads
from stm_fast.config import MemoryConfig
from stm_fast.memory.bank import MemoryBank
from stm_fast.ops import reference
from stm_fast.ops.adapters import (
    AOTLongTermAttention,
    MiVOSMemoryReader,
    STCNMemoryReader,
    get_affinity,
    readout,
    stcn_read,
    xmem_read,
)
from stm_fast.ops.backends import BACKENDS
from stm_fast.ops.quantized import memory_read_quantized, quantize_memory
from stm_fast.testing import CASES, ReadCase, Tensors, make_tensors
from stm_fast.testing.quantized import soft_memory
from stm_fast.testing.runs import leaves, read_outputs
from stm_fast.training.building import build_clip_loss
from stm_fast.training.config import Loss
from training_runs import SMALL_CONFIG

torch.set_num_threads(1)

DEVICE = {"triton": "cuda"}  # of an engine; "cpu" for the others
ENGINES = [
    pytest.param(backend.name, marks=[pytest.mark.gpu] if backend.name in DEVICE else [])
    for backend in BACKENDS
    if backend.name != "reference" and not backend.absent_reasons()
]
BLOCKS = "reference in blocks"
with_every_backend = pytest.mark.parametrize("backend", [*ENGINES, "reference"])

EVERYTHING = ReadCase(similarity="l2", shrinkage=True, selection=True, lengths=(97, 40), return_usage=True)
OPTIONS = ("similarity", "shrinkage", "selection", "query_norm", "top_k", "return_usage")
VARIANTS = [
    # every set of options in the default shape, and all options at once in others
    *(case for case in CASES if case == ReadCase(**{name: getattr(case, name) for name in OPTIONS})),
    EVERYTHING,
    replace(EVERYTHING, lengths=(0, 96), top_k=7, channels_first=True),
    replace(EVERYTHING, shared_query=True, shared_key=True),
]
CASES_AND_DTYPES = [
    *((case, torch.float32) for case in VARIANTS),
    *((case, torch.bfloat16) for case in (ReadCase(), EVERYTHING, replace(EVERYTHING, top_k=7))),
]


@pytest.fixture(params=[*ENGINES, "reference", BLOCKS])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine, or the reference with its affinity whole or in two blocks of queries."""
    if request.param != BLOCKS:
        return request.param
    monkeypatch.setattr(reference, "EAGER_AFFINITY_LIMIT", 2 * 97 * 17)
    return "reference"


def inputs_of(case: ReadCase, dtype: torch.dtype, backend: str) -> Tensors:
    return make_tensors(case, dtype, DEVICE.get(backend, "cpu"))


@pytest.mark.parametrize(("case", "dtype"), CASES_AND_DTYPES, ids=str)
def test_gradients_of_a_read(backend, case, dtype):
    assert_every_way_is_the_same(read_of(case, backend), *inputs_of(case, dtype, backend))


class Shelf:
    """Hooks that keep copies, and count how often each is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def pack(self, tensor: Tensor) -> tuple[int, Tensor]:
        self.asked.append(0)
        return len(self.asked) - 1, tensor.clone()

    def unpack(self, packed: tuple[int, Tensor]) -> Tensor:
        index, copy = packed
        self.asked[index] += 1
        return copy

    def __call__(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.pack, self.unpack)


@pytest.mark.parametrize("case", [ReadCase(), EVERYTHING], ids=str)
def test_every_saved_tensor_is_unpacked_once(backend, case):
    shelf, given = Shelf(), inputs_of(case, torch.float32, backend)
    gradients(within(shelf), read_of(case, backend), *given)
    assert shelf.asked
    assert set(shelf.asked) == {1}
    if backend != "reference":
        # the inputs, out and lse
        assert len(shelf.asked) == sum(tensor is not None for tensor in given) + (case.lengths is not None) + 2


class Calls(TorchDispatchMode):
    """Counts the calls of the engines' forward operators."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func in READ_OPERATORS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("way", "times"), [("keeps reads", 1), ("keeps listed reads", 1), ("repeats reads", 2)])
def test_a_policy_decides_whether_a_read_is_repeated(engine, way, times):
    with Calls() as calls:
        gradients(WAYS[way], read_of(EVERYTHING, engine), *inputs_of(EVERYTHING, torch.float32, engine))
    assert calls.number == times


def test_only_packed_tensors_are_kept(backend):
    given = leaves(inputs_of(EVERYTHING, torch.float32, backend), torch.float32, True)
    made = Tensors(*(tensor * 1 for tensor in given))
    with Shelf()():
        outputs = read_outputs(EVERYTHING, made, backend)
    left = [weakref.ref(tensor) for tensor in made]
    del made
    assert outputs["out"].requires_grad
    assert [reference() for reference in left] == [None] * 5


@pytest.mark.parametrize("changed", Tensors._fields)
def test_overwriting_a_saved_tensor_is_an_error(backend, changed):
    case = replace(EVERYTHING, lengths=None)  # with lengths, the reference saves copies

    def overwritten(function: Function, *given: Tensor) -> tuple[Tensor, ...]:
        made = Tensors(*(tensor * 1 for tensor in given))
        outputs = function(*made)
        getattr(made, changed).detach().zero_()
        return outputs

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(overwritten, read_of(case, backend), *inputs_of(case, torch.float32, backend))


@pytest.mark.slow
def test_the_reference_in_blocks_compiles_as_one_graph(monkeypatch):
    monkeypatch.setattr(reference, "EAGER_AFFINITY_LIMIT", 2 * 97 * 17)
    read, given = read_of(ReadCase(), "reference"), inputs_of(ReadCase(), torch.float32, "reference")
    compiled = torch.compile(read, backend="eager", fullgraph=True)
    torch.testing.assert_close(gradients(plainly, compiled, *given), gradients(plainly, read, *given))


def merged(backend: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    parts = [
        memory_read(query, rows, values, return_lse=True, backend=backend)
        for rows, values in zip(key.split(40, 1), value.split(40, 1), strict=True)
    ]
    return merge_reads(*zip(*parts, strict=True))


def test_gradients_of_merged_reads(backend):
    assert_every_way_is_the_same(partial(merged, backend), *inputs_of(ReadCase(), torch.float32, backend)[:3])


T, H, W = 2, 3, 4
CK, CV = 8, 6


def stcn(backend: str, mk: Tensor, qk: Tensor, mv: Tensor, qv: Tensor) -> tuple[Tensor, ...]:
    reader = STCNMemoryReader(backend)
    return (reader.readout(reader.get_affinity(mk, qk), mv, qv),)


PEERS = {
    "STM": (
        lambda backend, *given: MemoryRead(backend)(*given)[:1],
        [(2, CK, T, H, W), (2, CV, T, H, W), (2, CK, H, W), (2, CV, H, W)],
    ),
    "STCN": (stcn, [(2, CK, T, H, W), (2, CK, H, W), (2, CV, T, H, W), (2, 7, H, W)]),
    "STCN, several objects": (
        lambda backend, *given: (stcn_read(*given, top_k=5, backend=backend),),
        [(1, CK, T * H * W), (1, CK, H * W), (3, CV, T * H * W)],
    ),
    "XMem": (
        lambda backend, *given: (readout(get_affinity(*given[:4], backend=backend), given[4]),),
        [(2, CK, T, H, W), (2, 1, T, H, W), (2, CK, H, W), (2, CK, H, W), (2, CV, T, H, W)],
    ),
    "XMem, several objects": (
        lambda backend, *given: xmem_read(*given, top_k=5, return_usage=True, backend=backend),
        [(1, CK, T * H * W), (1, 1, T * H * W), (1, CK, H * W), (1, CK, H * W), (3, CV, T * H * W)],
    ),
    "MiVOS": (
        lambda backend, *given: (MiVOSMemoryReader(5, backend=backend)(*given),),
        [(3, CK, T, H, W), (3, CV, T, H, W), (1, CK, H, W)],
    ),
}


@with_every_backend
@pytest.mark.parametrize("peer", PEERS)
def test_gradients_of_the_reads_of_peers(backend, peer):
    read, shapes = PEERS[peer]
    given = [torch.rand(shape, device=DEVICE.get(backend, "cpu")) for shape in shapes]
    assert_every_way_is_the_same(partial(read, backend), *given)


@with_every_backend
@pytest.mark.parametrize("use_dis", [False, True])
def test_gradients_of_the_attention_of_aot(backend, use_dis):
    device = DEVICE.get(backend, "cpu")
    attention = AOTLongTermAttention(16, num_head=2, use_dis=use_dis, backend=backend).to(device)
    given = [torch.randn(rows, 1, 16, device=device) for rows in (12, 24, 24)]  # [M or N, batch, C]
    assert_every_way_is_the_same(lambda *qkv: attention(*qkv)[:1], *given, module=attention)


@with_every_backend
def test_an_affinity_may_come_from_outside_a_checkpoint(backend):
    """As in code whose affinity is a tensor: only the readout of each object is recomputed."""
    device = DEVICE.get(backend, "cpu")
    given = [torch.randn(2, *shape, device=device) for shape in ((CK, T, H, W), (CK, H, W), (CV, T, H, W))]

    def read(way: Way, mk: Tensor, qk: Tensor, mv: Tensor) -> tuple[Tensor, ...]:
        affinity = get_affinity(mk * 2, None, qk * 2, None, backend=backend)
        return way(readout, affinity, mv), way(readout, affinity, mv * 2)

    found, expected = (gradients(plainly, partial(read, way), *given) for way in (WAYS["checkpoint"], plainly))
    assert_same(found, expected, "checkpoint")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_gradients_of_a_query_of_a_quantized_memory(dtype):
    query, key, value = soft_memory(queries=9, slots=2, rows=7, key_dim=8, value_dim=6)
    memory, lengths = quantize_memory(key, value, dtype), torch.tensor([14, 5])
    read = partial(memory_read_quantized, memory=memory, lengths=lengths, return_lse=True)
    assert_every_way_is_the_same(read, query)
    key, value = memory.dequantized(torch.float32)
    exact = partial(memory_read, key=key, value=value, lengths=lengths, return_lse=True)
    torch.testing.assert_close(gradients(plainly, read, query), gradients(plainly, exact, query))


def test_scales_of_a_quantized_memory_have_gradients_whether_or_not_the_query_has():
    query, key, value = soft_memory(queries=9, slots=2, rows=7, key_dim=8, value_dim=6)
    memory = quantize_memory(key, value)

    def read(query: Tensor, key_scale: Tensor, key_mean: Tensor, value_scale: Tensor) -> tuple[Tensor, ...]:
        scales = {"key_scale": key_scale, "key_mean": key_mean, "value_scale": value_scale}
        return (memory_read_quantized(query, memory._replace(**scales)),)

    scales = memory.key_scale, memory.key_mean, memory.value_scale
    expected = gradients(plainly, read, query, *scales)[1:]
    assert_same(gradients(plainly, partial(read, query), *scales), expected, "without the query's")


BANKS = {
    "device": MemoryConfig(),
    "int8": MemoryConfig(storage="int8"),
    "bfloat16": MemoryConfig(storage="bfloat16"),
    "pages": MemoryConfig(place="host", page_bytes=1),
    "usage": MemoryConfig(max_frames=3, evict="least_used"),
}
in_every_bank = pytest.mark.parametrize("config", BANKS.values(), ids=BANKS)


def read_bank(config: MemoryConfig, query: Tensor, then_appended: bool = False) -> tuple[Tensor, ...]:
    """The read of a bank of three frames; a fourth one may be appended afterwards."""
    bank, generator = MemoryBank(config), torch.Generator().manual_seed(0)
    frames = [[torch.randn(2, width, H, W, generator=generator) for width in (CK, CV)] for _ in range(4)]
    for frame in frames[:3]:
        bank.append(*frame)
    out = bank.read(query)
    if then_appended:
        bank.append(*frames[3])
    return (out,)


@in_every_bank
def test_gradients_of_a_query_of_a_bank(config):
    query = torch.randn(1, CK, H, W)
    assert_every_way_is_the_same(partial(read_bank, config), query)
    found, exact = (gradients(plainly, partial(read_bank, chosen), query) for chosen in (config, MemoryConfig()))
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)


@in_every_bank
def test_a_bank_may_change_before_the_backward_pass(config):
    query, read = torch.randn(1, CK, H, W), partial(read_bank, config)
    expected = gradients(plainly, read, query)
    for name, way in {"plain": plainly, "save_on_cpu": WAYS["save_on_cpu"]}.items():
        assert_same(gradients(way, partial(read, then_appended=True), query), expected, name)


@pytest.mark.slow
@with_every_backend
def test_gradients_of_a_training_step(backend):
    device = DEVICE.get(backend, "cpu")
    config = replace(SMALL_CONFIG, backend=backend, loss=Loss(affinity_weight=1.0))
    clip_loss, frames = build_clip_loss(config).to(device), torch.rand(1, 3, 3, 32, 32, device=device)
    ids = torch.randint(3, (1, 3, 32, 32), device=device)
    # frames are memorized and segmented, and the affinity loss reads masks, which have no gradient
    assert_every_way_is_the_same(lambda frames: (clip_loss(frames, ids, [2]),), frames, module=clip_loss)
