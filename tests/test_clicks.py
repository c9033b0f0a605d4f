"""The click network, its weights, what it makes of regions and clicks, and a simulated user."""

from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch

from stm_fast.clicks.network import PROMPTS, STAGES, ClickNetwork
from stm_fast.clicks.prompter import ClickPrompter
from stm_fast.clicks.prompting import CLICK_RADIUS, SIDE, Click, Prompts, mask_after, mask_in, planes_of
from stm_fast.clicks.regions import Region
from stm_fast.clicks.user import box_around, depths_of, line_around, next_click, points_of
from stm_fast.clicks.weights import FILE, load_click_network, load_trunk, write_weights
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.network.efficientnet import from_published
from stm_fast.video.first_mask import Box, enclosed

cv2 = pytest.importorskip("cv2")

HEIGHT, WIDTH = 160, 240
(FRAME,) = SyntheticClip(seed=1, frames=1, height=HEIGHT, width=WIDTH, objects=1)
IMAGE, TRUTH = FRAME.image, FRAME.ids == 1
NOTHING = np.zeros_like(TRUTH)
AREA = enclosed(points_of(line_around(TRUTH, 6)), (WIDTH, HEIGHT))


@pytest.fixture(scope="module")
def network():
    return load_click_network()


def overlap(one, other):
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


# the network and its weights


@pytest.mark.parametrize("size", [(32, 32), (64, 320), (96, 32)])
def test_logits_are_as_large_as_the_frame(size):
    torch.manual_seed(0)
    logits = ClickNetwork()(torch.rand(2, 3, *size), torch.zeros(2, PROMPTS, *size))
    assert logits.shape == (2, 1, *size)


def test_all_convolutions_of_the_trunk_have_published_weights(tmp_path, monkeypatch):
    """Named as in the file on the package index: the stem, and blocks counted through all stages."""
    network = ClickNetwork()
    convs = {"_conv_stem": ("_bn0", network.stem)}
    blocks = [block for stage in network.stages for block in stage]
    for number, block in enumerate(blocks):
        parts = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
        for part, norm in parts.items():
            if getattr(block, part) is not None:
                convs[f"_blocks.{number}._{part}_conv"] = (f"_blocks.{number}.{norm}", getattr(block, part))
    state = {}
    for name, (norm, conv) in convs.items():
        state[f"{name}.weight"] = torch.randn_like(conv.weight)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = torch.rand(conv.out_channels)
    assert len(blocks) == sum(stage.blocks for stage in STAGES) == 20
    torch.save(state, tmp_path / "published.pth")
    monkeypatch.setattr("stm_fast.clicks.weights.pretrained_file", lambda name: tmp_path / "published.pth")
    expected = from_published(state, network.stages)
    load_trunk(network)
    for name, tensor in network.state_dict().items():
        if name.startswith(("stem.", "stages.")):
            assert torch.equal(tensor, expected[name]), name
    del state["_blocks.19._bn1.bias"]
    torch.save(state, tmp_path / "published.pth")
    with pytest.raises(InputError, match=r"found no weights for stages\.5\.4\.depthwise\.bias, expected those"):
        load_trunk(network)


def test_weights_are_written_and_read(tmp_path):
    torch.manual_seed(0)
    network = ClickNetwork()
    write_weights(tmp_path / "w.safetensors", network)
    loaded = load_click_network(tmp_path / "w.safetensors")
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_the_package_has_weights_of_half_precision():
    stored = safetensors.torch.load_file(FILE)
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.float16}
    assert FILE.stat().st_size < 8 * 2**20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("predict.bias"), r"missing predict\.bias"),
        (
            lambda state: state.update({"predict.bias": torch.zeros(2)}),
            r"bias of shape \[2\] instead of \[1\]",
        ),
        (
            lambda state: state.update({"predict.bias": torch.ones(1).long()}),
            r"bias of int64 instead of float",
        ),
        (lambda state: state.update({"more": torch.zeros(2)}), "unexpected more"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, words):
    state = safetensors.torch.load_file(FILE)
    change(state)
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file(state, file)
    with pytest.raises(InputError, match=f"other.safetensors: does not fit the network: .*{words}"):
        load_click_network(file)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    bias = {"predict.bias": torch.tensor([torch.nan])}
    safetensors.torch.save_file(safetensors.torch.load_file(FILE) | bias, file)
    with pytest.raises(InputError, match=r"entry predict\.bias holds NaN, expected finite numbers"):
        load_click_network(file)


# masks


def test_a_region_and_a_click_alone_find_the_object(network):
    found = mask_in(network, IMAGE, AREA)
    assert overlap(found, TRUTH) > 0.9
    assert not (found & ~AREA).any()
    assert overlap(AREA, TRUTH) < 0.8
    alone = mask_after(network, IMAGE, NOTHING, Prompts(None, (next_click(NOTHING, TRUTH),)))
    assert overlap(alone, TRUTH) > 0.8


def test_a_click_that_takes_away_from_nothing_leaves_nothing(network):
    assert not mask_after(network, IMAGE, NOTHING, Prompts(None, (Click((50.0, 50.0), False),))).any()


def finds_nothing(monkeypatch):
    """From now on, networks find no object."""
    monkeypatch.setattr(ClickNetwork, "forward", lambda _, frame, prompts: -torch.ones_like(prompts[:, :1]))


