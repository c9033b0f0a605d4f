"""Checkpoints: the published names, the round trip, and files that are refused."""

import dataclasses
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

from stm_fast.errors import InputError
from stm_fast.network import (
    STM,
    Architecture,
    architecture_of,
    load_checkpoint,
    released,
    save_checkpoint,
    stm_lite2,
    stm_resnet18,
)
from stm_fast.network.checkpoint import load_start, our_name, published_name, read_state_dict

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"key_dim": 8, "value_dim": 16, "decoder_dim": 8}


def small_stm() -> STM:
    return stm_resnet18(**SMALL)


def published(model: STM, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + published_name(name): tensor for name, tensor in model.state_dict().items()}


def assert_same_weights(found: STM, expected: STM) -> None:
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.slow
def test_the_published_entries_map_one_to_one_and_back() -> None:
    entries = json.loads((GOLDEN / "stm_state_dict.json").read_text())
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in STM().state_dict().items()}
    assert len(entries) == 558
    assert {our_name(name): shape for name, shape in entries.items()} == ours
    assert {published_name(name): shape for name, shape in ours.items()} == entries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "wrapper", "zipped"),
    [
        ("", None, True),
        ("module.", None, False),
        ("", "state_dict", True),
        ("module.", "network", True),
        ("", "model", False),
    ],
)
def test_loads_the_published_layout(tmp_path: Path, prefix: str, wrapper: str | None, zipped: bool) -> None:
    model, other = small_stm(), small_stm()
    state = published(model, prefix)
    content = {wrapper: state, "step": 7} if wrapper else state
    torch.save(content, tmp_path / "stm.pth", _use_new_zipfile_serialization=zipped)
    load_checkpoint(other, tmp_path / "stm.pth")
    assert_same_weights(other, model)
    assert architecture_of(tmp_path / "stm.pth") == model.architecture


def test_safetensors_round_trip(tmp_path: Path) -> None:
    model = small_stm().to(memory_format=torch.channels_last)
    path = tmp_path / "stm.safetensors"
    save_checkpoint(model, path)
    save_checkpoint(model, path)
    assert os.listdir(tmp_path) == [path.name]
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert_same_weights(stm_resnet18(weights=path, **SMALL), model)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "stm_fast",
            "backbone": "resnet18",
            "key_dim": "8",
            "value_dim": "16",
            "decoder_dim": "8",
            "unit_keys": "False",
            "position_waves": "0",
            "shared_trunk": "False",
            "min_size": "1",
        }


def test_weights_keep_the_dtype_of_the_network(tmp_path: Path) -> None:
    save_checkpoint(small_stm(), tmp_path / "stm.safetensors")
    model = small_stm().double()
    load_checkpoint(model, tmp_path / "stm.safetensors")
    assert model.decoder.predict.weight.dtype == torch.float64


