"""Scripts written for SAM 2's video predictor run with another import, and their verbs behave as there."""

import re
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stm_fast import InputError, VideoSegmenter
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.inference.objects import label
from stm_fast.sam2 import SAM2VideoPredictor, VideoPredictor, build_sam2_video_predictor, build_sam2_video_predictor_hf
from stm_fast.video import open_frames
from video_files import needs_av, write_video

FRAMES, HEIGHT, WIDTH = 8, 96, 160
LAST = FRAMES - 1
SIZES = {"min_size": 128}
needs_opencv = pytest.mark.skipif(find_spec("cv2") is None, reason="OpenCV is not installed")


@pytest.fixture(scope="module")
def clip():
    return SyntheticClip(seed=5, frames=FRAMES, height=HEIGHT, width=WIDTH, objects=2, object_size=(0.2, 0.25))


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    frames = tmp_path_factory.mktemp("frames")
    for index, picture in enumerate(clip):
        Image.fromarray(picture.image).save(frames / f"{index:05d}.jpg", quality=95)
    return frames


@pytest.fixture(scope="module")
def predictor():
    return VideoPredictor.from_pretrained(**SIZES)


@pytest.fixture
def state(predictor, folder):
    return predictor.init_state(folder)


def jaccard(found, expected):
    return float((found & expected).sum() / (found | expected).sum())


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def tracked(predictor, state, **options):
    """The masks of a propagation, by frame and object, as scripts for SAM 2 collect them."""
    return {
        frame_idx: {obj_id: (logits[k, 0] > 0.0).cpu().numpy() for k, obj_id in enumerate(obj_ids)}
        for frame_idx, obj_ids, logits in predictor.propagate_in_video(state, **options)
    }


def same(first, second):
    return first.keys() == second.keys() and all(
        first[index].keys() == second[index].keys()
        and all(np.array_equal(first[index][k], second[index][k]) for k in first[index])
        for index in first
    )


def test_a_script_on_a_folder_of_frames(clip, folder, caplog):
    sam2_checkpoint = "checkpoints/sam2.1_hiera_large.pt"
    model_cfg = "configs/sam2.1/sam2.1_hiera_l.yaml"
    predictor = build_sam2_video_predictor(model_cfg, sam2_checkpoint, device="cpu", vos_optimized=True, **SIZES)
    assert f"{sam2_checkpoint}: weights of SAM 2 do not fit" in caplog.text

    inference_state = predictor.init_state(video_path=str(folder))
    _, out_obj_ids, out_mask_logits = predictor.add_new_mask(
        inference_state=inference_state, frame_idx=0, obj_id=1, mask=clip.ids(0) == 1
    )
    assert (out_obj_ids, out_mask_logits.shape) == ([1], (1, 1, HEIGHT, WIDTH))
    predictor.add_new_mask(inference_state, 0, 2, torch.from_numpy(clip.ids(0) == 2))
    video_segments = tracked(predictor, inference_state)
    assert list(video_segments) == list(range(FRAMES))
    assert min(jaccard(video_segments[i][k], clip.ids(i) == k) for i in video_segments for k in (1, 2)) > 0.75

    # a correction of one object, then the video again
    predictor.add_new_mask(inference_state, LAST - 1, 2, clip.ids(LAST - 1) == 2)
    corrected = tracked(predictor, inference_state)
    assert np.array_equal(corrected[LAST - 1][2], clip.ids(LAST - 1) == 2)
    scores = [jaccard(masks[LAST][2], clip.ids(LAST) == 2) for masks in (video_segments, corrected)]
    assert scores[1] > scores[0] + 0.02

    # without the object that is no longer wanted
    obj_ids, updated_frames = predictor.remove_object(inference_state, 2)
    assert (obj_ids, [index for index, _ in updated_frames]) == ([1], [0, LAST - 1])
    for index, logits in updated_frames:
        assert logits.shape == (1, 1, HEIGHT, WIDTH)
        assert jaccard((logits[0, 0] > 0).numpy(), clip.ids(index) == 1) > 0.75
    assert [list(masks) for masks in tracked(predictor, inference_state).values()] == [[1]] * FRAMES

    predictor.reset_state(inference_state)
    assert inference_state["obj_ids"] == []


