"""Checkpoints of runs: damaged, incomplete and hostile ones are reported in one line."""

import io
import math
import random

import pytest
import torch

from stm_fast.errors import InputError
from stm_fast.training.config_file import from_plain
from stm_fast.training.log import TrainingLog
from stm_fast.training.resuming import state_of
from training_runs import SMALL, make_trainer, stop_after, tensors

CHANGES = {
    "no weights": (lambda state: state.pop("model"), "its model: found none, expected named tensors"),
    "no configuration": (lambda state: state.pop("config"), "its config: found none, expected a configuration"),
    "a list of configurations": (lambda state: state.update(config=[1]), "its config: found [1], expected a config"),
    "an unknown key": (lambda state: state["config"].update(speed=3), "speed: unknown key"),
    "a word as step": (lambda state: state.update(step="3"), "its step: found '3', expected a number of steps"),
    "a negative step": (lambda state: state.update(step=-1), "its step: found -1, expected a number of steps"),
    "a huge step": (lambda state: state.update(step=2**900), "its step: found an integer of 901 bits"),
    "a tensor as score": (lambda state: state.update(best=torch.ones(2)), "its best: found tensor([1., 1.])"),
    "NaN as score": (lambda state: state.update(best=math.nan), "its best: found nan, expected a score"),
    "a window with other keys": (lambda state: state.update(window={"losses": []}), "its window: found {'losses': []}"),
    "losses that are no numbers": (lambda state: state["window"].update(losses=["1"]), "its window: found {"),
    "weights that are no tensors": (lambda state: state["model"].update(a=3), "its model: found {"),
    "no optimizer": (lambda state: state.update(optimizer={}), "its optimizer: found {}, expected the state of an"),
    "a view of one number": (
        lambda state: state["model"].update(a=torch.zeros(1).expand(10**9)),
        "found tensors of 4",
    ),
    "a sparse weight": (lambda state: state["model"].update(a=torch.eye(2).to_sparse()), "holds a tensor that is not"),
    "a weight without data": (lambda state: state["model"].update(a=torch.ones(2, device="meta")), "holds a tensor"),
}


# faults that only the network reveals
MISFITS = {
    "another network": (lambda state: state["model"].update(a=torch.ones(2)), "does not fit the network"),
    "one weight missing": (lambda state: state["model"].popitem(), "does not fit the network"),
    "whole numbers": (
        lambda state: state.update(model={name: tensor.int() for name, tensor in state["model"].items()}),
        "does not fit the network of its configuration (model: other names, shapes or dtypes)",
    ),
    "no average": (lambda state: state.update(average=None), "does not fit the network"),
    "no moments": (lambda state: state["optimizer"]["state"][0].pop("exp_avg"), "does not fit the network"),
    "other moments": (
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.ones(3)),
        "does not fit the network of its configuration (optimizer: moments whose shape is not",
    ),
    "moments of one more weight": (lambda state: state["optimizer"]["state"].update({9999: {}}), "does not fit"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The bytes of a checkpoint after two steps, exact and compact."""
    contents = {}
    for compact in (False, True):
        folder = tmp_path_factory.mktemp("stopped")
        make_trainer(folder, ema=0.9, log={"compact": compact}).run(stop_after(2))
        contents[compact] = (folder / "checkpoint.pt").read_bytes()
    return contents


def resume(folder):
    return make_trainer(folder, resume=True, ema=0.9)


def read(folder):
    return state_of(folder / "checkpoint.pt", from_plain(SMALL | {"ema": 0.9}, "test"))


@pytest.mark.parametrize(
    ("changes", "load", "change"),
    [*((CHANGES, read, change) for change in CHANGES), *((MISFITS, resume, change) for change in MISFITS)],
)
def test_a_checkpoint_with_a_wrong_entry_is_reported_in_one_line(stopped, tmp_path, changes, load, change):
    file = tmp_path / "checkpoint.pt"
    spoil, message = changes[change]
    state = torch.load(io.BytesIO(stopped[False]), weights_only=True)
    spoil(state)
    torch.save(state, file)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("entry", ["model", "difference", "average", "optimizer"])
def test_a_compact_checkpoint_without_an_entry_is_reported_in_one_line(stopped, tmp_path, entry):
    state = torch.load(io.BytesIO(stopped[True]), weights_only=True)
    del state[entry]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt: its entries are not those of a compact checkpoint \(KeyEr"):
        read(tmp_path)


@pytest.mark.parametrize("compact", [False, True])
def test_a_checkpoint_with_a_flipped_bit_is_refused(stopped, tmp_path, compact):
    """Bits between the records of the file have no meaning, so flipping them changes nothing."""
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(stopped[compact])
    whole, refused = tensors(tmp_path), 0
    places = random.Random(0).sample(range(len(stopped[compact])), 12)
    for place in places:
        damaged = bytearray(stopped[compact])
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            found = tensors(tmp_path)
        except InputError as error:
            assert "not a checkpoint of a training run" in str(error)  # noqa: PT017 (PyTorch decides which bits matter)
            refused += 1
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    assert refused > len(places) // 2


def test_a_truncated_checkpoint_is_refused(stopped, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(stopped[False][:-100])
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of a training run .*; restore a copy"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"{no}", "line 2 is damaged"),
        (b"3", "line 2 is damaged, expected JSON with a step; repair or move the file"),
        (b'{"loss": 1}', "line 2 is damaged"),
        (b'{"step": "1"}', "line 2 is damaged"),
        (b"\xff", "found invalid UTF-8 at byte 12"),
        (b"[" * 10**5, "line 2 is damaged"),
    ],
    ids=lambda text: str(text)[:12],
)
def test_a_damaged_log_is_reported_in_one_line(tmp_path, damage, message):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"step": 1}\n' + damage[: 10**6] + b"\n")
    with pytest.raises(InputError) as caught:
        TrainingLog(tmp_path, 1)
    assert str(caught.value).startswith(f"{file}: {message}")
