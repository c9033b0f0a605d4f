"""Exports: every format gives the results of the network, for other sizes than those with which it was traced."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import stm_fast.ops.functional  # noqa: F401  (registers the operators that some programs call)
from small_inputs import HEIGHT, WIDTH, draw
from stm_fast import STM, MemoryConfig, VideoSegmenter
from stm_fast.__main__ import app
from stm_fast.errors import InputError
from stm_fast.export import formats
from stm_fast.export.folder import export_network
from stm_fast.export.parts import parts_of
from stm_fast.network import encoders
from stm_fast.network.backbone import RESNETS, BasicBlock, ResNetLayout
from stm_fast.network.deploy import for_inference
from stm_fast.network.efficientnet import LITE, LiteLayout, Stage
from stm_fast.ops import cpp_ops, memory_read, reference
from stm_fast.ops.layers import rows
from stm_fast.record_file import read_record_file
from stm_fast.versions import how_to_install
from stm_fast.video import OverlayVideoWriter, write_mask

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[1]
# networks of few convolutions, because compilers take seconds for each
RESNET = ResNetLayout(8, (8, 16, 32), (1, 1, 1), BasicBlock)
EFFICIENTNET = LiteLayout(
    (Stage(1, 3, 1, 8), Stage(1, 3, 2, 8), Stage(1, 5, 2, 16), Stage(1, 3, 2, 16), Stage(1, 5, 1, 16))
)
WIDTHS = {"key_dim": 8, "value_dim": 24, "decoder_dim": 16}
# frames, H, W, objects and memorized frames, none of them as in the examples of the exports
SIZES = [(1, 32, 64, 1, 1), (3, 96, 48, 5, 3)]
TOLERANCE = 1e-4
COMMANDS = ("stm-fast export --format onnx --output exported", "stm-fast export --format aoti --output compiled")


@pytest.fixture(scope="module")
def networks() -> Iterator[dict[str, STM]]:
    """Untrained networks, one with separate encoders and one with a shared trunk."""
    with pytest.MonkeyPatch.context() as patch:
        for layouts, name, layout in ((RESNETS, "small_resnet", RESNET), (LITE, "small_lite", EFFICIENTNET)):
            patch.setitem(layouts, name, layout)
            patch.setitem(encoders.BACKBONES, name, layout)
        torch.manual_seed(0)
        separate = STM("small_resnet", **WIDTHS)
        for norm in (module for module in separate.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        shared = STM("small_lite", **WIDTHS, shared_trunk=True)
        yield {"separate": separate.eval().requires_grad_(False), "shared": shared.eval().requires_grad_(False)}


Call = Callable[[str, dict[str, Tensor]], dict[str, Tensor]]


def loaded(folder: Path) -> tuple[Call, dict[str, Any]]:
    """A function that runs a part of an export by names, and the record."""
    record = read_record_file(folder / "export.json", "an export", "")
    load = {
        "onnx": lambda path: onnxruntime.InferenceSession(path),
        "pt2": lambda path: torch.export.load(path).module(),
        "aoti": torch._inductor.aoti_load_package,
    }[record["format"]]
    parts = {name: load(str(folder / part["file"])) for name, part in record["parts"].items()}

    def call(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        part = record["parts"][name]
        inputs = {one: tensors[one].contiguous() for one in part["inputs"]}
        if record["format"] == "onnx":
            found = parts[name].run(None, {one: tensor.numpy() for one, tensor in inputs.items()})
            results = [torch.from_numpy(array) for array in found]
        else:
            found = parts[name](*inputs.values())
            results = [found] if isinstance(found, Tensor) else list(found)
        check_record(part["inputs"], inputs.values())
        check_record(part["outputs"], results)
        return dict(zip(part["outputs"], results, strict=True))

    return call, record


def check_record(described: dict[str, Any], tensors: Any) -> None:
    """Checks that the record describes the tensors of one call."""
    sizes: dict[str, int] = {}
    for values, tensor in zip(described.values(), tensors, strict=True):
        assert str(tensor.dtype) == f"torch.{values['dtype']}"
        assert len(values["shape"]) == tensor.ndim
        for size, found in zip(values["shape"], tensor.shape, strict=True):
            if isinstance(size, int):
                assert found == size
            elif re.fullmatch(r"(\d+\*)?\w+", size):
                factor, _, name = size.rpartition("*")
                assert found == int(factor or 1) * sizes.setdefault(name, found // int(factor or 1))


def expected(model: STM, frames: Tensor, masks: Tensor, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs of all parts, and what the network makes of them."""
    features = model.encode_query(frames)
    one = model.encode_query(frames[:1])
    key, value = (rows(tensor, "memory") for tensor in model.memorize(frames[0], masks))
    memory_key, memory_value = (
        tensor.repeat(1, count, 1) + torch.randn(1, count * tensor.shape[1], 1) for tensor in (key, value)
    )
    query = rows(one.key, "key").expand(len(masks), -1, -1)
    read = memory_read(query, memory_key, memory_value, backend="reference")
    read_map = read.mT.reshape(len(masks), -1, *one.key.shape[2:])
    inputs = {"frame": frames, "masks": masks, "query": query, "memory_key": memory_key, "memory_value": memory_value}
    inputs |= {"read": read_map, "key": one.key, "value": one.value, "r3": one.r3, "r2": one.r2}
    results = {f"encode_query {name}": getattr(features, name) for name in ("key", "value", "r3", "r2")}
    results |= {"memorize memory_key": key, "memorize memory_value": value, "memory_read read": read}
    return inputs, results | {"decode probabilities": model.probabilities(read_map, one)}