@needs_av
@needs_opencv
def test_a_script_on_a_video_from_its_middle_in_both_directions(clip, tmp_path):
    video = write_video(tmp_path / "clip.mp4", [picture.image for picture in clip], encoder={"crf": "10"})
    predictor = SAM2VideoPredictor.from_pretrained("facebook/sam2-hiera-tiny", **SIZES)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        state = predictor.init_state(str(video), offload_video_to_cpu=True, async_loading_frames=True)
        middle = clip.ids(4) == 2
        frame_idx, object_ids, masks = predictor.add_new_points_or_box(state, 4, 70, box=box_of(middle))
        assert (frame_idx, object_ids) == (4, [70])
        assert jaccard((masks[0, 0] > 0).numpy(), middle) > 0.7
        found = {}
        for reverse in (False, True):
            for frame_idx, object_ids, masks in predictor.propagate_in_video(state, reverse=reverse):
                found.setdefault(frame_idx, []).append((masks[object_ids.index(70), 0] > 0.0).numpy())
    assert sorted(found) == list(range(FRAMES))
    assert len(found[4]) == 2
    assert min(jaccard(masks[0], clip.ids(index) == 2) for index, masks in found.items()) > 0.65


def test_one_given_mask_gives_the_masks_of_the_engine(predictor, state, clip, folder):
    first = np.where(clip.ids(0) > 0, clip.ids(0) + 6, 0)  # ids 7 and 8
    for number in (7, 8):
        predictor.add_new_mask(state, 0, number, first == number)
    segmenter = VideoSegmenter(predictor.model, **SIZES)
    found = tracked(predictor, state)
    for frame in open_frames(folder):
        picture = torch.from_numpy(frame.image).permute(2, 0, 1)
        prob = segmenter.step(picture, torch.from_numpy(first) if frame.index == 0 else None)
        expected = label(prob, segmenter.object_ids).numpy()
        for number in (7, 8):
            assert np.array_equal(found[frame.index][number], expected == number)


def test_logits_are_those_of_probabilities(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.ids(0) == 1)
    segmenter = VideoSegmenter(predictor.model, **SIZES)
    for (frame_idx, _, logits), frame in zip(predictor.propagate_in_video(state), state.reader, strict=True):
        picture = torch.from_numpy(frame.image).permute(2, 0, 1)
        prob = segmenter.step(picture, torch.from_numpy(clip.ids(0) == 1).int() if frame_idx == 0 else None)
        # with one object, its logit is that of its probability
        assert torch.allclose(logits[0, 0].sigmoid(), prob[1], atol=1e-5)
        assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2, 3, 4, 5, 6, 7]),
        ({"reverse": True}, [2, 1, 0]),
        ({"start_frame_idx": 5}, [5, 6, 7]),
        ({"start_frame_idx": 5, "reverse": True}, [5, 4, 3, 2, 1, 0]),
        ({"start_frame_idx": 1, "max_frame_num_to_track": 2}, [1, 2, 3]),
        ({"start_frame_idx": 6, "max_frame_num_to_track": 2, "reverse": True}, [6, 5, 4]),
        ({"start_frame_idx": np.int64(7), "max_frame_num_to_track": 0}, [7]),
        ({"start_frame_idx": 0, "reverse": True}, []),
    ],
)
def test_frames_of_a_propagation(predictor, state, clip, options, expected):
    for index in (4, 2):
        predictor.add_new_mask(state, index, 1, clip.ids(index) == 1)
    assert list(tracked(predictor, state, **options)) == expected