def test_names_missing_unexpected_and_misshapen_entries(tmp_path: Path) -> None:
    model = small_stm()
    state = published(model)
    del state["Decoder.pred2.bias"]
    state["Decoder.extra"] = torch.zeros(1)
    state["Encoder_Q.conv1.weight"] = torch.zeros(64, 4, 7, 7)
    torch.save(state, tmp_path / "stm.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_checkpoint(model, tmp_path / "stm.pth")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'stm.pth'}: ")
    assert "missing Decoder.pred2.bias" in message
    assert "unexpected Decoder.extra" in message
    assert "Encoder_Q.conv1.weight of shape [64, 4, 7, 7] instead of [64, 3, 7, 7]" in message
    assert "\n" not in message
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_names_ten_faults_and_counts_the_others(tmp_path: Path) -> None:
    model = small_stm()
    save_file({f"entry{i:02}": torch.zeros(1) for i in range(3)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="missing") as error:
        load_checkpoint(model, tmp_path / "x.safetensors")
    faults = len(model.state_dict()) + 3
    assert str(error.value).count("missing") == 10
    assert f"and {faults - 10} more" in str(error.value)


@pytest.mark.slow
def test_says_which_architecture_was_found_and_which_expected(tmp_path: Path) -> None:
    path = tmp_path / "stm.safetensors"
    save_checkpoint(small_stm(), path)
    assert STM(**dataclasses.asdict(architecture_of(path))).architecture == Architecture("resnet18", **SMALL)
    with pytest.raises(InputError, match=r"found the weights of .*resnet18, key_dim=8.*expected .*key_dim=32"):
        load_checkpoint(stm_resnet18(key_dim=32, value_dim=16, decoder_dim=8), path)
    with torch.device("meta"), pytest.raises(InputError, match=r"resnet18.*expected .*resnet50"):
        load_checkpoint(STM("resnet50", **SMALL), path)


@pytest.mark.slow
@pytest.mark.parametrize("unit_keys", [False, True])
def test_position_channels_are_added_to_weights_without_them(tmp_path: Path, unit_keys: bool) -> None:
    path, frame = tmp_path / "start.safetensors", torch.rand(3, 32, 48)
    start = STM("resnet18_half", **SMALL, unit_keys=unit_keys).eval()
    save_checkpoint(start, path)
    model = STM("resnet18_half", **SMALL, unit_keys=unit_keys, position_waves=2).eval()
    load_start(model, path)

    def scores(network: STM) -> Tensor:
        key = network.encode_query(frame).key[0].flatten(1)[: SMALL["key_dim"]]  # [Ck, M], without positions
        return key.T @ key / math.sqrt(network.key_dim)

    with torch.no_grad():
        torch.testing.assert_close(scores(model), scores(start))
        others = (model.encode_query(frame).value, model.memorize(frame, torch.ones(1, 32, 48))[1])
        expected = (start.encode_query(frame).value, start.memorize(frame, torch.ones(1, 32, 48))[1])
        torch.testing.assert_close(others, expected)
    with pytest.raises(InputError, match="expected STM"):
        load_start(STM("resnet18", **SMALL), path)


@pytest.mark.slow
def test_tells_backbones_of_the_same_depth_apart(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    for keys in ({}, {"unit_keys": True}, {"unit_keys": True, "position_waves": 2}):
        half = STM("resnet18_half", **SMALL, **keys)
        save_checkpoint(half, path)
        assert architecture_of(path) == Architecture("resnet18_half", **SMALL, **keys)
        load_checkpoint(STM("resnet18_half", **SMALL, **keys), path)
    with pytest.raises(InputError, match=r"found the weights of .*unit_keys, position_waves=2, expected STM"):
        load_checkpoint(STM("resnet18_half", **SMALL), path)


def test_half_precision_changes_only_convolutions(tmp_path: Path) -> None:
    model = small_stm()
    for half in (False, True):
        save_checkpoint(model, tmp_path / f"{half}.safetensors", half=half)
    whole, halved = (read_state_dict(tmp_path / f"{half}.safetensors") for half in (False, True))
    assert (tmp_path / "True.safetensors").stat().st_size < 0.6 * (tmp_path / "False.safetensors").stat().st_size
    for name, tensor in whole.items():
        kernel = name.endswith("weight") and tensor.ndim == 4
        assert halved[name].dtype == (torch.float16 if kernel else tensor.dtype), name
        assert torch.equal(halved[name], tensor.half() if kernel else tensor), name
    load_checkpoint(model, tmp_path / "True.safetensors")
    assert all(tensor.dtype != torch.float16 for tensor in model.state_dict().values())


@pytest.mark.parametrize(("weights", "file"), released.FILES.items(), ids=str)
def test_the_weights_of_the_package_fit_its_architecture(weights, file) -> None:
    assert architecture_of(file) == released.ARCHITECTURE == stm_lite2(weights=weights).architecture
    assert file.stat().st_size <= 24_000_000
    loaded, untrained = stm_lite2(weights=weights).state_dict(), stm_lite2(weights=None).state_dict()
    name = "decoder.predict.weight"
    assert torch.equal(loaded[name], read_state_dict(file)[name].float())
    assert not torch.equal(loaded[name], untrained[name])


def test_the_default_weights_are_not_the_open_ones() -> None:
    default, same, other = (read_state_dict(file) for file in (released.FILE, *released.FILES.values()))
    name = "decoder.predict.weight"
    assert torch.equal(default[name], same[name])
    assert not torch.equal(default[name], other[name])


def test_a_checkpoint_of_something_else_has_no_architecture(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="no STM"):
        architecture_of(tmp_path / "resnet18.pth")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False, None])
def test_never_runs_code_out_of_a_pickle(tmp_path: Path, zipped: bool | None) -> None:
    path, mark = tmp_path / "bomb.pth", tmp_path / "it_ran"
    content = {"Encoder_M.mean": Bomb(mark)}
    if zipped is None:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"bomb\.pth: not a checkpoint"):
        load_checkpoint(small_stm(), path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark))).close()
    assert mark.exists(), "the bomb is a dud, so its refusal proves nothing"


def test_refuses_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    model = small_stm()
    torch.save(published(model), tmp_path / "whole.pth")
    save_checkpoint(model, tmp_path / "whole.safetensors")
    for suffix in (".pth", ".safetensors"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no weights here\n" * 99}.items():
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(content)
            with pytest.raises(InputError, match=rf"{name}\{suffix}: not a checkpoint") as error:
                load_checkpoint(model, path)
            assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"absent\.pth: no such file"):
        load_checkpoint(model, tmp_path / "absent.pth")
    with pytest.raises(InputError, match="no such file"):
        load_checkpoint(model, tmp_path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"a": 1.0}, {3: torch.zeros(1)}])
def test_refuses_pytorch_files_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match="expected a state dict"):
        load_checkpoint(small_stm(), tmp_path / "x.pth")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(state: object, filename: Path, metadata: object) -> None:
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(InputError, match=r"disk full while writing .*stm\.safetensors"):
        save_checkpoint(small_stm(), tmp_path / "stm.safetensors")
    assert not os.listdir(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        save_checkpoint(small_stm(), tmp_path / "absent" / "stm.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_trunk_of_torchvision_is_loaded_into_both_encoders(tmp_path: Path, suffix: str) -> None:
    state = {name: tensor for name, tensor in resnet18().state_dict().items() if "num_batches" not in name}
    state["layer2.0.bn1.running_mean"].fill_(0.5)
    path = tmp_path / f"resnet18{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = stm_resnet18(weights_backbone=path, **SMALL)
    for encoder in (model.memory_encoder, model.query_encoder):
        own = encoder.state_dict()
        loaded = [name for name in state if not name.startswith(("layer4", "fc"))]
        assert len(loaded) == 75
        assert all(torch.equal(own[name], state[name]) for name in loaded)


def test_a_trunk_of_another_resnet_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "half.pth")
    with pytest.raises(InputError, match=r"half\.pth: does not fit the network: missing"):
        stm_resnet18(weights_backbone=tmp_path / "half.pth", **SMALL)