def check_all(folder: Path, model: STM) -> None:
    """Checks an export against the network, for several sizes."""
    call, record = loaded(folder)
    for frames, height, width, objects, count in SIZES:
        torch.manual_seed(height)
        inputs, results = expected(
            model, torch.rand(frames, 3, height, width), torch.rand(objects, height, width), count
        )
        for part in record["parts"]:
            taken = inputs | ({"frame": inputs["frame"][:1]} if part == "memorize" else {})
            for name, found in call(part, taken).items():
                wanted = results[f"{part} {name}"]
                assert found.shape == wanted.shape
                assert (found - wanted).abs().max() < TOLERANCE, (part, name, (frames, height, width, objects, count))


def blocks_of(language: str) -> list[str]:
    """The blocks of docs/export.md."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["export", *(str(word) for word in words)])


@pytest.fixture(scope="module")
def documented(networks, tmp_path_factory) -> Path:
    """A folder with the files of the documentation, in which its commands were run, for a small network."""
    folder = tmp_path_factory.mktemp("documented")
    images, ids = draw(frames=3)
    with OverlayVideoWriter(folder / "clip.mp4", WIDTH, HEIGHT, Fraction(25)) as writer:
        for index, image in enumerate(images):
            writer.write(image, index / 25)
    write_mask(folder / "first.png", ids[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("stm_fast.tasks.export.load_model", lambda _: networks["shared"])
        # compiling takes minutes; the files of aoti and pt2 are called in the same way
        patch.setattr(formats, "compile_package", torch.export.save)
        assert blocks_of("sh") == [f"{command}\n" for command in COMMANDS]
        for command in COMMANDS:
            result = CliRunner().invoke(app, command.split()[1:])
            assert result.exit_code == 0, result.output
            assert result.stdout == f"{command.split()[-1]}: {networks['shared'].architecture}\n"
    return folder


@pytest.mark.slow
def test_the_examples_of_the_documentation_segment_a_video(documented, networks, monkeypatch, capsys):
    monkeypatch.chdir(documented)
    with_onnx, with_torch = blocks_of("python")
    names: dict[str, Any] = {}
    exec(with_onnx, names)
    model, frames = networks["shared"], [torch.from_numpy(frame) for frame in names["frames"]]
    segmenter = VideoSegmenter(model, memory=MemoryConfig(every=1, redetect=False))
    wanted = [
        segmenter.step(frame, torch.from_numpy(names["ids"]) if index == 0 else None)
        for index, frame in enumerate(frames)
    ]
    assert len(wanted) == len(names["results"]) == len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: torch.export.load(path).module())
    exec(with_torch, names)
    for results in (names["results"], names["compiled_results"]):
        for found, expected in zip(results, wanted, strict=True):
            assert np.abs(found - expected.numpy()).max() < TOLERANCE
    check_all(documented / "exported", model)
    read = onnx.load(documented / "exported/memory_read.onnx")
    assert [(one.domain, one.version) for one in read.opset_import] == [("", formats.OPSET)]
    assert {node.domain for node in read.graph.node} == {""}


@pytest.mark.slow
def test_onnx_files_give_the_results_of_separate_encoders(networks, monkeypatch, tmp_path):
    """The parts that differ from those of a shared trunk."""
    monkeypatch.setattr("stm_fast.export.folder.parts_of", lambda *arguments: parts_of(*arguments)[1::2])
    export_network(networks["separate"], tmp_path / "out", "onnx")
    check_all(tmp_path / "out", networks["separate"])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backend"), [("separate", "reference"), ("shared", "cpp")])
def test_pt2_files_give_the_results_of_the_network(kind, backend, networks, tmp_path):
    require_backend(backend)
    export_network(networks[kind], tmp_path / "out", "pt2", backend=backend)
    check_all(tmp_path / "out", networks[kind])
    program = torch.export.load(tmp_path / "out/memory_read.pt2")
    assert ("stm_fast.memory_read_cpp" in str(program.graph)) == (backend == "cpp")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_program_in_16_bits_gives_the_bits_of_its_module(dtype, networks):
    for part in parts_of(networks["shared"], "reference", dtype)[1:]:
        inputs = part.examples()
        found, wanted = formats.program_of(part).module()(*inputs), part.module(*inputs)
        for one, other, values in zip(*map(as_tuple, (found, wanted)), part.outputs.values(), strict=True):
            assert one.dtype == values.dtype
            assert torch.equal(one, other)


@pytest.mark.slow
def test_a_compiled_read_gives_the_results_of_the_reference(networks, tmp_path):
    part = parts_of(networks["shared"], "reference", torch.float32)[2]
    assert part.name == "memory_read"
    formats.FORMATS["aoti"][1](part, tmp_path / "read.pt2")
    read = torch._inductor.aoti_load_package(str(tmp_path / "read.pt2"))
    for objects, queries, count in ((1, 1, 1), (2, 9, 31)):
        query, key = torch.randn(objects, queries, 8), torch.randn(objects, count, 8)
        value = torch.randn(objects, count, 24)
        wanted = memory_read(query, key, value, backend="reference")
        torch.testing.assert_close(read(query, key, value), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_an_exported_read_has_no_chunks(networks, monkeypatch):
    monkeypatch.setattr(reference, "EAGER_AFFINITY_LIMIT", 8)
    part = parts_of(networks["shared"], "reference", torch.float32)[2]
    program = formats.program_of(part)
    assert not [node for node in program.graph.nodes if "slice" in str(node.target)]
    tensors = torch.randn(2, 40, 8), torch.randn(2, 50, 8), torch.randn(2, 50, 24)
    torch.testing.assert_close(program.module()(*tensors), part.module(*tensors))


def as_tuple(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def require_backend(backend: str) -> None:
    if backend == "cpp" and cpp_ops.absent_reasons():
        pytest.skip(cpp_ops.absent_reasons()[0])


def test_a_prepared_network_is_refused(networks):
    with pytest.raises(InputError, match="model: found a network prepared for inference, expected the original"):
        parts_of(for_inference(networks["shared"]), "reference", torch.float32)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_extra(package, monkeypatch, tmp_path):
    monkeypatch.setattr("stm_fast.commands.export.find_spec", lambda name: None if name == package else name)
    result = run("--format", "onnx", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == f"stm-fast: --format onnx needs {package}: {how_to_install('export')}\n"


@pytest.mark.parametrize(
    ("form", "backend", "absent", "words"),
    [
        ("aoti", "reference", "stm_fast.export.formats.cpp_compiler", "--format aoti needs a C++ compiler: no g++"),
        ("pt2", "cpp", "stm_fast.ops.cpp_ops._check_instructions", "no g++"),
    ],
)
def test_what_is_missing_here_is_reported_before_the_export(
    form, backend, absent, words, networks, monkeypatch, tmp_path
):
    def missing() -> None:
        raise (RuntimeError if form == "aoti" else InputError)("no g++")

    require_backend(backend)
    monkeypatch.setattr(absent, missing)
    with pytest.raises(InputError, match=re.escape(words)):
        export_network(networks["shared"], tmp_path / "out", form, backend=backend)
    assert not list(tmp_path.iterdir())


@contextmanager
def compiler(command: str) -> Iterator[None]:
    """AOTInductor uses this compiler."""
    cache_clear = getattr(torch._inductor.cpp_builder.cpp_compiler_search, "cache_clear", lambda: None)
    with torch._inductor.config.patch({"cpp.cxx": (None, command)}):
        cache_clear()
        yield
    cache_clear()


def test_a_compiler_is_looked_for():
    missing = r"--format aoti needs a C[+][+] compiler: .*no-such-compiler"
    with compiler("no-such-compiler"), pytest.raises(InputError, match=missing):
        formats.check_compiler()


@pytest.mark.slow
def test_a_compiler_that_fails_is_reported_in_one_line(networks, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exec c++ --version\necho "no Python.h" >&2\nexit 1\n')
    broken.chmod(0o755)
    part = parts_of(networks["shared"], "reference", torch.float32)[2]
    with compiler(str(broken)), pytest.raises(InputError, match=r"the C[+][+] compiler failed: ") as raised:
        formats.FORMATS["aoti"][1](part, tmp_path / "read.pt2")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "read.pt2").exists()


FULL = """
import resource, sys
from pathlib import Path
import torch
from stm_fast.errors import InputError
from stm_fast.export.folder import export_network
from stm_fast.network import STM, stm_resnet18
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    export_network(stm_resnet18(), Path(sys.argv[1]), "pt2")
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "out"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert (found.stdout.count("\n"), str(tmp_path / "out") in found.stdout) == (1, True)
    assert not list(tmp_path.iterdir())