def test_later_masks_count_in_earlier_frames(predictor, state, clip):
    """As in SAM 2, what is given ahead is remembered from the start."""
    wrong = np.roll(clip.ids(0) == 1, 40, axis=1)
    predictor.add_new_mask(state, 0, 1, clip.ids(0) == 1)
    alone = tracked(predictor, state, max_frame_num_to_track=2)
    predictor.add_new_mask(state, 4, 1, clip.ids(4) == 1)
    together = tracked(predictor, state, max_frame_num_to_track=2)
    assert np.array_equal(alone[0][1], together[0][1])
    assert not np.array_equal(alone[2][1], together[2][1])
    assert jaccard(together[2][1], clip.ids(2) == 1) > jaccard(alone[2][1], clip.ids(2) == 1) - 0.01
    assert jaccard(together[2][1], wrong) < 0.5


def test_results_do_not_depend_on_the_order_of_calls(predictor, folder, clip):
    states = [predictor.init_state(folder) for _ in range(3)]
    for state, order in zip(states, [(1, 6, 3), (6, 3, 1), (3, 1, 6)], strict=True):
        for index in order:
            predictor.add_new_mask(state, index, 5, clip.ids(index) == 2)
    forward, backward = tracked(predictor, states[0]), tracked(predictor, states[0], reverse=True)
    backward_first, forward_second = tracked(predictor, states[1], reverse=True), tracked(predictor, states[1])
    assert same(forward, forward_second)
    assert same(backward, backward_first)
    # what was taken back is as if it had never been given
    predictor.add_new_mask(states[2], 2, 5, clip.ids(2) == 1)
    predictor.clear_all_prompts_in_frame(states[2], 2, 5, need_output=False)
    predictor.add_new_mask(states[2], 4, 9, clip.ids(4) == 1)
    predictor.remove_object(states[2], 9)
    assert same(forward, tracked(predictor, states[2]))
    predictor.reset_state(states[2])
    for index in (1, 3, 6):
        predictor.add_new_mask(states[2], index, 5, clip.ids(index) == 2)
    assert same(forward, tracked(predictor, states[2]))


def test_tracking_on_uses_the_masks_of_the_frame_before(predictor, folder, clip):
    known, forgotten = predictor.init_state(folder), predictor.init_state(folder)
    for state in (known, forgotten):
        predictor.add_new_mask(state, 0, 1, clip.ids(0) == 1)
    tracked(predictor, known, max_frame_num_to_track=5)
    on, jumped = (tracked(predictor, state, start_frame_idx=6) for state in (known, forgotten))
    assert not same(on, jumped)
    assert jaccard(on[7][1], clip.ids(7) == 1) > 0.75
    # in the other direction, the frame before is the one after
    back, jumped = (tracked(predictor, state, start_frame_idx=4, reverse=True) for state in (known, forgotten))
    assert not same(back, jumped)


def test_objects_are_added_while_others_are_tracked(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1000, clip.ids(0) == 1)
    tracked(predictor, state, max_frame_num_to_track=3)
    frame_idx, obj_ids, logits = predictor.add_new_mask(state, 3, -5, clip.ids(3) == 2)
    assert (frame_idx, obj_ids) == (3, [1000, -5])
    # the mask that was found there for the other object
    assert jaccard((logits[0, 0] > 0).numpy(), clip.ids(3) == 1) > 0.75
    found = tracked(predictor, state, start_frame_idx=3)
    assert list(found[3]) == [1000, -5]
    assert min(jaccard(found[i][k], clip.ids(i) == n) for i in found for k, n in ((1000, 1), (-5, 2))) > 0.75


def test_given_masks_come_back_even_where_they_overlap(predictor, state, clip):
    one, wide = clip.ids(0) == 1, clip.ids(0) > 0
    predictor.add_new_mask(state, 0, 1, one.astype(np.uint8) * 255)
    _, _, logits = predictor.add_new_mask(state, 0, 2, torch.from_numpy(wide).float())
    for found in (logits, next(predictor.propagate_in_video(state))[2]):
        assert np.array_equal((found[:, 0] > 0).numpy(), np.stack([one, wide]))


