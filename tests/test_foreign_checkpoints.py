"""Checkpoints by other programs: those of trainers and compilers are accepted; bombs and damage are one-line errors."""

import argparse
import io
import json
import logging
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._utils import _rebuild_tensor_v2
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

from stm_fast.errors import InputError
from stm_fast.network import STM, architecture_of, load_checkpoint, save_checkpoint, stm_lite0, stm_resnet18
from stm_fast.network.checkpoint import load_network, published_name, read_state_dict
from stm_fast.network.outline import outline

SMALL = {"backbone": "resnet18_half", "key_dim": 8, "value_dim": 16, "decoder_dim": 8}


@pytest.fixture(scope="module")
def model() -> STM:
    return STM(**SMALL)


@pytest.fixture
def state(model: STM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: STM, model: STM) -> None:
    assert found.architecture == model.architecture
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, tensor in found.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, model.state_dict()[name]), name


def refusal(content: object, tmp_path: Path, **options: bool) -> str:
    """The error, after the file's name, when `content` is loaded from a PyTorch file."""
    path = tmp_path / "x.pth"
    torch.save(content, path, **options)
    for load in (load_network, lambda path: load_checkpoint(STM(**SMALL), path)):
        with pytest.raises(InputError) as caught:
            load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 1500
    return message.removeprefix(f"{path}: ")


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


ACCEPTED = {
    "compiled": lambda state: with_prefix("_orig_mod.", state),
    "compiled, parallel": lambda state: with_prefix("module._orig_mod.", state),
    "parallel, compiled": lambda state: with_prefix("_orig_mod.module.", state),
    "one part compiled": lambda state: {name.replace("decoder.", "decoder._orig_mod."): state[name] for name in state},
    "Lightning": lambda state: {"state_dict": with_prefix("model.", state), "epoch": 3, "loops": {"a": [1, (2,)]}},
    "published, compiled": lambda state: with_prefix("_orig_mod.", {published_name(n): state[n] for n in state}),
    "with NumPy values": lambda state: {
        "net": state,
        "best_iou": np.float64(0.5),
        "epoch": np.int64(3),
        "curve": np.ones(3, np.float32),
        "random": np.random.get_state(),
        "args": argparse.Namespace(lr=1e-5, out=Path("out")),
    },
    "with other entries": lambda state: state | {"epoch": 3, "best_iou": np.float32(0.5), "optimizer": {"state": {}}},
    "with scalar tensors": lambda state: state | {"epoch": torch.tensor(3), "best": torch.tensor(0.5)},
    "wrapped twice": lambda state: {"model": {"state_dict": state}, "config": {"model": "stm"}},
    "settings under the first key": lambda state: {"network": {"backbone": "resnet18"}, "model": state},
    "no counters": lambda state: {name: state[name] for name in state if "num_batches_tracked" not in name},
    "some counters": lambda state: {n: t for i, (n, t) in enumerate(state.items()) if i % 2 or "num_batches" not in n},
    "float64": lambda state: {name: tensor.double() for name, tensor in state.items()},
    "parameters": lambda state: OrderedDict((n, nn.Parameter(t, t.is_floating_point())) for n, t in state.items()),
    "not contiguous": lambda state: {
        name: tensor.mT.clone().mT if tensor.ndim == 4 else tensor for name, tensor in state.items()
    },
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ACCEPTED)
def test_checkpoints_of_trainers_are_accepted(model, state, tmp_path, kind, zipped):
    path = tmp_path / "x.pth"
    torch.save(ACCEPTED[kind](state), path, _use_new_zipfile_serialization=zipped)
    found = load_network(path)
    assert_same(found, model)
    assert all(weight.requires_grad and weight.is_contiguous() for weight in found.parameters())
    again = STM(**SMALL)
    load_checkpoint(again, path)
    assert_same(again, model)


def test_an_average_of_weights_is_accepted(model, tmp_path):
    torch.save({"ema": AveragedModel(model).state_dict()}, tmp_path / "x.pth")
    assert_same(load_network(tmp_path / "x.pth"), model)


def test_the_choice_between_two_networks_in_a_file_is_reported(model, state, tmp_path, caplog):
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"ema": other, "model": state}, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        assert_same(load_network(tmp_path / "x.pth"), model)
    assert "x.pth: took the weights under 'model', found some under ema too" in caplog.text


