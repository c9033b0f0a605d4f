"""Frames, masks and ids as users pass them: NumPy arrays work like tensors, and anything else is a one-line error."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from stm_fast.errors import InputError
from stm_fast.inference.augmentation import AugmentedSegmenter
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM, stm_resnet18

H, W = SIZE = (40, 56)
GENERATOR = torch.Generator().manual_seed(0)
FRAMES = torch.randint(0, 256, (3, 3, *SIZE), generator=GENERATOR, dtype=torch.uint8)
MASK = torch.zeros(SIZE, dtype=torch.uint8)
MASK[5:20, 5:20], MASK[20:35, 25:40] = 1, 7
FLOATS = FRAMES.float().div(255)
PICTURES, IDS = FRAMES.numpy(), MASK.numpy()


@pytest.fixture(scope="module")
def model() -> STM:
    torch.manual_seed(0)
    return stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()


def probabilities(model: STM, frames: object, mask: object, objects: object = None) -> Tensor:
    segmenter = VideoSegmenter(model)
    given = [(mask, objects), (None, None), (None, None)]
    return torch.stack([segmenter.step(frame, *more) for frame, more in zip(frames, given, strict=True)])


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def reversed_twice(array):
    """The same numbers with negative strides."""
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1]


def unaligned(array):
    packed = np.zeros(array.shape, dtype=[("", "u1"), ("numbers", array.dtype)])
    packed["numbers"] = array
    return packed["numbers"]


PICTURE_KINDS = {
    "uint8": (FRAMES, PICTURES),
    "read-only": (FRAMES, read_only(PICTURES)),
    "negative strides": (FRAMES, reversed_twice(PICTURES)),
    "float32": (FLOATS, FLOATS.numpy()),
    "float64": (FLOATS, FLOATS.double().numpy()),
    "longdouble": (FLOATS, FLOATS.numpy().astype(np.longdouble)),
    "big-endian": (FLOATS, FLOATS.numpy().astype(">f4")),
    "unaligned": (FLOATS, unaligned(FLOATS.numpy())),
    "float16": (FLOATS.half(), FLOATS.half().numpy()),
}


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_arrays_are_segmented_as_tensors_are(model, kind):
    tensors, arrays = PICTURE_KINDS[kind]
    assert torch.equal(probabilities(model, arrays, IDS), probabilities(model, tensors, MASK))


def test_transposed_arrays_are_segmented_as_tensors_of_those_strides(model):
    arrays = [np.ascontiguousarray(picture.transpose(1, 2, 0)).transpose(2, 0, 1) for picture in PICTURES]
    tensors = [frame.permute(1, 2, 0).contiguous().permute(2, 0, 1) for frame in FRAMES]
    assert torch.equal(probabilities(model, arrays, IDS), probabilities(model, tensors, MASK))


MASK_KINDS = {
    **{str(dtype): IDS.astype(dtype) for dtype in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">u2")},
    "read-only": read_only(IDS),
    "negative strides": reversed_twice(IDS),
    "torch.uint16": MASK.to(torch.uint16),
    "torch.uint64": MASK.to(torch.uint64),
}


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_masks_of_every_integer_dtype_are_accepted(model, kind):
    assert torch.equal(probabilities(model, FRAMES, MASK_KINDS[kind]), probabilities(model, FRAMES, MASK))


@pytest.mark.parametrize("found", [IDS == 7, MASK == 7], ids=["array", "tensor"])
def test_a_bool_mask_is_object_1(model, found):
    assert torch.equal(probabilities(model, FRAMES, found), probabilities(model, FRAMES, (MASK == 7).byte()))


OBJECTS = [[np.int64(1), np.uint8(7)], np.array([1, 7]), torch.tensor([1, 7]), (1, 7), iter([1, 7])]


@pytest.mark.parametrize("objects", OBJECTS, ids=lambda objects: type(objects).__name__)
def test_ids_in_any_container_become_plain_integers(model, objects):
    segmenter = VideoSegmenter(model)
    segmenter.step(FRAMES[0], np.stack([IDS == 1, IDS == 7]), objects)
    assert segmenter.object_ids == [1, 7]
    assert {type(one) for one in segmenter.object_ids} == {int}
    segmenter.delete_objects(np.array([1]))
    assert segmenter.object_ids == [7]


def test_a_clip_may_be_one_array(model):
    results = VideoSegmenter(model).propagate(PICTURES, {np.int64(0): IDS})
    found = torch.stack([result.prob for result in results])
    assert torch.equal(found, probabilities(model, FRAMES, MASK))


@pytest.mark.parametrize(
    "make", [torch.empty_like, lambda frame: torch.empty_like(frame).numpy()], ids=["tensor", "array"]
)
def test_a_buffer_may_be_reused_for_the_next_frame(model, make):
    buffer = make(FLOATS[0])

    def filled():
        for frame in FLOATS:
            buffer[:] = frame
            yield buffer

    assert torch.equal(probabilities(model, filled(), MASK), probabilities(model, FLOATS, MASK))


def made(argument):
    """Makes sparse tensors only when they are used, because other tests count the bytes of all live tensors."""
    return argument() if callable(argument) else argument


FAKE = FakeTensorMode()
CHANNELS_LAST = "frame: found shape (40, 56, 3), expected [3, H, W]"
WRONG_FRAMES = [
    (
        PICTURES[0].transpose(1, 2, 0),
        InputError,
        "frame: found shape (40, 56, 3), expected [3, H, W]; use permute(2, 0, 1)",
    ),
    (
        FRAMES[0].permute(1, 2, 0),
        InputError,
        "frame: found shape (40, 56, 3), expected [3, H, W]; use permute(2, 0, 1)",
    ),
    (PICTURES[:1], InputError, "frame: found shape (1, 3, 40, 56), expected [3, H, W]"),
    (IDS, InputError, "frame: found shape (40, 56), expected [3, H, W]"),
    (FLOATS[0, :, :0], InputError, "frame: found shape (3, 0, 56), expected [3, H, W]"),
    (np.zeros((3, 0, 0), np.uint8), InputError, "frame: found shape (3, 0, 0), expected [3, H, W]"),
    (Image.new("RGB", (W, H)), TypeError, "frame: found Image, expected a tensor or a NumPy array"),
    (PICTURES[0].tolist(), TypeError, "frame: found list, expected a tensor or a NumPy array"),
    (None, TypeError, "frame: found NoneType, expected a tensor or a NumPy array"),
    ("frame.png", TypeError, "frame: found str, expected a tensor or a NumPy array"),
    (PICTURES[0].astype(object), TypeError, "frame: found an array of object, expected an array of numbers"),
    (np.ma.array(PICTURES[0]), TypeError, "frame: found a masked array, expected an array of numbers"),
    (PICTURES[0].astype(np.int64), TypeError, "frame: found torch.int64, expected uint8, or float in [0, 1]"),
    (PICTURES[0] > 3, TypeError, "frame: found torch.bool, expected uint8, or float in [0, 1]"),
    (PICTURES[0].astype(np.complex64), TypeError, "frame: found torch.complex64, expected uint8, or float in [0, 1]"),
    (FLOATS[0].to(torch.float8_e4m3fn), TypeError, "frame: found torch.float8_e4m3fn, expected uint8"),
    (
        lambda: FLOATS[0].to_sparse(),
        TypeError,
        "frame: found a tensor of layout torch.sparse_coo, expected torch.strided",
    ),
    (
        torch.nested.nested_tensor(list(FLOATS[0]), layout=torch.jagged),
        TypeError,
        "frame: found a nested tensor, expected one with a shape",
    ),
    (FLOATS[0].to("meta"), TypeError, "frame: found a fake tensor or one on meta, expected one with values"),
    (FAKE.from_tensor(FLOATS[0]), TypeError, "frame: found a fake tensor or one on meta, expected one with values"),
    (FLOATS[0] * 2 - 1, InputError, "frame 0: found values from -1, expected float in [0, 1], not normalized"),
    (FLOATS[0] * np.nan, InputError, "frame 0: found values from nan, expected float in [0, 1]"),
    (PICTURES[0].astype(np.float32), InputError, "frame 0: found values up to 255, expected float in [0, 1], or uint8"),
]


@pytest.mark.parametrize(("frame", "error", "message"), WRONG_FRAMES, ids=[str(n) for n in range(len(WRONG_FRAMES))])
def test_an_invalid_frame_is_reported(model, frame, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        VideoSegmenter(model).step(made(frame), MASK)
    assert "\n" not in str(caught.value)


WRONG_MASKS = [
    (IDS.tolist(), None, TypeError, "mask: found list, expected a tensor or a NumPy array"),
    (Image.fromarray(IDS), None, TypeError, "mask: found Image, expected a tensor or a NumPy array"),
    (1, None, TypeError, "mask: found int, expected a tensor or a NumPy array"),
    (IDS.astype(object), None, TypeError, "mask: found an array of object, expected an array of numbers"),
    (IDS.astype(np.complex64), None, TypeError, "mask: found torch.complex64, expected integers, bool or float"),
    (
        lambda: MASK.to_sparse(),
        None,
        TypeError,
        "mask: found a tensor of layout torch.sparse_coo, expected torch.strided",
    ),
    (MASK.to("meta"), None, TypeError, "mask: found a fake tensor or one on meta, expected one with values"),
    (FAKE.from_tensor(MASK), None, TypeError, "mask: found a fake tensor or one on meta, expected one with values"),
    (IDS.astype(np.float32), None, InputError, "mask: found torch.float32 of shape (40, 56), expected integer ids"),
    (IDS[None, None], None, InputError, "mask: found shape (1, 1, 40, 56), expected [H, W] or [O, H, W]"),
    (IDS[0], None, InputError, "mask: found shape (56,), expected [H, W] or [O, H, W]"),
    (np.stack([IDS] * 3, 2), [1, 2, 3], InputError, "mask: found shape (40, 56, 3), expected [H, W], or [O, H, W]"),
    (IDS.astype(np.uint64) * 2**62, None, InputError, "expected different ids from 1 to 255"),
    (IDS, [True], TypeError, "objects: found bool, expected integers"),
    (IDS, [1.0], TypeError, "objects: found float, expected integers"),
    (IDS, "17", TypeError, "objects: found str, expected integers, as in [1, 2]"),
    (IDS, 1, TypeError, "objects: found int, expected integers, as in [1, 2]"),
    (IDS, torch.tensor(1), TypeError, "objects: found Tensor, expected integers, as in [1, 2]"),
    (IDS, [2**70], InputError, f"mask: found object ids [{2**70}], expected different ids from 1 to 255"),
]


@pytest.mark.parametrize(
    ("mask", "objects", "error", "message"), WRONG_MASKS, ids=[str(n) for n in range(len(WRONG_MASKS))]
)
def test_an_invalid_mask_is_reported(model, mask, objects, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        VideoSegmenter(model).step(FRAMES[0], made(mask), objects)
    assert "\n" not in str(caught.value)


def test_other_invalid_arguments_of_a_segmenter_are_reported(model):
    for options, message in (
        ({"max_size": 480.5}, "max_size: found float, expected an integer or None"),
        ({"max_size": "480"}, "max_size: found str, expected an integer or None"),
        ({"min_size": True}, "min_size: found bool, expected an integer"),
    ):
        with pytest.raises(TypeError, match=message):
            VideoSegmenter(model, **options)
    segmenter = VideoSegmenter(model, max_size=np.int64(48), min_size=np.int32(16))
    for call, message in (
        (lambda: segmenter.step(FRAMES[0], memorize="no"), "memorize: found str, expected True or False"),
        (lambda: segmenter.delete_objects(1), "delete_objects: found int, expected integers"),
        (lambda: segmenter.delete_objects("1"), "delete_objects: found str, expected integers"),
        (lambda: next(segmenter.propagate(None)), "frames: found NoneType, expected an iterable"),
        (lambda: next(segmenter.propagate(FRAMES, [MASK])), "masks: found list, expected a mapping"),
        (lambda: next(segmenter.propagate(FRAMES, {"0": MASK})), "masks: found str, expected integers as keys"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    assert segmenter.object_ids == []


@pytest.mark.parametrize("options", [{}, {"flip": True}], ids=["plain", "flip"])
def test_augmented_segmenters_accept_the_same(model, options):
    found, expected = (
        AugmentedSegmenter(model, RunOptions(**options)).step(frame, mask)
        for frame, mask in ((PICTURES[0], IDS.astype(np.uint16)), (FRAMES[0], MASK))
    )
    assert torch.equal(found, expected)
    with pytest.raises(TypeError, match="frame: found list, expected a tensor or a NumPy array"):
        AugmentedSegmenter(model, RunOptions(**options)).step(PICTURES[0].tolist(), MASK)
