"""Wrong calls of the memory read and their messages: the argument, what was found, what was expected."""

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from stm_fast import MemoryConfig, MemoryRead, memory_read, merge_reads
from stm_fast.memory import MemoryBank
from stm_fast.ops import backends

BACKENDS = f'"auto" or one of {", ".join(backend.name for backend in backends.BACKENDS)}'
LISTED = "torch.float16, torch.bfloat16, torch.float32, torch.float64"
SHAPES = "query (2, 5, 4), key {key}, value {value}"


def arguments(**changed):
    default = {"query": torch.zeros(2, 5, 4), "key": torch.zeros(2, 7, 4), "value": torch.zeros(2, 7, 3)}
    return default | changed


def l2(**changed):
    return arguments(similarity="l2", **changed)


def made(call):
    """Makes sparse tensors only when they are used, because other tests count the bytes of all live tensors."""
    return {name: argument() if callable(argument) else argument for name, argument in call.items()}


QUERY, KEY, VALUE = (torch.zeros(*shape) for shape in ((2, 5, 4), (2, 7, 4), (2, 7, 3)))
FAKE, OTHER = FakeTensorMode(), FakeTensorMode()
JAGGED = torch.nested.nested_tensor([torch.zeros(5, 4), torch.zeros(3, 4)], layout=torch.jagged)
ONE = torch.tensor(0.5)

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
        "key: found torch.float16, expected torch.float32 like query",
    ),
    (
        arguments(value=torch.zeros(2, 7, 3).double()),
        TypeError,
        "value: found torch.float64, expected torch.float32 like query",
    ),
    (
        arguments(key=torch.zeros(2, 7, 4, device="meta")),
        ValueError,
        "key: found on meta, expected on cpu like query",
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
        "shrinkage: found on meta, expected on cpu like query",
    ),
    (l2(selection=torch.ones(1, 5, 4)), ValueError, "selection: found shape (1, 5, 4), expected (2, 5, 4)"),
    (arguments(lengths=torch.ones(2)), TypeError, "lengths: found torch.float32, expected torch.int32 or torch.int64"),
    (
        arguments(lengths=torch.ones(2, dtype=torch.int64, device="meta")),
        ValueError,
        "lengths: found on meta, expected on cpu like query",
    ),
    (arguments(lengths=torch.tensor([1])), ValueError, "lengths: found shape (1,), expected (2,) for the batch"),
    (arguments(lengths=torch.tensor([7, -1])), ValueError, "lengths: found [7, -1], expected values from 0 to 7"),
    (arguments(lengths=torch.tensor([8, 1])), ValueError, "lengths: found [8, 1], expected values from 0 to 7"),
    (arguments(top_k=0), ValueError, "top_k: found 0, expected at least 1"),
    (arguments(top_k=2.0), TypeError, "top_k: found float, expected an integer or None"),
    (arguments(top_k=True), TypeError, "top_k: found bool, expected an integer or None"),
    (arguments(backend="cuda"), ValueError, f"backend: found 'cuda', expected {BACKENDS}"),
    (arguments(backend=None), ValueError, f"backend: found None, expected {BACKENDS}"),
    # numbers and names of other types
    (arguments(scale=True), TypeError, "scale: found bool, expected a number or None"),
    (arguments(scale=np.True_), TypeError, "scale: found bool, expected a number or None"),
    (arguments(scale=1j), TypeError, "scale: found complex, expected a number or None"),
    (arguments(scale=np.complex64(1)), TypeError, "scale: found complex64, expected a number or None"),
    (arguments(scale=decimal.Decimal(1)), TypeError, "scale: found Decimal, expected a number or None"),
    (arguments(scale=np.ones(1)), TypeError, "scale: found ndarray of shape (1,), expected a number or None"),
    (arguments(scale=torch.ones(1)), TypeError, "scale: found Tensor of shape (1,), expected a number or None"),
    (arguments(scale=FAKE.from_tensor(ONE)), TypeError, "scale: found FakeTensor, expected a number or None"),
    (
        arguments(scale=torch.ones((), device="meta")),
        TypeError,
        "scale: found a tensor on meta, expected a number: reading it would stall",
    ),
    (
        arguments(scale=torch.ones((), requires_grad=True)),
        TypeError,
        "scale: found a tensor that requires a gradient, expected a number; multiply query by it instead",
    ),
    (arguments(scale=math.nan), ValueError, "scale: found nan, expected a finite number of torch.float32"),
    (arguments(scale=np.float32(-np.inf)), ValueError, "scale: found -inf, expected a finite number of torch.float32"),
    (arguments(scale=1e39), ValueError, "scale: found 1e+39, expected a finite number of torch.float32"),
    (arguments(scale=10**400), ValueError, "scale: found a number beyond float64, expected a number or None"),
    (arguments(top_k=np.True_), TypeError, "top_k: found bool, expected an integer or None"),
    (arguments(top_k=np.float32(2)), TypeError, "top_k: found float32, expected an integer or None"),
    (arguments(top_k=Fraction(2)), TypeError, "top_k: found Fraction, expected an integer or None"),
    (arguments(top_k=torch.tensor(True)), TypeError, "top_k: found Tensor, expected an integer or None"),
    (arguments(top_k=torch.tensor([2])), TypeError, "top_k: found Tensor of shape (1,), expected an integer or None"),
    (arguments(top_k=-(2**70)), ValueError, f"top_k: found {-(2**70)}, expected at least 1"),
    (arguments(similarity=["dot"]), ValueError, 'similarity: found list, expected "dot" or "l2"'),
    (arguments(similarity=np.array(["dot"])), ValueError, 'similarity: found ndarray, expected "dot" or "l2"'),
    (arguments(similarity=torch.ones(2)), ValueError, 'similarity: found Tensor, expected "dot" or "l2"'),
    (arguments(backend=np.array(["cpp", "auto"])), ValueError, f"backend: found ndarray, expected {BACKENDS}"),
    (arguments(query_norm="no"), TypeError, "query_norm: found str, expected True or False"),
    (arguments(return_lse=torch.tensor(True)), TypeError, "return_lse: found Tensor, expected True or False"),
    (arguments(return_usage=2), TypeError, "return_usage: found int, expected True or False"),
    # tensors that no kernel can read
    (arguments(query=QUERY.numpy()), TypeError, "query: found ndarray, expected a tensor"),
    (arguments(query=JAGGED), TypeError, "query: found a nested tensor, expected one with a shape"),
    (arguments(lengths=JAGGED), TypeError, "lengths: found a nested tensor, expected one with a shape"),
    (
        arguments(value=VALUE.to_sparse),
        TypeError,
        "value: found a tensor of layout torch.sparse_coo, expected torch.strided",
    ),
    (
        l2(shrinkage=torch.ones(2, 7).to_sparse),
        TypeError,
        "shrinkage: found a tensor of layout torch.sparse_coo, expected torch.strided",
    ),
    (
        arguments(key=KEY.to_mkldnn),
        TypeError,
        "key: found a tensor of layout torch._mkldnn, expected torch.strided",
    ),
    (
        arguments(key=FAKE.from_tensor(KEY)),
        TypeError,
        "query: found a real tensor, expected a fake one like key",
    ),
    (
        arguments(query=FAKE.from_tensor(QUERY)),
        TypeError,
        "key: found a real tensor, expected a fake one like query",
    ),
    (
        arguments(lengths=FAKE.from_tensor(torch.tensor([7, 7]))),
        TypeError,
        "query: found a real tensor, expected a fake one like lengths",
    ),
    (
        arguments(query=FAKE.from_tensor(QUERY), key=OTHER.from_tensor(KEY), value=FAKE.from_tensor(VALUE)),
        TypeError,
        "key: found a fake tensor of another FakeTensorMode than that of query",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG_CALLS, ids=[message[:60] for *_, message in WRONG_CALLS])