def test_a_mask_of_another_size_is_resized(predictor, state, clip):
    coarse = clip.ids(0)[::2, ::2] == 1
    _, _, logits = predictor.add_new_mask(state, 0, 1, coarse)
    assert np.array_equal((logits[0, 0] > 0).numpy(), coarse.repeat(2, 0).repeat(2, 1))


def test_frames_are_decoded_when_they_are_needed(predictor, folder, tmp_path, clip):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / f"{LAST:05d}.jpg"
    damaged.write_bytes(damaged.read_bytes()[:1500])
    state = predictor.init_state(tmp_path)
    predictor.add_new_mask(state, 0, 1, clip.ids(0) == 1)
    assert list(tracked(predictor, state, max_frame_num_to_track=LAST - 1)) == list(range(LAST))
    with pytest.raises(InputError, match=damaged.name):
        tracked(predictor, state)


def test_a_propagation_that_is_not_finished_leaves_no_thread(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.ids(0) == 1)
    before = {thread for thread in threading.enumerate() if thread.name.startswith("stm_fast")}
    running = predictor.propagate_in_video(state)
    next(running)
    running.close()
    assert {thread for thread in threading.enumerate() if thread.name.startswith("stm_fast")} <= before


def test_the_memory_may_be_in_host_memory(predictor, folder, state, clip):
    offloaded = predictor.init_state(folder, offload_state_to_cpu=True)
    assert offloaded.memory.place == "host"
    for one in (state, offloaded):
        predictor.add_new_mask(one, 0, 1, clip.ids(0) == 1)
    for (_, _, first), (_, _, second) in zip(
        predictor.propagate_in_video(state), predictor.propagate_in_video(offloaded), strict=True
    ):
        assert torch.allclose(first, second, atol=1e-3)


def test_what_scripts_read_from_the_state(predictor, state, clip):
    predictor.add_new_mask(state, 0, 4, clip.ids(0) == 1)
    assert [state[name] for name in ("num_frames", "video_height", "video_width")] == [FRAMES, HEIGHT, WIDTH]
    state["obj_ids"].clear()
    assert state["obj_ids"] == [4]
    with pytest.raises(KeyError):
        state["images"]


@needs_opencv
def test_boxes_and_clicks(predictor, state, clip):
    mask = clip.ids(2) == 1
    box, inside = box_of(mask), np.argwhere(mask).mean(0)[::-1].copy()
    _, _, first = predictor.add_new_points_or_box(state, 2, 1, box=torch.from_numpy(box))
    shares = box / np.array([WIDTH, HEIGHT] * 2)
    _, _, second = predictor.add_new_points_or_box(state, 2, 1, normalize_coords=False, box=shares.reshape(1, 2, 2))
    assert torch.equal(first, second)
    # clicks go with the box given before, and with the clicks given before
    beside = (box[:2] + 1).tolist()
    predictor.add_new_points_or_box(state, 2, 1, points=[beside], labels=[0])
    predictor.add_new_points(state, 2, 1, points=torch.tensor(inside)[None], labels=np.ones(1), clear_old_points=False)
    assert [label for _, label in state.given[2][1].clicks] == [0, 1]
    _, _, third = predictor.add_new_points_or_box(state, 2, 1, [beside, inside.tolist()], [0, 1], box=box)
    clicked = (third[0, 0] > 0).numpy()
    assert jaccard(clicked, mask) > 0.7
    assert clicked[round(inside[1]), round(inside[0])]
    assert not clicked[round(beside[1]), round(beside[0])]
    predictor.add_new_points_or_box(state, 2, 1, [inside.tolist()], [1])
    assert len(state.given[2][1].clicks) == 1
    assert jaccard(tracked(predictor, state)[LAST][1], clip.ids(LAST) == 1) > 0.6


