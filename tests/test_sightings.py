"""Objects that are found, doubtful or lost, by hand and through the segmenter."""

import numpy as np
import pytest
import torch

from stm_fast import VideoSegmenter
from stm_fast.inference.engine import Segmentation
from stm_fast.inference.objects import label, object_scores
from stm_fast.inference.sightings import Sighting, Watch
from stm_fast.network import stm_resnet18

SIZE = (20, 20)


def frame_with(pixels, probability=0.9, others=0.0):
    """The arguments of `see`: an object with the id 7 in the first pixels, and a little of it in the others."""
    plane = torch.full((SIZE[0] * SIZE[1],), others)
    plane[:pixels] = probability
    prob = torch.stack([1 - plane, plane]).reshape(2, *SIZE)
    return prob, label(prob, [7]), [7]


def states(*frames):
    watch = Watch()
    return [watch.see(*frame)[0].state for frame in frames]


def test_a_sighting_has_the_pixels_their_mean_probability_and_the_expected_j():
    [one] = Watch().see(*frame_with(100, 0.8, 0.1))
    assert one[:2] == (7, 100)
    assert one.probability == pytest.approx(0.8)
    assert one.score == pytest.approx(80 / (100 + 30))
    [none] = Watch().see(*frame_with(0, 0, 0.1))
    assert none == Sighting(7, 0, 0.0, 0.0, "lost")
    assert Watch().see(torch.ones(1, *SIZE), torch.zeros(SIZE, dtype=torch.uint8), []) == []


def test_an_object_is_lost_with_few_of_the_pixels_of_its_last_sighting():
    assert states(frame_with(200), frame_with(0), frame_with(9), frame_with(11))[1:] == ["lost", "lost", "doubtful"]
    assert states(frame_with(5), frame_with(5)) == ["found", "found"]


def test_the_first_frame_is_compared_with_areas_before_it():
    seen = [Watch(areas).see(*frame_with(9))[0].state for areas in ({}, {7: 200}, {7: 100})]
    assert seen == ["found", "lost", "doubtful"]


def test_an_object_is_doubtful_where_it_is_improbable_or_its_size_is_unusual():
    assert states(frame_with(100, 0.8), frame_with(100, 0.65)) == ["found", "doubtful"]
    assert states(*map(frame_with, (100, 200, 400, 200, 100))) == ["found"] * 5
    assert states(*map(frame_with, (100, 201, 250, 100, 49, 6, 4, 50))) == [
        *["found", "doubtful", "doubtful", "found", "doubtful", "doubtful", "lost", "found"]
    ]


def test_an_object_that_stays_another_size_is_found_again():
    """100 pixels follow 300 by 2 % a frame: 150 after 21 frames."""
    found = states(frame_with(100), *[frame_with(300)] * 30)
    assert found == ["found"] + ["doubtful"] * 21 + ["found"] * 9


def test_a_given_mask_is_found_whatever_its_size():
    watch = Watch()
    seen = [watch.see(*frame_with(pixels), given=[7])[0].state for pixels in (100, 3, 0)]
    assert [*seen, watch.see(*frame_with(1))[0].state] == ["found", "found", "found", "doubtful"]


def test_a_watch_that_notes_the_past_continues_it():
    frames = [frame_with(pixels) for pixels in (100, 30, 0, 4, 90, 40)]
    watch = Watch()
    seen = [watch.see(*frame)[0] for frame in frames]
    assert [one.state for one in seen] == ["found", "doubtful", "lost", "lost", "found", "doubtful"]
    for at, frame in enumerate(frames):
        resumed = Watch()
        for earlier in seen[:at]:
            resumed.note(earlier)
        assert resumed.see(*frame) == [seen[at]]


def test_the_segmenter_watches_what_it_propagates():
    torch.manual_seed(0)
    model = stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16)
    mask = np.zeros((32, 48), np.uint8)
    mask[4:20, 8:24] = 3
    frames = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 48), dtype=np.uint8)
    results = list(VideoSegmenter(model).propagate(frames, {1: mask}))
    assert list(results[0].sightings) == []
    [given], [predicted] = results[1].sightings, results[2].sightings
    assert given == Sighting(3, 256, 1.0, 1.0, "found")
    assert predicted.pixels == (results[2].mask == 3).sum()
    assert predicted.score == pytest.approx(results[2].scores.item())


def test_a_score_is_the_expected_j_of_a_mask():
    """Four pixels: two of the object, at 0.9 and 0.6, and one of the others at 0.3."""
    object_3 = torch.tensor([[0.9, 0.6, 0.3, 0.0]])
    lost = torch.tensor([[0.05, 0.0, 0.2, 0.0]])
    found = Segmentation(0, torch.stack([1 - object_3 - lost, object_3, lost]), [3, 9])
    assert found.mask.tolist() == [[3, 3, 0, 0]]
    assert found.scores.tolist() == pytest.approx([1.5 / 2.3, 0.0])


def test_certain_objects_score_1_and_absent_ones_0():
    prob = torch.zeros(3, 4, 4)
    prob[0], prob[1, :2], prob[0, :2] = 1, 1, 0
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[:2] = 200
    assert object_scores(prob, mask, [200, 7]).tolist() == [1, 0]
    assert object_scores(prob[:1], torch.zeros_like(mask), []).shape == (0,)