def test_a_wrong_call_says_what_is_wrong_before_any_kernel_runs(monkeypatch, call, error, message):
    def refuse(*_):
        pytest.fail("a backend ran")

    monkeypatch.setattr(backends, "BACKENDS", tuple(backend._replace(read=refuse) for backend in backends.BACKENDS))
    with pytest.raises(error) as raised:
        memory_read(**made(call))
    assert str(raised.value) == message


SCALES = [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
COUNTS = [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)]


def random_arguments():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in arguments().items()}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: type(scale).__name__)
def test_numbers_of_other_libraries_are_accepted(scale, grad):
    given = random_arguments()
    given["query"].requires_grad_(grad)
    for _ in range(2):  # the second call is a known one
        assert torch.equal(memory_read(**given, scale=scale), memory_read(**given, scale=0.5))


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: f"{type(count).__name__} {getattr(count, 'dtype', '')}")
def test_counts_of_other_libraries_are_accepted(count):
    given = random_arguments()
    for _ in range(2):
        assert torch.equal(memory_read(**given, top_k=count), memory_read(**given, top_k=2))


def test_a_count_beyond_every_dtype_reads_all_rows():
    given = random_arguments()
    assert torch.equal(memory_read(**given, top_k=2**70), memory_read(**given))


def test_flags_of_numpy_are_accepted():
    given = random_arguments()
    for returned, expected in zip(
        memory_read(**given, return_lse=np.True_, return_usage=1, query_norm=np.False_),
        memory_read(**given, return_lse=True, return_usage=True, query_norm=False),
        strict=True,
    ):
        assert torch.equal(returned, expected)