@needs_opencv
def test_clicks_alone(predictor, state, clip):
    mask = clip.ids(0) == 1
    inside, beside = np.argwhere(mask).mean(0)[::-1].tolist(), [2, 2]
    _, _, one = predictor.add_new_points_or_box(state, 0, 1, [inside], [1])
    assert jaccard((one[0, 0] > 0).numpy(), mask) > 0.6
    # a click beside the object, before there is one, is taken after those on it
    _, _, two = predictor.add_new_points_or_box(state, 0, 1, [beside, inside], [0, 1])
    _, _, same = predictor.add_new_points_or_box(state, 0, 1, [inside, beside], [1, 0])
    assert torch.equal(two, same)
    # nothing of before is remembered: not by another state either
    predictor.clear_all_prompts_in_frame(state, 0, 1)
    _, _, again = predictor.add_new_points_or_box(state, 0, 1, [inside], [1])
    assert torch.equal(again, one)
    # as scripts do it: old clicks again, or only the new one
    predictor.add_new_points_or_box(state, 0, 1, [inside], [1])
    _, _, more = predictor.add_new_points_or_box(state, 0, 1, [beside], [0], clear_old_points=False)
    assert torch.equal(more, same)


@needs_opencv
def test_clicks_correct_masks_that_are_known(predictor, state, clip):
    mask = clip.ids(0) == 1
    predictor.add_new_mask(state, 0, 1, mask)
    found = tracked(predictor, state)[3][1]
    (y, x), *_ = np.argwhere(found)
    _, _, less = predictor.add_new_points_or_box(state, 3, 1, [[x + 0.5, y + 0.5]], [0])
    left = (less[0, 0] > 0).numpy()
    assert not left[y, x]
    assert not (left & ~found).any(), "the click takes away from what was found"
    # again, without what the first click changed
    _, _, again = predictor.add_new_points_or_box(state, 3, 1, [[x + 0.5, y + 0.5]], [0])
    assert torch.equal(again, less)
    # given masks too
    (y, x), *_ = np.argwhere(~mask)
    _, _, larger = predictor.add_new_points_or_box(state, 0, 1, [[x + 0.5, y + 0.5]], [1])
    assert (larger[0, 0] > 0).numpy()[mask].all()


def a_mask():
    return np.ones((HEIGHT, WIDTH), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, s: p.add_new_mask(s, FRAMES, 1, a_mask()), "frame_idx: found 8, expected 0 to 7"),
        (lambda p, s: p.add_new_mask(s, -1, 1, a_mask()), "frame_idx: found -1, expected 0 to 7"),
        (lambda p, s: p.add_new_mask(s, 0, 1, a_mask().T), "mask: mask of 96x160, expected 160x96 like the frames"),
        (lambda p, s: p.add_new_mask(s, 0, 1, a_mask()[None]), r"mask: found shape \(1, 96, 160\), expected \[H, W\]"),
        (lambda p, s: p.add_new_points_or_box(s, 0, 1), "object 1 in frame 0: found no box and no points"),
        (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[9, 9]], [0]), "in frame 0: found no click on the object"),
        (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[9, 900]], [1]), "found a click at 9, 900"),
        (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[9, 9]], box=[1, 1, 9, 9]), "found points alone"),
        (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[9]], [1], box=[1, 1, 9, 9]), r"points: found shape \(1, 1\)"),
        (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[9, 9]], [2], box=[1, 1, 9, 9]), "labels: found .2. for 1 p"),
        (lambda p, s: p.add_new_points_or_box(s, 0, 1, box=[1, 1, 9]), "box: found 3 numbers, expected x0, y0, x1, y1"),
        (
            lambda p, s: p.add_new_points_or_box(s, 0, 1, box=[1] * 4, clear_old_points=False),
            "box: found with clear_old",
        ),
        (lambda p, s: p.remove_object(s, 3, strict=True), r"obj_id: found 3, expected one of \[\]"),
        (lambda p, s: p.propagate_in_video_preflight(s), "found no object, expected a mask, a box or clicks"),
        (lambda p, s: next(p.propagate_in_video(s)), "found no object"),
        (lambda p, s: p.init_state("absent.mp4"), "absent.mp4: no such file or folder"),
        (lambda p, s: build_sam2_video_predictor("mine.yaml"), "config_file: found mine.yaml, expected None"),
        (lambda p, s: build_sam2_video_predictor_hf("absent.safetensors"), "absent.safetensors: no such file"),
    ],
)
def test_bad_input_changes_nothing(predictor, state, call, message):
    with pytest.raises(InputError, match=message):
        call(predictor, state)
    assert state["obj_ids"] == []
    assert not state.given