@pytest.mark.parametrize("area", [AREA, None])
def test_a_click_does_not_take_away_most_of_a_mask(network, monkeypatch, area):
    finds_nothing(monkeypatch)
    click = Click(next_click(TRUTH, NOTHING).point, False)
    left = mask_after(network, IMAGE, TRUTH, Prompts(area, (click,)))
    assert not left[int(click.point[1]), int(click.point[0])]
    assert np.count_nonzero(left) > 0.75 * np.count_nonzero(TRUTH)
    # what a click alone has found may be far too large
    assert not mask_after(network, IMAGE, TRUTH, Prompts(None, (click,), alone=True)).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (33, 31), (500, 20)])
def test_frames_of_any_size_have_masks(network, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    area = np.ones(size, bool)
    assert mask_in(network, image, area).shape == size
    click = Click((size[1] - 0.5, size[0] - 0.5), True)
    found = mask_after(network, image, ~area, Prompts(None, (click,)))
    assert found[-1, -1]
    less = mask_after(network, image, area, Prompts(area, (Click((0.0, 0.0), False),)))
    assert not less[0, 0]


def test_the_network_sees_the_object_at_one_size(network, monkeypatch):
    """Close to an object of any size, so that its answer takes as long for 4K."""
    seen = []
    monkeypatch.setattr(ClickNetwork, "forward", lambda _, frame, prompts: seen.append(frame.shape) or prompts[:, :1])
    for factor in (1, 8):
        large = np.kron(AREA, np.ones((factor, factor), bool))
        mask_in(network, np.zeros((*large.shape, 3), np.uint8), large)
    assert seen[0] == seen[1]
    assert max(seen[0]) == SIDE


def test_planes_show_the_prompts():
    clicks = (Click((100.5, 60.5), True), Click((20.0, 30.9), False), Click((-50.0, 500.0), True))
    area, shown, adds, takes = planes_of(TRUTH, Prompts(AREA, clicks)) > 0
    np.testing.assert_array_equal(area, AREA)
    np.testing.assert_array_equal(shown, TRUTH)
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    for plane, (across, down) in ((adds, (100, 60)), (takes, (20, 30))):
        away = np.hypot(x - across, y - down)
        assert plane[away < CLICK_RADIUS].all()
        assert not plane[away > CLICK_RADIUS + 1].any()
    assert not planes_of(NOTHING, Prompts(None)).any()


# what the prompter remembers


@pytest.fixture
def asked(monkeypatch):
    """The numbers of clicks, and whether there was a region, of each question to the network."""
    found = []

    def told(network, image, shown, prompts):
        found.append((prompts.area is not None, len(prompts.clicks)))
        return mask_after(network, image, shown, prompts)

    monkeypatch.setattr("stm_fast.clicks.prompter.mask_after", told)
    return found


def test_gestures_are_remembered_by_the_masks_that_they_led_to(network, asked):
    prompter = ClickPrompter(network)
    first = prompter.from_region(IMAGE, Region(Box(*box_around(TRUTH, 4)))).mask
    second = prompter.from_click(IMAGE, first, (5.0, 5.0), True)
    third = prompter.from_click(IMAGE, second, (230.0, 150.0), True)
    assert not any((one == other).all() for one, other in pairwise((first, second, third)))
    prompter.from_click(IMAGE, second, (200.0, 9.0), True)  # after an undo
    prompter.from_click(IMAGE, third ^ AREA, (5.0, 150.0), True)  # after a stroke of the brush
    prompter.from_click(IMAGE[::-1].copy(), third, (5.0, 150.0), True)  # in another frame
    assert asked == [(True, 1), (True, 2), (True, 2), (False, 1), (False, 1)]


def test_an_empty_mask_has_no_gestures(network, asked, monkeypatch):
    """It may be that of another object."""
    finds_nothing(monkeypatch)
    prompter = ClickPrompter(network)
    one = prompter.from_click(IMAGE, NOTHING, (50.5, 50.5), True)
    none = prompter.from_click(IMAGE, one, (50.5, 50.5), False)
    assert one.sum() == 1
    assert not none.any()
    prompter.from_click(IMAGE, none, (90.0, 90.0), True)
    assert asked == [(False, 1), (False, 2), (False, 1)]


def test_a_click_that_changes_nothing_is_forgotten(network, asked):
    prompter = ClickPrompter(network)
    first = prompter.from_region(IMAGE, Region(Box(*box_around(TRUTH, 4)))).mask
    corner = (0.5, 0.5)
    assert not first[0, 0]
    for _ in range(3):
        np.testing.assert_array_equal(prompter.from_click(IMAGE, first, corner, False), first)
    assert asked == [(True, 1)] * 3


def test_masks_of_long_ago_are_forgotten(network, asked, monkeypatch):
    monkeypatch.setattr("stm_fast.clicks.prompter._REMEMBERED", 1)
    prompter = ClickPrompter(network)
    first = prompter.from_region(IMAGE, Region(Box(*box_around(TRUTH, 4)))).mask
    prompter.from_click(IMAGE, first, (5.0, 5.0), True)
    prompter.from_click(IMAGE, first, (5.0, 5.0), True)
    assert asked == [(True, 1), (False, 1)]


# the simulated user


def test_the_user_clicks_in_the_middle_of_what_is_most_wrong():
    shown = TRUTH.copy()
    shown[5:16, 5:16] = True
    assert next_click(shown, TRUTH) == Click((10.5, 10.5), False)
    assert next_click(TRUTH, TRUTH) is None
    too_much, missing = depths_of(shown, TRUTH)
    assert too_much[10, 10] == 6
    assert not missing.any()


def test_a_line_around_an_object_encloses_it():
    for margin in (1, 6, 20):
        area = enclosed(points_of(line_around(TRUTH, margin)), (WIDTH, HEIGHT))
        assert not (TRUTH & ~area).any()