def test_a_scale_tensor_is_read_in_every_call():
    given, scale = random_arguments(), torch.tensor(0.5)
    memory_read(**given, scale=scale)
    scale.fill_(2)
    assert torch.equal(memory_read(**given, scale=scale), memory_read(**given, scale=2.0))


def test_a_parameter_is_accepted_as_a_scale_without_gradients():
    given, scale = random_arguments(), torch.nn.Parameter(torch.tensor(0.5))
    with torch.no_grad():
        assert torch.equal(memory_read(**given, scale=scale), memory_read(**given, scale=0.5))


@pytest.mark.slow
def test_numbers_of_numpy_in_a_compiled_function():
    given = random_arguments()
    compiled = torch.compile(lambda scale, count: memory_read(**given, scale=scale, top_k=count), backend="eager")
    expected = memory_read(**given, scale=0.5, top_k=2)
    torch.testing.assert_close(compiled(np.float32(0.5), np.int64(2)), expected)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_fake_tensors_of_one_mode_and_empty_tensors_are_accepted(backend):
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in arguments().items()}
        assert memory_read(**fake, lengths=torch.tensor([7, 7]), backend=backend).shape == (2, 5, 3)
    loose = FakeTensorMode(allow_non_fake_inputs=True)
    assert memory_read(**arguments(key=loose.from_tensor(KEY)), backend=backend).shape == (2, 5, 3)
    for empty in ({"query": QUERY[:, :0]}, {"value": VALUE[..., :0]}, {"key": KEY[:, :0], "value": VALUE[:, :0]}):
        found = memory_read(**arguments(**empty), backend=backend)
        shape = arguments(**empty)["query"].shape[1], arguments(**empty)["value"].shape[2]
        assert torch.equal(found, torch.zeros(2, *shape))


def test_the_same_errors_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match=r"query: found torch\.int32"):
        memory_read(**arguments(query=torch.zeros(2, 5, 4).int()))


