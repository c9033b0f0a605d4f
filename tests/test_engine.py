"""The engine against the published numbers and the plain loop; objects that are added and deleted."""

import copy
import math

import pytest
import torch
from torch.nn.functional import interpolate

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network import STM, stm_resnet18

SIZE = (40, 56)
PIXELS = 3 * 4  # of a frame of this size at stride 16


@pytest.fixture(scope="module")
def model() -> STM:
    torch.manual_seed(0)
    return stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()


def clip(count, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=generator)


def square(object_id, top, left, size=SIZE, side=15):
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[top : top + side, left : left + side] = object_id
    return mask


def two_objects(size=SIZE):
    return square(1, 5, 5, size) + square(7, 20, 25, size)


def segment(model, video, masks, **options):
    """The results of a whole clip, and the segmenter after it."""
    segmenter = VideoSegmenter(model, **options)
    return list(segmenter.propagate(video, masks)), segmenter


@torch.no_grad()
def plain_loop(model, video, masks, every):
    """The published loop, with torch.cat and a separate memory for each object: probabilities of each frame.

    masks: frame -> {object id: plane [H, W]}; a given object is exact, and no other object covers its pixels.
    """
    ids, kept, temporary, probs = [], {}, {}, []
    for t, frame in enumerate(video):
        if probs and ids:
            key, value = model.memorize(video[t - 1], probs[-1][1:])
            temporary = {i: (key[n : n + 1, :, None], value[n : n + 1, :, None]) for n, i in enumerate(ids)}
            if (t - 1) % every == 0 or t - 1 in masks:
                for i, memory in temporary.items():
                    kept.setdefault(i, []).append(memory)
                temporary = {}
        prob = torch.zeros(1 + len(ids), *frame.shape[1:])
        if ids:
            features, reads = model.encode_query(frame), []
            for i in ids:
                parts = kept.get(i, []) + ([temporary[i]] if i in temporary else [])
                keys, values = (torch.cat(tensors, 2).flatten(2) for tensors in zip(*parts, strict=True))
                scores = features.key.flatten(2).mT @ keys / math.sqrt(model.key_dim)  # [1, hw, T h w]
                reads.append((values @ scores.softmax(2).mT).unflatten(2, features.key.shape[2:]))
            prob = model.decode(torch.cat(reads), features).softmax(0)
        for i in masks.get(t, {}):
            if i not in ids:
                ids.append(i)
                prob = torch.cat([prob, torch.zeros(1, *frame.shape[1:])])
        if t in masks:
            prob[1:] *= 1 - sum(masks[t].values())
            for i, plane in masks[t].items():
                prob[1 + ids.index(i)] = plane
        prob[0] = 1 - prob[1:].sum(0)
        probs.append(prob)
    return probs


def planes_of(mask):
    return {i: (mask == i).float() for i in mask.unique().tolist() if i}


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_reproduces_the_published_numbers(golden):
    video, planes = golden.frames, golden.planes
    segmenter = VideoSegmenter(golden.model, memory=MemoryConfig(every=golden.every))
    probs = [segmenter.step(video[0], planes, objects=[1, 2])]
    probs += [segmenter.step(frame) for frame in video[1:]]
    found, expected = torch.stack(probs[1:]).log(), golden.logits.log_softmax(1)
    error = ((found - expected).square().mean() / expected.square().mean()).sqrt().item()
    print(f"relative error {error:.2e}")
    assert error < 1e-3


def test_the_engine_is_the_published_loop(model):
    video, mask = clip(9), two_objects()
    expected = plain_loop(model, video, {0: planes_of(mask)}, every=3)
    results, segmenter = segment(model, video, {0: mask}, memory=MemoryConfig(every=3))
    assert [result.frame_index for result in results] == list(range(9))
    assert_close(torch.stack([result.prob for result in results]), torch.stack(expected))
    assert set(results[-1].mask.unique().tolist()) <= {0, 1, 7}
    assert segmenter.bank.rows == [3 * PIXELS + PIXELS] * 2  # frames 0, 3, 6 stay; 7 is there for one step


