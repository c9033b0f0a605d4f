"""A compiled network gives the same results for every number of objects, and runs uncompiled if it must."""

import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network import STM
from stm_fast.network.deploy import convolutions, for_inference
from stm_fast.network.deploy.compilation import CompiledCall
from stm_fast.network.deploy.stems import PooledMemoryEncoder

FRAMES = torch.rand(5, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def network(device="cpu"):
    torch.manual_seed(0)
    return STM("resnet18_half", key_dim=16, value_dim=32, decoder_dim=16).eval().to(device)


def plane(column, device="cpu"):
    mask = torch.zeros(1, 48, 64, device=device)
    mask[0, 8:40, column : column + 16] = 1
    return mask


def probabilities(model, device="cpu"):
    """Probabilities of frames with one object, then two, three, and two again."""
    segmenter = VideoSegmenter(model)
    found = []
    for index, frame in enumerate(FRAMES.to(device)):
        if index == 3:
            segmenter.delete_objects([2])
        mask = plane(20 * index, device) if index < 3 else None
        found.append(segmenter.step(frame, mask, None if mask is None else [index + 1]).clone())
    return found


@pytest.fixture
def compile_with(monkeypatch):
    """Makes torch.compile use another backend, whatever its mode."""
    torch.compiler.reset()
    compile_call = torch.compile

    def use(backend):
        monkeypatch.setattr(torch, "compile", lambda method, mode: compile_call(method, backend=backend))

    yield use
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("objects_at_a_time", [1, 4])
def test_two_programs_per_part_are_enough_for_every_number_of_objects(compile_with, objects_at_a_time, dtype):
    counter = CompileCounter()
    compile_with(counter)
    model = network().to(dtype)
    compiled = for_inference(model, objects_at_a_time=objects_at_a_time, compile="default")
    plain = for_inference(model, objects_at_a_time=objects_at_a_time)
    for found, expected in zip(probabilities(compiled), probabilities(plain), strict=True):
        torch.testing.assert_close(found, expected)
    assert 5 <= counter.frame_count <= 2 * 6


@pytest.mark.skipif(bool(convolutions.absent_reasons()), reason="; ".join(convolutions.absent_reasons()))
def test_the_stem_of_one_object_is_compiled_too(compile_with):
    compile_with(CompileCounter())
    encoder = for_inference(network(), compile="default").memory_encoder
    assert isinstance(encoder, PooledMemoryEncoder)
    assert isinstance(encoder.features_of_one, CompiledCall)


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_runs_uncompiled_and_warns_once(compile_with, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nhere")

    compile_with(broken)
    model = network()
    with caplog.at_level(logging.WARNING, logger="stm_fast"):
        found = probabilities(for_inference(model, compile="default"))
    for one, other in zip(found, probabilities(for_inference(model)), strict=True):
        assert torch.equal(one, other)
    (record,) = caplog.records
    message = record.getMessage()
    assert "no compiler here" in message
    assert message.endswith("the network runs without it")
    assert "\n" not in message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Inductor recommends TF32
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_network_compiled_on_a_gpu_gives_the_same_results(mode, caplog):
    torch.compiler.reset()
    counters.clear()
    model = network("cuda")
    compiled, plain = for_inference(model, compile=mode), for_inference(model)
    for _ in range(3):  # CUDA graphs are recorded in the second round and replayed in the third
        for found, expected in zip(probabilities(compiled, "cuda"), probabilities(plain, "cuda"), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    # nothing ran uncompiled, which would be logged
    assert [record.getMessage() for record in caplog.records if record.name.startswith("stm_fast")] == []
    assert counters["inductor"]