OUT, LSE = torch.zeros(2, 5, 3), torch.zeros(2, 5)
WRONG_MERGES = [
    (None, [LSE], TypeError, "outs: found NoneType, expected tensors"),
    ([OUT], 3, TypeError, "lses: found int, expected tensors"),
    ([OUT.numpy()], [LSE], TypeError, "outs: found ndarray, expected a tensor"),
    ([OUT], [None], TypeError, "lses: found NoneType, expected a tensor"),
    (
        [OUT.int()],
        [LSE],
        TypeError,
        "outs, lses: found torch.int32 and torch.float32, expected one dtype for outs, and lses as from memory_read",
    ),
    (
        [OUT, OUT.to("meta")],
        [LSE, LSE.to("meta")],
        ValueError,
        "outs, lses: found on meta and meta, expected one device for all",
    ),
    ([], [], ValueError, "outs, lses: found 0 and 0, expected the same number, at least one"),
    ([OUT], [LSE, LSE], ValueError, "outs, lses: found 1 and 2, expected the same number, at least one"),
    (
        [OUT, OUT[:, :4]],
        [LSE, LSE],
        ValueError,
        "outs, lses: found (2, 4, 3) and (2, 5), expected [B, M, Cv] and [B, M], the same for all parts",
    ),
    (
        [OUT],
        [LSE[0]],
        ValueError,
        "outs, lses: found (2, 5, 3) and (5,), expected [B, M, Cv] and [B, M], the same for all parts",
    ),
    (
        [OUT[0]],
        [LSE],
        ValueError,
        "outs, lses: found (5, 3) and (2, 5), expected [B, M, Cv] and [B, M], the same for all parts",
    ),
    (
        [OUT, OUT.half()],
        [LSE, LSE],
        TypeError,
        "outs, lses: found torch.float16 and torch.float32, expected one dtype for outs, and lses as from memory_read",
    ),
    (
        [OUT],
        [LSE.double()],
        TypeError,
        "outs, lses: found torch.float32 and torch.float64, expected one dtype for outs, and lses as from memory_read",
    ),
]


@pytest.mark.parametrize(("outs", "lses", "error", "message"), WRONG_MERGES, ids=[row[-1][:60] for row in WRONG_MERGES])
def test_a_wrong_merge_says_what_is_wrong(outs, lses, error, message):
    with pytest.raises(error) as raised:
        merge_reads(outs, lses)
    assert str(raised.value) == message


def test_reads_in_any_container_are_merged():
    outs, lses = torch.randn(3, *OUT.shape), torch.randn(3, *LSE.shape)
    expected = merge_reads(list(outs), list(lses))
    for found in (merge_reads(outs, lses), merge_reads(iter(outs), tuple(lses))):
        assert all(map(torch.equal, found, expected))


NUMBERS = ("every", "frames", "max_frames", "max_bytes", "page_bytes")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "number", [np.int64(3), np.array(3), torch.tensor(3)], ids=lambda number: type(number).__name__
)
def test_numbers_in_a_memory_config_become_plain_integers(name, number):
    config = MemoryConfig(**{name: number})
    assert type(getattr(config, name)) is int
    assert config == MemoryConfig(**{name: 3})


def test_flags_and_paths_in_a_memory_config_become_plain():
    config = MemoryConfig(previous=np.False_, redetect=1, place="disk", folder="somewhere")
    assert (config.previous, config.redetect, config.graph) == (False, True, False)
    assert type(config.previous) is type(config.redetect) is bool
    assert config.folder is not None
    assert config.folder.name == "somewhere"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("number", [True, 2.0, math.nan, "3", [3], np.float32(3), torch.ones(1, dtype=torch.int64)])