def test_objects_added_during_a_video_have_their_own_memory(model):
    """Frame 4 adds object 9 and corrects object 1, in one mask; 7 is still predicted."""
    video, masks = clip(8), {0: two_objects(), 4: square(9, 0, 30) + square(1, 12, 3)}
    expected = plain_loop(model, video, {t: planes_of(mask) for t, mask in masks.items()}, every=3)
    results, segmenter = segment(model, video, masks, memory=MemoryConfig(every=3))
    for result, probabilities in zip(results, expected, strict=True):
        assert_close(result.prob, probabilities)
    assert [len(result.object_ids) for result in results] == [2, 2, 2, 2, 3, 3, 3, 3]
    assert segmenter.object_ids == [1, 7, 9]
    # 0, 3, 4 and 6 stay; for object 9, which was added in frame 4, the last two
    assert segmenter.bank.rows == [4 * PIXELS, 4 * PIXELS, 2 * PIXELS]


def test_an_object_added_later_does_not_change_earlier_frames(model):
    video = clip(6)
    alone, _ = segment(model, video, {0: two_objects()})
    joined, _ = segment(model, video, {0: two_objects(), 4: square(9, 0, 40)})
    for index in range(4):
        assert torch.equal(alone[index].prob, joined[index].prob)
    assert not torch.equal(alone[5].prob, joined[5].prob[:3])


def test_a_given_mask_is_exact_where_it_has_an_object(model):
    video = clip(4)
    results, _ = segment(model, video, {0: two_objects(), 3: square(1, 2, 2) + square(200, 20, 30)})
    mask = results[3].mask
    assert (mask[2:17, 2:17] == 1).all()
    assert (mask[20:35, 30:45] == 200).all()
    elsewhere = results[3].prob[:, :, 50:]
    assert (elsewhere[1] == 0).all(), "object 1 was given, so it is nowhere else"
    assert (elsewhere[2] > 0).any(), "object 7 was not given, so it is predicted"


def test_before_the_first_mask_everything_is_background(model):
    results, segmenter = segment(model, clip(5), {2: square(255, 5, 5)})
    for result in results[:2]:
        assert torch.equal(result.prob, torch.ones(1, *SIZE))
        assert result.object_ids == []
        assert not result.mask.any()
    assert torch.equal(results[2].mask, square(255, 5, 5))
    assert segmenter.object_ids == [255]
    # frames 0 and 1 held no object; 2 was given and stays, 3 is the previous one
    assert segmenter.bank.rows == [2 * PIXELS]


def test_planes_are_masks_too(model):
    mask = two_objects()
    by_ids = VideoSegmenter(model).step(clip(1)[0], mask)
    by_planes = VideoSegmenter(model).step(clip(1)[0], torch.stack([mask == 7, mask == 1]), objects=[7, 1])
    assert torch.equal(by_ids[[0, 2, 1]], by_planes)
    soft = VideoSegmenter(model).step(clip(1)[0], torch.full((2, *SIZE), 0.75), objects=[1, 2])
    assert_close(soft, torch.tensor([0, 0.5, 0.5])[:, None, None].expand(3, *SIZE))


def test_probabilities_sum_to_one(model):
    results, _ = segment(model, clip(4), {0: two_objects(), 2: square(9, 0, 0)}, max_size=32)
    for result in results:
        assert result.prob.dtype == torch.float32
        assert_close(result.prob.sum(0), torch.ones(SIZE))


@pytest.mark.parametrize("objects", [1, 5])
def test_the_query_encoder_runs_once_per_frame(model, objects):
    mask = sum(square(i, 0, 8 * i, side=7) for i in range(1, objects + 1))
    calls = []
    handle = model.query_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        results, _ = segment(model, clip(5), {0: mask})
    finally:
        handle.remove()
    assert results[-1].prob.shape[0] == 1 + objects
    assert len(calls) == 4, "the first mask is given, so nothing is read"