def test_an_export_is_whole_or_absent_and_replaces_nothing(networks, monkeypatch, tmp_path):
    def fails(part: Any, path: Path) -> None:
        path.touch()
        if part.name == "decode":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("stm_fast.export.folder.FORMATS", {"pt2": ("pt2", fails)})
    with pytest.raises(InputError, match=r"disk full while writing .*out"):
        export_network(networks["shared"], tmp_path / "out", "pt2")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    result = run("--format", "pt2", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == f"stm-fast: {tmp_path / 'out'}: exists already, expected the name of a new folder\n"


@pytest.mark.parametrize(
    ("weights", "words"),
    [("default", "cc-by-nc-4.0"), ("open", "many of them non-commercial"), ("x.safetensors", "unknown")],
)
def test_the_record_has_the_license_of_the_weights(weights, words, networks, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("x.safetensors").touch()
    monkeypatch.setattr("stm_fast.tasks.export.load_model", lambda _: networks["shared"])
    monkeypatch.setattr("stm_fast.export.folder.FORMATS", {"pt2": ("pt2", lambda _, path: path.touch())})
    assert run("--format", "pt2", "--output", "out", "--weights", weights).exit_code == 0
    found = json.loads(Path("out/export.json").read_text())["weights"]
    assert found["source"] == weights
    assert words in found["license"]