def test_a_memory_config_requires_integers(name, number):
    with pytest.raises(TypeError, match=rf"MemoryConfig\.{name}: found \w+( of shape \(1,\))?, expected an integer"):
        MemoryConfig(**{name: number})


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"every": 2**70}, ValueError, r"MemoryConfig.every: found 1.18e\+21, expected less than 2\*\*63"),
        ({"page_bytes": None}, TypeError, "MemoryConfig.page_bytes: found NoneType, expected an integer"),
        ({"previous": "no"}, TypeError, "MemoryConfig.previous: found str, expected True or False"),
        ({"graph": None}, TypeError, "MemoryConfig.graph: found NoneType, expected True or False"),
        ({"evict": ["oldest"]}, ValueError, "MemoryConfig.evict: found list, expected one of oldest"),
        ({"storage": torch.float16}, ValueError, "MemoryConfig.storage: found dtype, expected one of model"),
        ({"place": "disk", "folder": 3}, TypeError, "MemoryConfig.folder: found int, expected a path"),
    ],
    ids=str,
)
def test_arguments_that_a_memory_config_refuses(wrong, error, message):
    with pytest.raises(error, match=message):
        MemoryConfig(**wrong)


FRAME = {"key": torch.rand(2, 4, 3, 3), "value": torch.rand(2, 5, 3, 3)}
WRONG_FRAMES = [
    ({"key": FRAME["key"].numpy()}, TypeError, "key: found ndarray, expected a tensor"),
    ({"value": FRAME["value"].to_sparse}, TypeError, "value: found a tensor of layout torch.sparse_coo"),
    ({"key": FRAME["key"].int(), "value": FRAME["value"].int()}, TypeError, "key: found torch.int32, expected a float"),
    ({"value": FRAME["value"].to("meta")}, ValueError, "value: found on meta, expected on cpu"),
    ({"frame": 7.0}, TypeError, "frame: found float, expected an integer or None"),
    ({"temporary": "no"}, TypeError, "temporary: found str, expected True or False"),
    # True and False are equal to the indices 1 and 0
    ({"permanent": np.array([True, False])}, TypeError, "permanent: found bool, expected integers"),
    ({"permanent": 1}, TypeError, "permanent: found int, expected indices of objects"),
    ({"permanent": [2]}, ValueError, r"permanent: found \[2\], expected some of 0 to 1"),
    ({"absent": ["0"]}, TypeError, "absent: found str, expected integers"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_FRAMES, ids=[row[-1] for row in WRONG_FRAMES])
def test_arguments_that_a_bank_refuses(wrong, error, message):
    bank = MemoryBank()
    with pytest.raises(error, match=message):
        bank.append(**made(FRAME | wrong))
    bank.append(**FRAME)
    assert bank.frames == [[0], [0]]


def test_arguments_that_a_bank_accepts():
    bank, plain = MemoryBank(), MemoryBank()
    bank.append(**FRAME, frame=np.int64(4), permanent=np.array([1]), absent=torch.tensor([0]))
    plain.append(**FRAME, frame=4, permanent=[1], absent=[0])
    assert bank.frames == plain.frames == [[], [4]]
    assert {type(frame) for frames in bank.frames for frame in frames} == {int}
    query = torch.rand(1, 4, 3, 3)
    assert torch.equal(bank.read(query), plain.read(query))
    with pytest.raises(TypeError, match="query_key: found ndarray, expected a tensor"):
        bank.read(query.numpy())
    with pytest.raises(ValueError, match=r"found shape \(4, 3, 3\), expected \[1 or O, Ck, h, w\]"):
        bank.read(query[0])


WRONG_FEATURES = [
    (torch.zeros(2, 4), ValueError, r"query_key: found shape \(2, 4\), expected \[B, C, ...\]"),
    (np.zeros((2, 4, 3, 3)), TypeError, "query_key: found ndarray, expected a tensor"),
    (JAGGED, TypeError, "query_key: found a nested tensor, expected one with a shape"),
]


@pytest.mark.parametrize(("query_key", "error", "message"), WRONG_FEATURES, ids=[row[-1] for row in WRONG_FEATURES])
def test_a_layer_names_what_is_wrong(query_key, error, message):
    key, value = torch.zeros(2, 4, 2, 3, 3), torch.zeros(2, 5, 2, 3, 3)
    with pytest.raises(error, match=message):
        MemoryRead()(key, value, query_key, torch.zeros(2, 5, 3, 3))
