"""Training of the click network: its examples, its prompts, and runs that are interrupted."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from small_inputs import write_davis
from stm_fast.clicks.network import FROZEN, ClickNetwork
from stm_fast.clicks.weights import load_click_network
from stm_fast.data.images import image_source
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.training import clicks
from stm_fast.training.click_examples import VIEW_SIDE, Item, Pool, Views, pool_of
from stm_fast.training.click_prompts import random_click, random_region, spoiled
from stm_fast.training.clicks import ClickTraining
from stm_fast.training.config import Schedule
from training_runs import write_pair

pytest.importorskip("cv2")

pytestmark = pytest.mark.usefixtures("one_thread")

RED, BLUE = (250, 20, 20), (20, 20, 250)


def disk(y, x, radius, size=(120, 160)):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.hypot(rows - y, columns - x) < radius


def item(own=None):
    """A red disk in front of blue."""
    own = disk(50, 70, 25) if own is None else own
    return Item(np.where(own[..., None], RED, BLUE).astype(np.uint8), own.astype(np.uint8), 1)


@pytest.fixture
def pools():
    return [Pool(1.0, [[item()]])]


# examples


def test_views_show_their_objects(pools, monkeypatch):
    monkeypatch.setattr(Views, "_recolored", lambda self, image: image)
    views = Views(pools, np.random.default_rng(0))
    shares = []
    for _ in range(30):
        image, own, others = views.draw()
        assert image.shape == (VIEW_SIDE, VIEW_SIDE, 3)
        assert own.shape == others.shape == (VIEW_SIDE, VIEW_SIDE)
        assert not (own & others).any()
        red = (image[..., 0] > 150) & (image[..., 2] < 100)
        assert (red == (own | others)).mean() > 0.97, "the pixels of the masks are those of the objects"
        shares.append(own.mean())
    assert min(shares) < 0.1
    assert max(shares) > 0.5


def test_views_depend_on_the_generator_alone(pools):
    one, other = (Views(pools, np.random.default_rng(3)).draw() for _ in range(2))
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


def test_pools_leave_out_small_objects_and_named_clips(tmp_path):
    write_pair(tmp_path, "a", disk(50, 70, 25).astype(np.uint8))
    two = disk(50, 70, 25).astype(np.uint8)
    two[100:105, 100:105] = 2
    write_pair(tmp_path, "b", two)
    source = image_source(tmp_path)
    (group,) = pool_of(source, 1, one_group_per_clip=False).groups
    assert [one.id for one in group] == [1, 1]
    assert len(pool_of(source, 1, one_group_per_clip=True).groups) == 2
    assert len(pool_of(source, 1, one_group_per_clip=True, without=[0]).groups) == 1


# prompts

OWN, OTHERS = disk(128, 128, 60, (VIEW_SIDE, VIEW_SIDE)), disk(30, 30, 20, (VIEW_SIDE, VIEW_SIDE))


def test_regions_enclose_most_of_their_object():
    random = np.random.default_rng(0)
    regions = [random_region(OWN, random) for _ in range(60)]
    assert min(np.count_nonzero(OWN & one) for one in regions) > 0.9 * np.count_nonzero(OWN)
    assert max(np.count_nonzero(one) for one in regions) < 2.2 * np.count_nonzero(OWN)
    assert len({one.tobytes() for one in regions}) == 60


def test_spoiled_masks_are_wrong_in_different_ways():
    random = np.random.default_rng(0)
    masks = [spoiled(OWN, OTHERS, random) for _ in range(60)]
    assert any(not one.any() for one in masks)
    assert any((one & OTHERS).any() for one in masks)
    assert any((OWN & ~one).any() for one in masks)
    assert sum((one == OWN).all() for one in masks) < 15


def test_clicks_are_where_a_mask_is_wrong():
    random = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        shown = spoiled(OWN, OTHERS, random)
        click = random_click(shown, OWN, random)
        if click is None:
            assert (shown == OWN).all()
            continue
        (x, y), add = click
        assert shown[int(y), int(x)] != add
        assert OWN[int(y), int(x)] == add
        kinds.add(add)
    assert kinds == {True, False}


# runs


def trained(pools, steps, state=None, total=4, seed=5):
    torch.manual_seed(0)
    training = ClickTraining(ClickNetwork(), pools, total, seed)
    if state is not None:
        training.restore(state)
    losses = [training.train_step() for _ in range(steps)]
    return training, losses


def test_an_interrupted_run_ends_with_the_same_weights(pools, monkeypatch):
    monkeypatch.setattr(clicks, "_BATCH", 2)
    whole, losses = trained(pools, 4)
    half, first = trained(pools, 2)
    rest, second = trained(pools, 2, half.state())
    assert losses == first + second
    assert np.isfinite(losses).all()
    assert rest.step == 4
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, rest.average.state_dict()[name]), name
    torch.manual_seed(0)
    start = ClickNetwork()
    kept = [start.stem, *start.stages[:FROZEN]], [whole.network.stem, *whole.network.stages[:FROZEN]]
    for before, after in zip(*kept, strict=True):
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor, after.state_dict()[name]), name
    assert not torch.equal(start.predict.weight, whole.network.predict.weight)


@pytest.mark.slow
def test_a_run_learns_one_object_by_heart(pools, monkeypatch):
    monkeypatch.setattr(clicks, "_BATCH", 2)
    monkeypatch.setattr(clicks, "_SCHEDULE", Schedule("cosine", warmup=5))
    _, losses = trained(pools, 60, total=60)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10]), losses


@pytest.fixture
def data(tmp_path):
    davis = write_davis(tmp_path / "davis", names=("blob", "bear"), split_file="ImageSets/2016/train.txt", frames=3)
    for seed in range(11):
        (frame,) = SyntheticClip(seed, frames=1, height=64, width=96, objects=1, object_size=(0.4, 0.5))
        write_pair(tmp_path / "stills", f"{seed:02}", frame.ids)
    return davis, tmp_path / "stills"


def test_the_data_leave_out_what_is_scored(data):
    (videos, stills), validation = clicks.data_of(*data)
    assert len(videos.groups) == 1, "bear is held out"
    assert {"bear", "bmx-bumps", "car-turn", "dance-jump", "flamingo"} == set(clicks.HELD_OUT)
    assert len(validation) == 1
    assert len(stills.groups[0]) == 10
    assert not any((validation[0].image == one.image).all() for one in stills.groups[0])


@pytest.mark.slow
def test_a_run_writes_weights_and_goes_on(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clicks, "_BATCH", 1)
    monkeypatch.setattr(clicks, "_SAVE_EVERY", 1)
    monkeypatch.setattr(clicks, "ClickTraining", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        clicks.train(ClickNetwork(), *data, tmp_path / "run", 3, 0)
    monkeypatch.undo()
    monkeypatch.setattr(clicks, "_BATCH", 1)
    clicks.train(ClickNetwork(), *data, tmp_path / "run", 3, 0)
    said = capsys.readouterr().out
    assert "going on at step 2" in said
    assert re.search(r"step 3: J after 0 to 5 clicks (\d+\.\d, ){5}\d+\.\d", said)
    load_click_network(tmp_path / "run" / "clicks.safetensors")


class Interrupted(ClickTraining):
    """A run that ends after its second step."""

    def train_step(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return super().train_step()


def test_a_run_goes_on_only_as_it_began(pools):
    training, _ = trained(pools, 0)
    for name, changes in {"steps": {"total": 5}, "seed": {"seed": 6}}.items():
        with pytest.raises(InputError, match=rf"^{name}: found \d, expected \d as in the checkpoint of this run"):
            trained(pools, 0, training.state(), **changes)


def test_a_damaged_checkpoint_is_refused(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of a training run"):
        clicks.train(ClickNetwork(), *data, tmp_path / "run", 3, 0)


def test_too_few_stills_are_refused(data, tmp_path):
    write_pair(tmp_path / "few", "one", disk(50, 70, 25).astype(np.uint8))
    with pytest.raises(
        InputError, match="few: found too few objects, expected some to train on and some for validation"
    ):
        clicks.data_of(data[0], tmp_path / "few")


@pytest.mark.parametrize("there", [True, False])
def test_errors_are_one_line(data, tmp_path, monkeypatch, there):
    monkeypatch.setattr(clicks, "load_trunk", lambda network: None)
    app = typer.Typer()
    app.command()(clicks.main)
    stills = tmp_path / "none" if not there else data[1]
    davis = data[0] if not there else tmp_path / "none"
    done = CliRunner().invoke(app, [str(davis), str(stills), "--output", str(tmp_path / "run")])
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert "none" in line
    assert "no such" in line


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "stm_fast.training.clicks", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--steps" in done.stdout