def test_without_the_previous_frame(model):
    _, segmenter = segment(model, clip(6), {0: two_objects()}, memory=MemoryConfig(every=4, previous=False))
    assert segmenter.bank.rows == [2 * PIXELS] * 2  # frames 0 and 4


# deleted objects


@torch.no_grad()
def test_deleting_an_object_does_not_change_the_others(model):
    video, segmenter = clip(6), VideoSegmenter(model, memory=MemoryConfig(every=2))
    for result in segmenter.propagate(video[:4], {0: two_objects()}):
        before = result
    values = segmenter.bank.read(model.encode_query(video[3]).key)
    segmenter.delete_objects([1])
    assert segmenter.object_ids == [7]
    assert torch.equal(segmenter.bank.read(model.encode_query(video[3]).key), values[1:])
    assert before.object_ids == [1, 7]
    prob = segmenter.step(video[4])
    assert prob.shape[0] == 2
    assert segmenter.step(video[5], square(1, 0, 0)).shape[0] == 3
    assert segmenter.object_ids == [7, 1]


def test_an_object_of_the_frame_just_seen_can_be_deleted(model):
    video = clip(5)
    segmenter, without = VideoSegmenter(model), VideoSegmenter(model)
    segmenter.step(video[0], two_objects())
    segmenter.step(video[1], square(9, 0, 40))
    segmenter.delete_objects([9, 1])
    assert segmenter.object_ids == [7]
    assert segmenter.step(video[2]).shape[0] == 2
    # and if it was the only one
    without.step(video[0], square(9, 0, 40))
    without.delete_objects([9])
    assert torch.equal(without.step(video[1]), torch.ones(1, *SIZE))
    assert set(without.step(video[2], two_objects())[0].unique().tolist()) == {0, 1}
    assert without.step(video[3]).shape[0] == 3


def test_deleting_all_objects_is_like_starting_without_masks(model):
    video, segmenter = clip(6), VideoSegmenter(model)
    for _ in segmenter.propagate(video[:3], {0: two_objects()}):
        pass
    segmenter.delete_objects(segmenter.object_ids)
    assert torch.equal(segmenter.step(video[3]), torch.ones(1, *SIZE))
    segmenter.step(video[4], square(3, 5, 5))
    fresh = VideoSegmenter(model)
    fresh.step(video[4], square(3, 5, 5))
    assert_close(segmenter.step(video[5]), fresh.step(video[5]))


def test_unknown_ids_cannot_be_deleted(model):
    segmenter = VideoSegmenter(model)
    segmenter.step(clip(1)[0], two_objects())
    with pytest.raises(InputError, match=r"found ids \[2\], expected some of \[1, 7\]"):
        segmenter.delete_objects([1, 2])
    assert segmenter.object_ids == [1, 7]


def test_a_cleared_segmenter_is_like_a_new_one(model):
    used, fresh = VideoSegmenter(model), VideoSegmenter(model)
    for _ in used.propagate(clip(4, size=(48, 32), seed=1), {0: square(5, 0, 0, size=(48, 32))}):
        pass
    used.clear_memory()
    assert used.object_ids == []
    assert used.bank.nbytes == 0
    for after, expected in zip(
        used.propagate(clip(4), {0: two_objects()}), fresh.propagate(clip(4), {0: two_objects()}), strict=True
    ):
        assert after.frame_index == expected.frame_index
        assert torch.equal(after.prob, expected.prob)


def test_a_cleared_segmenter_goes_on_in_the_middle_of_a_video(model):
    video, masks, config = clip(9), {4: two_objects()}, MemoryConfig(every=3)
    whole, middle = (VideoSegmenter(model, memory=config) for _ in range(2))
    expected = list(whole.propagate(video, masks))[4:]
    middle.clear_memory(4)
    found = list(middle.propagate(video[4:], {0: masks[4]}))
    assert middle.bank.frames == whole.bank.frames == [[4, 6]] * 2
    for one, other in zip(found, expected, strict=True):
        assert one.frame_index == other.frame_index
        assert torch.equal(one.prob, other.prob)
    with pytest.raises(InputError, match="frame_index: found -1, expected at least 0"):
        middle.clear_memory(-1)
    middle.clear_memory(4)
    with pytest.raises(InputError, match=r"frame 4: found values up to 255"):
        middle.step(255 * torch.ones_like(video[4]))