def test_a_negative_number_of_frames_is_refused(predictor, state):
    predictor.add_new_mask(state, 0, 1, a_mask())
    with pytest.raises(InputError, match="max_frame_num_to_track: found -2, expected at least 0"):
        next(predictor.propagate_in_video(state, max_frame_num_to_track=-2))


def test_wrong_types_are_refused(predictor, state):
    for obj_id in ("cat", 1.0, None):
        with pytest.raises(TypeError, match="obj_id"):
            predictor.add_new_mask(state, 0, obj_id, a_mask())
    with pytest.raises(TypeError, match="mask"):
        predictor.add_new_mask(state, 0, 1, np.full((HEIGHT, WIDTH), "x"))


@needs_opencv
def test_a_box_outside_the_frame_is_named(predictor, state):
    with pytest.raises(InputError, match=r"object 1 in frame 0: .*-30"):
        predictor.add_new_points_or_box(state, 0, 1, box=[-30, 0, -20, 9])


def test_removing_objects(predictor, state, clip):
    assert predictor.remove_object(state, 1) == ([], [])
    for number in (1, 2):
        predictor.add_new_mask(state, number, number, clip.ids(number) == number)
    tracked(predictor, state)
    assert predictor.remove_object(state, 1, need_output=False) == ([2], [])
    on = next(state.track(VideoSegmenter(predictor.model, **SIZES), LAST))
    assert on.ids == [state.ids[2]]
    # a new object does not get the masks found for the one that is gone
    _, obj_ids, _ = predictor.add_new_mask(state, 0, 3, np.zeros_like(a_mask()))
    assert obj_ids == [2, 3]
    assert not (predictor.clear_all_prompts_in_frame(state, 0, 3)[2][1] > 0).any()
    with pytest.raises(InputError, match="found nothing for object 3"):
        predictor.propagate_in_video_preflight(state)
    assert predictor.remove_object(state, 3) == ([2], [])
    assert predictor.remove_object(state, 2) == ([], [])


def test_255_objects_at_most(predictor, state):
    state.ids = {number: number for number in range(1, 255)}
    state._used = 254
    predictor.add_new_mask(state, 0, 7777, a_mask())
    with pytest.raises(InputError, match="obj_id: found 7778 after 255 other objects"):
        predictor.add_new_mask(state, 0, 7778, a_mask())
    assert len(state["obj_ids"]) == 255


@needs_av
@needs_opencv
@pytest.mark.slow
def test_the_document_runs_as_written(clip, tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[1] / "docs" / "sam2.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    write_video(tmp_path / "clip.mp4", [clip[index].image for index in range(4)], encoder={"crf": "10"})
    Image.fromarray(clip.ids(0)).save(tmp_path / "first.png")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(example, "sam2.md", "exec"), found)
    assert sorted(found["segments"]) == [0, 1, 2, 3]
    assert min(jaccard(found["segments"][i][k], clip.ids(i) == k) for i in range(4) for k in (1, 2)) > 0.7
    for line in re.findall(r"`(from stm_fast\.sam2 import \w+)`", text):
        exec(line, {})
