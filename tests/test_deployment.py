"""A prepared network gives the same results, and the engine those of the published loop."""

import io
import pickle
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from stm_fast.benchmarking.frames import time_variants
from stm_fast.benchmarking.published_loop import PublishedLoop
from stm_fast.benchmarking.records import PUBLISHED
from stm_fast.benchmarking.report import stage_table
from stm_fast.benchmarking.shapes import FrameWorkload, parse_workload
from stm_fast.config import MemoryConfig
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.stages import STAGES
from stm_fast.network import STM, ObjectBatch
from stm_fast.network.backbone import RESNETS, BasicBlock, Bottleneck, ResNetLayout
from stm_fast.network.deploy import for_inference, winograd
from stm_fast.network.deploy.precision import choose_dtype, cpu_instructions
from stm_fast.network.deploy.winograd import WinogradConv
from stm_fast.network.efficientnet import LITE
from stm_fast.network.encoders import BACKBONES
from stm_fast.ops import cpp_ops

REASONS = winograd.absent_reasons()
needs_winograd = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))


def trained_looking(model: STM) -> STM:
    """Gives BatchNorm statistics, scales and shifts that an untrained network does not have."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            with torch.no_grad():
                module.weight.mul_(torch.rand_like(module.weight) + 0.5)
                module.bias.normal_(0, 0.1)
    return model


# with separate trunks for query and memory, and with a shared one
NETWORKS = [(name, name in LITE) for name in BACKBONES] + [("resnet18_half", True)]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: "-".join(map(str, network)))
def model(request) -> STM:
    torch.manual_seed(0)
    backbone, shared = request.param
    return trained_looking(STM(backbone, key_dim=16, value_dim=32, decoder_dim=16, shared_trunk=shared)).eval()


def test_a_built_extension_has_the_convolutions():
    assert winograd.absent_reasons() == cpp_ops.absent_reasons()


@needs_winograd
@torch.no_grad()
def test_networks_in_bfloat16_use_winograd_where_the_extension_convolves_it(model, monkeypatch):
    if not cpp_ops.convolves(torch.bfloat16):
        pytest.skip("this machine has no fast products of bfloat16, or AMX")
    frame, masks = torch.rand(3, 70, 90), torch.rand(2, 70, 90) / 2
    truth = for_inference(model.double()).memorize(frame.double(), masks.double())[1]
    model.float()
    errors = {}
    for winograd_used in (True, False):
        if not winograd_used:
            monkeypatch.setattr(cpp_ops, "convolves", lambda dtype: dtype == torch.float32)
        prepared = for_inference(model, dtype=torch.bfloat16)
        assert any(isinstance(module, WinogradConv) for module in prepared.modules()) == winograd_used
        errors[winograd_used] = (prepared.memorize(frame, masks)[1] - truth).square().mean()
    assert errors[True] <= 4**2 * errors[False]


@pytest.mark.parametrize("objects_at_a_time", [None, 1, 2, 5])
def test_a_prepared_network_gives_the_same_results(model, objects_at_a_time):
    prepared = for_inference(model, objects_at_a_time=objects_at_a_time)
    frame, masks = torch.rand(3, 70, 90), torch.rand(3, 70, 90) / 3
    keys, values = zip(*(each.memorize(frame, masks) for each in (model, prepared)), strict=True)
    torch.testing.assert_close(keys[1], keys[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(values[1], values[0], rtol=1e-3, atol=1e-4)
    logits = [each.segment(frame, keys[0][:, :, None], values[0][:, :, None]) for each in (model, prepared)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)


# the channels of the stem, of r2, r3 and r4 and of the heads are not multiples of 8
ODD_LAYOUTS = [
    ResNetLayout(10, (10, 12, 20), (1, 2, 2), BasicBlock),
    ResNetLayout(12, (20, 36, 44), (2, 1, 2), Bottleneck),
]


@pytest.mark.parametrize("layout", ODD_LAYOUTS, ids=["basic", "bottleneck"])
def test_a_prepared_network_of_any_width_gives_the_same_results(layout, monkeypatch):
    monkeypatch.setitem(BACKBONES, "odd", layout)
    monkeypatch.setitem(RESNETS, "odd", layout)
    torch.manual_seed(0)
    odd = trained_looking(STM("odd", key_dim=10, value_dim=12, decoder_dim=9)).eval()
    prepared, frame, masks = for_inference(odd), torch.rand(3, 40, 56), torch.rand(2, 40, 56) / 2
    keys, values = zip(*(each.memorize(frame, masks) for each in (odd, prepared)), strict=True)
    torch.testing.assert_close(keys[1], keys[0], rtol=1e-3, atol=1e-4)
    logits = [each.segment(frame, keys[0][:, :, None], values[0][:, :, None]) for each in (odd, prepared)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)


def test_a_prepared_network_refuses_several_frames(model):
    prepared, objects = for_inference(model), ObjectBatch.of([1, 1], torch.device("cpu"))
    frames, masks = torch.rand(2, 3, 32, 32), torch.rand(2, 32, 32)
    with pytest.raises(ValueError, match="objects: found those of several frames, expected one frame"):
        prepared.decode(prepared.memorize(frames, masks, objects=objects)[1], prepared.encode_query(frames), objects)


@pytest.mark.slow
def test_the_original_does_not_change(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for_inference(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def tensors_of(model: STM) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def bytes_of(model: STM) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(model))


def through_torch_save(prepared: STM) -> tuple[STM, int]:
    file = io.BytesIO()
    torch.save(prepared, file)
    size = file.tell()
    file.seek(0)
    return torch.load(file, weights_only=False), size


def through_pickle(prepared: STM) -> tuple[STM, int]:
    content = pickle.dumps(prepared)
    return pickle.loads(content), len(content)


def through_a_copy(prepared: STM) -> tuple[STM, int]:
    copied = deepcopy(prepared)
    return copied, sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(copied)}.values()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", [through_pickle, through_torch_save, through_a_copy])
def test_a_copy_of_a_prepared_network_takes_the_size_of_its_weights(model, way, dtype):
    prepared = for_inference(model, dtype=dtype)
    again, size = way(prepared)
    # each tensor adds a record of up to a kilobyte
    assert bytes_of(prepared) <= size < bytes_of(prepared) + 1500 * len(tensors_of(prepared)) + 50_000
    assert not {t.data_ptr() for t in tensors_of(again)} & {t.data_ptr() for t in tensors_of(prepared)}
    frame, masks = torch.rand(3, 48, 64), torch.rand(2, 48, 64)
    expected, found = (each.memorize(frame, masks) for each in (prepared, again))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def _key_of(model: STM, frame: torch.Tensor, out) -> None:
    out.put(model.encode_query(frame).key.tolist())


@pytest.mark.slow
def test_a_prepared_network_can_be_sent_to_another_process():
    prepared = for_inference(STM("resnet18_half", key_dim=8, value_dim=8, decoder_dim=8).eval())
    frame = torch.rand(3, 32, 32)
    expected = prepared.encode_query(frame).key
    context = torch.multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=_key_of, args=(prepared, frame, out))
    process.start()
    found = torch.tensor(out.get(timeout=120))
    process.join()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(prepared.encode_query(frame).key, expected)


@pytest.mark.slow
def test_no_batch_norm_remains(model):
    prepared = for_inference(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in prepared.modules())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert any(isinstance(module, WinogradConv) for module in prepared.modules()) == (not REASONS)
    # in another dtype the convolutions are kept
    double = for_inference(model.double())
    model.float()
    assert not any(isinstance(module, WinogradConv) for module in double.modules())


@pytest.mark.slow
def test_the_published_loop_the_engine_and_the_prepared_engine_agree(model):
    clip = SyntheticClip(0, frames=7, height=56, width=90, objects=2)
    ids = torch.from_numpy(clip[0].ids)
    planes = torch.stack([ids == 1, ids == 2]).float()
    loop, memory = PublishedLoop(model, every=3), MemoryConfig(every=3, redetect=False)
    engines = [VideoSegmenter(each, memory=memory) for each in (model, for_inference(model))]
    for index, picture in enumerate(clip):
        frame = torch.from_numpy(picture.image).permute(2, 0, 1).float() / 255
        expected = loop.step(frame, planes if index == 0 else None)
        assert expected[3:].max() < 1e-5  # slots without an object
        for engine in engines:
            prob = engine.step(frame, ids if index == 0 else None)
            torch.testing.assert_close(prob, expected[:3], rtol=0, atol=2e-3)
    assert loop.keys.shape[2] == 2  # frames 0 and 3 stay; 5 stayed for one step


@pytest.mark.slow
def test_a_whole_frame_is_timed_by_stage(monkeypatch):
    monkeypatch.setattr("stm_fast.benchmarking.frames.SIZES", {"tiny": (48, 64)})
    workload = FrameWorkload("tiny", objects=2, memory_frames=3, backbone="resnet18")
    rows = time_variants(workload, [PUBLISHED, "engine", "prepared", "no-previous", "bfloat16-memory"], 2, "cpu")
    assert [row.variant for row in rows] == [PUBLISHED, "engine", "prepared", "no-previous", "bfloat16-memory"]
    for row in rows:
        assert 0 <= row.similarity <= 1
        assert set(row.stage_seconds) == set(STAGES)
        unused = {"memory encoder"} if row.variant == "no-previous" else set()
        assert {stage for stage, seconds in row.stage_seconds.items() if seconds == 0} == unused
        assert row.frame_seconds_20 <= row.frame_seconds <= row.frame_seconds_80
    assert rows[1].similarity > 0.99
    assert rows[2].similarity > 0.99
    rows = [replace(row, background_seconds={"decode": 0.001, "write": 0.002}) for row in rows]
    text = "\n".join(stage_table(rows).lines())
    assert f"{1000 * rows[1].stage_seconds['decoder']:.1f}" in text
    assert f"{rows[0].frame_seconds / rows[2].frame_seconds:.2f}" in text
    assert "decode 1.0 ms, write 2.0 ms" in text


def test_workloads_by_name():
    assert parse_workload("480p-T10-O3") == FrameWorkload("480p", objects=3, memory_frames=10)
    for text in ("480p", "480p-T0-O1", "481p-T1-O1", "480p-T1-O21", "480p-T10-O3 "):
        with pytest.raises(InputError, match="expected for example 480p-T10-O3"):
            parse_workload(text)


def test_a_dtype_by_name(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    vectors = torch.backends.cpu.get_cpu_capability()
    for capabilities, expected, instructions in (
        ({"avx512_bf16": True, "avx512_f": True}, torch.bfloat16, f"{vectors}, AVX512_BF16"),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32, vectors),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_dtype("auto", cpu) == expected
        assert cpu_instructions() == instructions
    with pytest.raises(InputError, match="dtype: found 'int8', expected one of float32, bfloat16, float16, auto"):
        choose_dtype("int8", cpu)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_is_prepared_in_another_dtype(model, dtype):
    segmenter = VideoSegmenter(for_inference(model, dtype=dtype))
    clip = SyntheticClip(0, frames=2, height=48, width=64, objects=2)
    frames = [torch.from_numpy(picture.image).permute(2, 0, 1) for picture in clip]
    segmenter.step(frames[0], torch.from_numpy(clip[0].ids))
    prob = segmenter.step(frames[1])
    assert prob.dtype == torch.float32
    torch.testing.assert_close(prob.sum(0), torch.ones(48, 64))
    assert next(for_inference(model, dtype=dtype).parameters()).dtype == dtype
    assert model.decoder.predict.weight.dtype == torch.float32