# sizes and dtypes


def test_large_frames_are_resized_on_the_way_in_and_masks_on_the_way_out(model):
    size = (80, 120)
    video, mask = clip(3, size), two_objects(size)
    shapes = []
    handle = model.query_encoder.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[-2:]))
    try:
        results, segmenter = segment(model, video, {0: mask}, max_size=40)
    finally:
        handle.remove()
    assert shapes == [(48, 64)] * 2  # 40 x 60, padded
    assert all(result.prob.shape[1:] == size for result in results)
    assert torch.equal(results[0].mask, mask), "a given mask keeps its own resolution"
    assert segmenter.bank.rows == [2 * 3 * 4] * 2


def test_small_frames_are_not_enlarged_unasked(model):
    plain, _ = segment(model, clip(3), {0: two_objects()})
    limited, _ = segment(model, clip(3), {0: two_objects()}, max_size=480, min_size=min(SIZE))
    assert torch.equal(plain[2].prob, limited[2].prob)


def test_small_frames_are_enlarged_only_for_the_network(model):
    video, mask = clip(3), two_objects()
    double = tuple(2 * side for side in SIZE)
    results, segmenter = segment(model, video, {0: mask}, max_size=2 * min(SIZE), min_size=2 * min(SIZE))
    assert segmenter.bank.rows == [2 * 5 * 7] * 2
    assert torch.equal(results[0].mask, mask), "a given mask keeps its own resolution"

    larger = interpolate(video, size=double, mode="bilinear", align_corners=False, antialias=True)
    planes = torch.stack([mask == object_id for object_id in segmenter.object_ids]).float()
    planes = interpolate(planes[None], size=double, mode="bilinear", align_corners=False, antialias=True)[0]
    by_hand = VideoSegmenter(model)
    by_hand.step(larger[0], planes, segmenter.object_ids)
    for result, frame in zip(results[1:], larger[1:], strict=True):
        prob = by_hand.step(frame)
        expected = interpolate(prob[None], size=SIZE, mode="bilinear", align_corners=False, antialias=True)[0]
        torch.testing.assert_close(result.prob, expected)


def test_frames_are_uint8_or_float(model):
    video = (clip(3) * 255).round().to(torch.uint8)
    as_bytes, _ = segment(model, video, {0: two_objects()})
    as_floats, _ = segment(model, video.float() / 255, {0: two_objects()})
    assert torch.equal(as_bytes[2].prob, as_floats[2].prob)
    halves, _ = segment(model, video.to(torch.float16) / 255, {0: two_objects()}, max_size=32)
    assert halves[2].prob.shape == (3, *SIZE)


def test_a_bfloat16_network_gives_float32_probabilities(model):
    results, _ = segment(copy.deepcopy(model).bfloat16(), clip(3), {0: two_objects()}, max_size=32)
    assert results[2].prob.dtype == torch.float32
    assert results[2].prob.isfinite().all()


@pytest.mark.parametrize("size", [(17, 33), (16, 16), (1, 40)])
def test_odd_sizes(model, size):
    results, _ = segment(model, clip(3, size), {0: torch.ones(size, dtype=torch.uint8)})
    assert results[2].prob.shape == (2, *size)


# memory use of a long video


@pytest.mark.slow
def test_nothing_but_the_bank_grows_with_the_video(model):
    frame, segmenter = clip(1, (16, 16))[0], VideoSegmenter(model, memory=MemoryConfig(every=5, frames=60))
    segmenter.step(frame, torch.ones(16, 16, dtype=torch.uint8))
    segmenter.step(frame)
    at_start = segmenter.bank.nbytes
    live = []
    for t in range(2, 300):
        segmenter.step(frame)
        if t in (20, 299):
            live.append(_live_tensor_bytes())
    assert live[0] == live[1]
    assert segmenter.bank.rows == [60 + 1], "frames 0, 5 ... 295 stay, 298 is the previous one"
    assert segmenter.bank.nbytes == at_start, "the size was known"