def test_file_types_are_recognized_by_content(model, tmp_path):
    save_checkpoint(model, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "x.pth")
    torch.save(model.state_dict(), tmp_path / "y.safetensors")
    for name in ("x.pth", "y.safetensors"):
        assert_same(load_network(tmp_path / name), model)


def test_half_precision_is_accepted_and_keeps_its_values(model, tmp_path):
    save_checkpoint(model, tmp_path / "x.safetensors", half=True)
    stored = read_state_dict(tmp_path / "x.safetensors")
    found = load_network(tmp_path / "x.safetensors").state_dict()
    assert all(torch.equal(found[name], tensor.to(found[name].dtype)) for name, tensor in stored.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}


def test_counters_that_a_file_lacks_are_zero(state, tmp_path):
    torch.save(ACCEPTED["no counters"](state), tmp_path / "x.pth")
    counters = [
        tensor for name, tensor in load_network(tmp_path / "x.pth").state_dict().items() if "num_batches" in name
    ]
    assert counters
    assert all(counter.shape == () and counter.dtype == torch.int64 and counter == 0 for counter in counters)


NAME = "decoder.predict.weight"
VALUES = {
    "NaN": (lambda weight: weight.flatten()[3:4].fill_(torch.nan), f"entry {NAME} holds NaN, expected finite numbers"),
    "infinity": (lambda weight: weight.fill_(-torch.inf), f"entry {NAME} holds infinity, or more than"),
    "both infinities": (lambda weight: weight.view(-1)[:2].copy_(torch.tensor([-torch.inf, torch.inf])), "infinity"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", VALUES)
def test_values_that_are_not_numbers_are_named(state, tmp_path, kind, dtype):
    spoil, message = VALUES[kind]
    state[NAME] = state[NAME].to(dtype)
    spoil(state[NAME])
    assert message in refusal(state, tmp_path)


def test_messages_use_the_entry_names_of_the_file(state, tmp_path):
    state[NAME][0] = torch.nan
    content = {"module." + published_name(name): tensor for name, tensor in state.items()}
    assert refusal(content, tmp_path).startswith("entry module.Decoder.pred2.weight holds NaN")


def test_numbers_that_are_large_but_finite_are_accepted(model, state, tmp_path):
    state[NAME].fill_(3e38)
    torch.save(state, tmp_path / "x.pth")
    assert load_network(tmp_path / "x.pth").state_dict()[NAME].eq(3e38).all()


def test_a_value_that_the_dtype_of_the_network_cannot_hold_is_named(state, tmp_path):
    state[NAME] = torch.full_like(state[NAME], 1e300, dtype=torch.float64)
    assert f"entry {NAME} holds infinity, or more than torch.float32 can hold" in refusal(state, tmp_path)


def test_a_negative_variance_is_named(state, tmp_path):
    name = "memory_encoder.bn1.running_var"
    state[name][5] = -0.5
    assert refusal(state, tmp_path) == f"entry {name} holds a negative variance, expected 0 or more"


def sparse(weight):
    return weight.to_sparse()


def quantized(weight):
    return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


def nested(weight):
    return torch.nested.nested_tensor([weight, weight[:1]])


UNUSUAL = {
    "meta": (lambda weight: weight.to("meta"), f"entry '{NAME}' is on the meta device, without numbers"),
    "sparse": (sparse, f"entry '{NAME}' is sparse, expected a plain tensor"),
    "nested": (nested, f"entry '{NAME}' is nested, expected a plain tensor"),
    "complex": (lambda weight: weight.to(torch.complex64), f"entry '{NAME}' is complex, expected a plain tensor"),
    "int": (lambda weight: weight.int(), f"{NAME} of int32 instead of floating-point numbers"),
    "bool": (lambda weight: weight > 0, f"{NAME} of bool instead of floating-point numbers"),
    "uint8": (lambda weight: weight.to(torch.uint8), f"{NAME} of uint8 instead of floating-point numbers"),
    "NumPy": (lambda weight: weight.numpy(), f"{NAME} is not a tensor"),
    "number": (lambda weight: 3.0, f"{NAME} is not a tensor"),
    "scalar": (lambda weight: weight.sum(), f"{NAME} of shape [] instead of [2, 8, 3, 3]"),
    "one element as 10^9": (lambda weight: torch.zeros(1).expand(10**9), "found tensors of 40"),
    "code": (lambda weight: argparse.ArgumentParser, "it holds code, argparse.ArgumentParser"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors.*prototype")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_entry_that_is_not_a_plain_tensor_is_named(state, tmp_path, kind):
    change, message = UNUSUAL[kind]
    state[NAME] = change(state[NAME])
    assert message in refusal(state, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_quantized_entry_is_named(state, tmp_path):
    state[NAME] = quantized(state[NAME])
    assert f"entry '{NAME}' is quantized" in refusal(state, tmp_path)


def test_a_network_expanded_from_single_numbers_is_refused(state, tmp_path):
    content = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}
    assert "expected numbers for each" in refusal(content, tmp_path)


class Announced:
    """Pickled as a tensor of a million numbers whose storage has four."""

    def __reduce__(self) -> tuple[object, ...]:
        four = torch.storage.TypedStorage(
            wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return _rebuild_tensor_v2, (four, 0, (10**6,), (1,), False, {})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_longer_than_its_storage_is_refused(tmp_path, zipped):
    message = refusal({NAME: Announced()}, tmp_path, _use_new_zipfile_serialization=zipped)
    assert message.startswith("not a checkpoint (RuntimeError)")


@pytest.mark.parametrize(
    "content",
    [3, "weights", [], [torch.ones(2)], {}, {"model": {}}, {"a": {"b": {"c": torch.ones(2)}}}, torch.ones(3), None],
)
def test_content_that_is_not_a_state_dict_is_refused(tmp_path, content):
    assert "expected a state dict" in refusal(content, tmp_path)


def test_a_dictionary_inside_itself_is_refused(tmp_path):
    content = {}
    content["model"] = content
    assert "expected a state dict" in refusal(content, tmp_path)


def test_two_entries_for_one_name_are_refused(state, tmp_path):
    message = refusal(state | {"module." + NAME: state[NAME]}, tmp_path)
    assert message == f"found '{NAME}' both as '{NAME}' and as 'module.{NAME}'"


def safetensors_file(path: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> Path:
    """Entries of any stated shape; those without elements take no bytes."""
    header, first = {}, 0
    for name, shape in shapes.items():
        count = 4 * int(np.prod([float(side) for side in shape])) if 0 not in shape else 0
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, first + count]}
        first += count
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(first))
    return path


BOMBS = {
    "more keys than memory": {"query_key_value.key.weight": [400_000, 128, 3, 0]},
    "wider than any": {"query_key_value.key.weight": [2**40, 128, 0, 3]},
    "wider than 64 bits": {"query_key_value.key.weight": [2**62, 128, 2**62, 0]},
    "no keys": {"query_key_value.key.weight": [0, 128, 3, 3]},
    "wide decoder": {"decoder.compress.weight": [10**6, 0, 3, 3]},
    "wide values": {"decoder.compress.weight": [8, 10**9, 0, 3]},
    "waves": {"memory_key_value.position_strength": [0]},
    "waves of two dimensions": {"memory_key_value.position_strength": [10**9, 0]},
    "nothing but zeros": {name: [0] for name in ("decoder.compress.weight", "query_key_value.key.weight")},
}


@pytest.mark.parametrize("kind", BOMBS)
def test_shapes_are_checked_before_a_network_is_made(tmp_path, kind):
    shapes = {name: [0] for name in outline(STM(**SMALL).architecture).state_dict()}
    shapes |= {"query_key_value.key.weight": [8, 128, 0, 0], "decoder.compress.weight": [8, 32, 0, 0]} | BOMBS[kind]
    path = safetensors_file(tmp_path / "x.safetensors", shapes)

    for read in (load_network, architecture_of):
        with pytest.raises(InputError, match=r"x\.safetensors: (found|does not fit|not a checkpoint)") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def zip_bomb(path: Path, content: object, largest: int) -> None:
    """A PyTorch file whose storages are zeros, deflated."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            inflated = b"\0" * largest if "/data/" in record.filename else source.read(record)
            target.writestr(record.filename, inflated)


LOADING = """
import resource, sys
from stm_fast.errors import InputError
from stm_fast.network.checkpoint import load_network
import stm_fast.network.entries
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lines = []
for path in sys.argv[1:]:
    try:
        load_network(path)
        lines.append("taken")
    except InputError as error:
        lines.append(str(error))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(*lines, sep="\\n")
"""


@pytest.mark.slow
def test_a_bad_file_takes_no_more_memory_than_it_has_bytes(tmp_path, state):
    shapes = {name: [0] for name in state}
    safetensors_file(tmp_path / "a.safetensors", shapes | BOMBS["more keys than memory"])
    zip_bomb(tmp_path / "b.pth", {NAME: torch.zeros(2**20)}, largest=2**26)
    torch.save({name: torch.zeros(1).expand(10**9) for name in state}, tmp_path / "c.pth")
    torch.save({NAME: torch.zeros(2**20)}, tmp_path / "d.pth", _use_new_zipfile_serialization=False)
    legacy = (tmp_path / "d.pth").read_bytes()
    # the number of elements that the pickle states, BININT
    announced = legacy.replace(b"J" + struct.pack("<i", 2**20), b"J" + struct.pack("<i", 2**30))
    assert announced != legacy
    (tmp_path / "d.pth").write_bytes(announced)
    with zipfile.ZipFile(tmp_path / "e.pth", "w") as archive:
        for number in range(100):
            archive.writestr(f"x/data/{number}" + 20_000 * "a", b"")
    files = sorted(tmp_path.glob("*.*"))
    found = subprocess.run([sys.executable, "-c", LOADING, *files], capture_output=True, text=True, check=True)
    kilobytes, *lines = found.stdout.splitlines()
    assert len(lines) == len(files) == 5
    assert all(line.startswith(f"{file}: ") for file, line in zip(files, lines, strict=True)), lines
    assert "compressed records" in lines[1]
    assert "too many records" in lines[4]
    assert int(kilobytes) < 40_000


def test_a_flipped_bit_is_refused_or_has_no_effect(tmp_path):
    path, whole = tmp_path / "x.pth", tmp_path / "whole.pth"
    weights = {"decoder.weight": torch.randn(40), "decoder.bias": torch.randn(3)}
    torch.save(weights, whole)
    content, refused = bytearray(whole.read_bytes()), 0
    for at in range(0, len(content), 7):
        damaged = content.copy()
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = read_state_dict(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 (which bytes matter is up to PyTorch)
            refused += 1
        else:
            assert found.keys() == weights.keys()
            assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert refused > len(content) // 7 // 4


def test_files_without_checksums_are_accepted(model, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(load_network(tmp_path / "x.pth"), model)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer1.0.conv1.weight", lambda weight: weight.fill_(torch.nan)),
        ("bn1.running_var", lambda weight: weight.fill_(-1)),
        ("conv1.weight", lambda weight: weight.int()),
        ("conv1.weight", lambda weight: weight.to_sparse()),
    ],
)
def test_a_trunk_is_checked_as_well(tmp_path, name, change):
    state = resnet18().state_dict()
    state[name] = change(state[name])
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"x\.pth: .*{name}"):
        stm_resnet18(weights_backbone=tmp_path / "x.pth", key_dim=8, value_dim=8, decoder_dim=8)


@pytest.mark.parametrize("shape", [(10**9,), (5,), (10**9, 1, 1, 1), ()], ids=str)
def test_the_folded_parts_of_a_trunk_are_checked_first(tmp_path, shape):
    norm = {f"_bn0.{part}": torch.ones(32) for part in ("weight", "bias", "running_mean", "running_var")}
    padding = {"rest": torch.zeros(10)}
    state = (
        {"_conv_stem.weight": torch.zeros(32, 3, 3, 3)} | norm | {"_bn0.weight": torch.ones(()).expand(shape)} | padding
    )
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: (does not fit the network|found tensors of)"):
        stm_lite0(weights_backbone=tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_dim": 0}, "key_dim: found 0, expected 1 to 4096"),
        ({"value_dim": 10**9}, "value_dim: found 1000000000, expected 1 to 4096"),
        ({"decoder_dim": -1}, "decoder_dim: found -1, expected 1 to 4096"),
        ({"position_waves": 10**6}, "position_waves: found 1000000, expected 0 to 32"),
    ],
)
def test_a_network_of_absurd_widths_is_not_made(change, message):
    with pytest.raises(ValueError, match=message):
        STM(**SMALL | change)


@pytest.mark.parametrize(
    "options",
    [SMALL, SMALL | {"unit_keys": True, "position_waves": 2}, {**SMALL, "value_dim": 24, "shared_trunk": True}],
    ids=str,
)
def test_an_outline_is_the_network_on_the_meta_device(options):
    model, without = STM(**options), outline(STM(**options).architecture)
    shapes = [{n: (t.shape, t.dtype) for n, t in each.state_dict().items()} for each in (model, without)]
    assert shapes[0] == shapes[1]
    assert all(tensor.is_meta for tensor in [*without.parameters(), *without.buffers()])
    assert len([*model.buffers()]) + len([*model.parameters()]) == len(model.state_dict())