def _live_tensor_bytes():
    import gc

    gc.collect()
    return sum(o.nbytes for o in gc.get_objects() if type(o) is torch.Tensor)


def test_propagate_holds_one_frame(model):
    taken = []

    def frames():
        for t in range(4):
            taken.append(t)
            yield clip(1, seed=t)[0]

    for result in VideoSegmenter(model).propagate(frames(), {0: two_objects()}):
        assert taken[-1] == result.frame_index


def test_no_graph_is_kept(model):
    assert any(parameter.requires_grad for parameter in model.parameters())
    results, _ = segment(model, clip(2), {0: two_objects()})
    assert results[1].prob.is_inference()
    assert not results[1].prob.requires_grad


# bad input


@pytest.mark.parametrize(
    ("frame", "mask", "words"),
    [
        (torch.rand(1, 40, 56), None, r"frame: found shape \(1, 40, 56\), expected \[3, H, W\]"),
        (torch.rand(3, 40, 48), None, "frame 1: found 48x40 pixels, expected 56x40 like the first frame"),
        (clip(1)[0], torch.ones(40, 48), "mask of frame 1: found 48x40 pixels, expected 56x40"),
        (clip(1)[0], torch.zeros(SIZE, dtype=torch.uint8), "mask: found no object"),
        (clip(1)[0], torch.ones(SIZE), r"found torch.float32 of shape \(40, 56\), expected integer ids"),
        (clip(1)[0], torch.full(SIZE, 256), r"found object ids \[256\], expected different ids from 1 to 255"),
        (clip(1)[0], torch.full(SIZE, -1), r"found object ids \[-1\]"),
        (clip(1)[0], torch.ones(2, *SIZE), r"found planes \(2, 40, 56\) and objects None, expected an id for each"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(model, frame, mask, words):
    video = clip(3)
    segmenter, untouched = VideoSegmenter(model), VideoSegmenter(model)
    for each in (segmenter, untouched):
        each.step(video[0], two_objects())
    with pytest.raises(InputError, match=words) as caught:
        segmenter.step(frame, mask)
    assert "\n" not in str(caught.value)
    for t in (1, 2):
        assert torch.equal(segmenter.step(video[t]), untouched.step(video[t]))


def test_other_bad_input_is_named(model):
    frame = clip(1)[0]
    with pytest.raises(InputError, match="frame 0: found values up to 255, expected float in"):
        VideoSegmenter(model).step(torch.full((3, *SIZE), 255.0))
    with pytest.raises(TypeError, match=r"frame: found torch.int64, expected uint8"):
        VideoSegmenter(model).step(torch.zeros(3, *SIZE, dtype=torch.int64))
    with pytest.raises(InputError, match=r"found planes from 0 to 255, expected values in \[0, 1\]"):
        VideoSegmenter(model).step(frame, two_objects()[None].float().mul(255).clamp(0, 255), objects=[1])
    with pytest.raises(InputError, match=r"found object ids \[2, 2\]"):
        VideoSegmenter(model).step(frame, torch.zeros(2, *SIZE), objects=[2, 2])
    with pytest.raises(InputError, match="max_size: found 8, expected at least 16"):
        VideoSegmenter(model, max_size=8)
    with pytest.raises(InputError, match="min_size: found 0, expected at least 1"):
        VideoSegmenter(model, min_size=0)
    with pytest.raises(InputError, match="min_size: found 48, expected 1 to max_size, 32"):
        VideoSegmenter(model, max_size=32, min_size=48)
    with pytest.raises(InputError, match="backend: found 'abacus', expected"):
        VideoSegmenter(model, backend="abacus")
    with pytest.raises(ValueError, match="every: found 0"):
        MemoryConfig(every=0)


def test_a_backend_that_cannot_run_says_why_before_the_first_frame(model):
    with pytest.raises(InputError, match=r"^backend 'triton' cannot run this memory read: .+"):
        VideoSegmenter(model, backend="triton")
