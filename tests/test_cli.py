"""The command line: what a new user sees, and one clear line for every mistake."""

import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18
from typer.testing import CliRunner

from small_inputs import HEIGHT, SMALL, WIDTH, one_object, write_video, write_weights
from stm_fast.__main__ import app
from stm_fast.errors import InputError, Message, option
from stm_fast.network import load_checkpoint, released, save_checkpoint, stm_resnet18
from stm_fast.network.checkpoint import published_name
from stm_fast.ops.backends import BACKENDS
from stm_fast.tasks.flags import with_flags
from stm_fast.video import read_mask, write_mask

pytest.importorskip("av")

COMMANDS = ("segment", "demo", "convert", "info")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


class Place:
    """A folder with a clip, its mask and nothing else."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder, self.weights = folder, weights
        self.video, self.mask, self.out = write_video(folder / "clip.mp4", 6), folder / "first.png", folder / "out"
        write_mask(self.mask, one_object())

    def arguments(self, *more, source=None, masks=None, output=None, weights=None):
        return [
            *("segment", source or self.video, "--masks", masks or self.mask, "--output", output or self.out),
            *("--weights", weights or self.weights, *more),
        ]

    def segment(self, *more, **instead):
        return run(*self.arguments(*more, **instead))

    def refuses(self, *words, more=(), **instead):
        before = tree(self.folder)
        assert_refused(self.segment(*more, **instead), *words)
        assert tree(self.folder) == before, "nothing is written"


@pytest.fixture
def place(tmp_path, weights) -> Place:
    return Place(tmp_path, weights)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result, *words):
    """Exit code 2 and one line on stderr that holds the words."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("stm-fast: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    for word in words:
        assert str(word) in result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("segment --output", "Option '--output' requires an argument; see stm-fast segment --help"),
        ("segment --no-previous=3", "Option '--no-previous' does not take a value; see stm-fast segment --help"),
        ("benchmark read --shapes", "Option '--shapes' requires an argument; see stm-fast benchmark --help"),
        ("--version=3", "Option '--version' does not take a value; see stm-fast --help"),
        ("segment --qqqq", "No such option: --qqqq; see stm-fast segment --help"),
        ("unheard-of", "No such command 'unheard-of'; see stm-fast --help"),
    ],
)
def test_a_mistyped_command_line_gets_one_line(arguments, line):
    result = CliRunner().invoke(app, arguments.split(), prog_name="stm-fast")
    assert_refused(result)
    assert result.stderr == f"stm-fast: {line}\n"


def tree(folder):
    return sorted((path, path.stat().st_size) for path in folder.rglob("*"))


# what the commands do


def test_segment(place):
    result = place.segment()
    assert result.exit_code == 0, result.output
    assert result.stderr == "", "no bar"
    *_, last = result.stdout.splitlines()
    assert last.startswith("6 frames, objects 3, ")
    assert last.endswith(f"frames/s, results in {place.out}")
    assert sorted(os.listdir(place.out)) == ["masks", "objects.csv", "overlay.mp4", "run.json"]
    assert np.array_equal(read_mask(place.out / "masks/00000.png").ids, one_object())


@pytest.mark.slow
def test_segment_takes_the_weights_of_the_package(place):
    by_default = run("segment", place.video, "--masks", place.mask, "--output", place.out)
    assert by_default.exit_code == 0, by_default.output
    assert "untrained" not in by_default.stdout
    named = place.segment(weights=released.FILE, output=place.folder / "named")
    assert named.exit_code == 0, named.output
    for file in sorted((place.out / "masks").iterdir()):
        assert file.read_bytes() == (place.folder / "named/masks" / file.name).read_bytes()


@pytest.mark.slow
def test_an_untrained_network_warns_the_user(place):
    result = place.segment("--write", "masks,csv", "--arch", "resnet18", weights="default")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1:] == [
        "The network is untrained, as requested by --arch: its masks are meaningless."
    ]


def test_a_mask_named_after_a_later_frame_is_used_there_with_a_note(place):
    later = place.mask.rename(place.folder / "00004.png")
    result = place.segment("--write", "masks,csv", masks=later)
    assert result.exit_code == 0, result.output
    note = f"stm-fast: {later}: named after frame 00004, so used for that frame; --mask-frame selects another\n"
    assert result.stderr == note
    assert not read_mask(place.out / "masks/00003.png").ids.any()
    assert np.array_equal(read_mask(place.out / "masks/00004.png").ids, one_object())
    place.refuses(
        "--mask-frame: found '6', expected the name of a frame of clip, or an index from 0 to 5",
        more=["--mask-frame", "6"],
        masks=later,
        output=place.folder / "other",
    )


@pytest.mark.slow
def test_demo(tmp_path, weights):
    arguments = ("demo", "--output", tmp_path / "demo", "--weights", weights, "--frames", 3, "--objects", 2)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    title, *scores, summary, files, advice = result.stdout.splitlines()
    assert title.startswith("Overlap of the masks")
    assert [line.split(" = ")[0] for line in scores[:2]] == ["object 1: J", "object 2: J"]
    assert summary.startswith("3 frames, objects 1, 2, ")
    assert summary.endswith(f"results in {tmp_path / 'demo/result'}")
    named = [Path(word.rstrip(";.")) for word in files.split() if word.startswith(str(tmp_path))]
    assert [file.name for file in named] == ["overlay.mp4", "clip.mp4", "first_mask.png"]
    assert all(file.is_file() for file in named)
    assert "stm-fast open clip.mp4" in advice
    assert sorted(os.listdir(tmp_path / "demo")) == ["clip.mp4", "first_mask.png", "result"]
    assert sorted(os.listdir(tmp_path / "demo/result/masks")) == ["00000.png", "00001.png", "00002.png"]
    assert_refused(run(*arguments), "demo: the output folder is not empty")
    assert run(*arguments, "--overwrite").exit_code == 0
    (tmp_path / "demo/result").rename(tmp_path / "elsewhere")
    (tmp_path / "demo/result").symlink_to("../elsewhere")
    assert_refused(run(*arguments, "--overwrite"), "demo/result: found a symbolic link to ../elsewhere")
    assert len(os.listdir(tmp_path / "elsewhere/masks")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module."])
def test_convert(tmp_path, prefix):
    model = stm_resnet18(**SMALL)
    published = {prefix + published_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save(published, tmp_path / "stm.pth")
    result = run("convert", tmp_path / "stm.pth", tmp_path / "stm.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"{tmp_path / 'stm.safetensors'}: STM with resnet18, key_dim=16, value_dim=32, decoder_dim=16\n"
    )
    assert result.stderr == ""
    found = stm_resnet18(**SMALL)
    load_checkpoint(found, tmp_path / "stm.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert_refused(run("convert", tmp_path / "stm.pth", tmp_path / "stm.safetensors"), "exists already", "--overwrite")
    assert_refused(run("convert", tmp_path / "stm.pth", tmp_path / "stm.bin"), "stm.bin", ".safetensors")
    assert_refused(run("convert", tmp_path / "absent.pth", tmp_path / "x.safetensors"), "absent.pth: no such file")
    assert sorted(os.listdir(tmp_path)) == ["stm.pth", "stm.safetensors"]


@pytest.mark.slow
def test_convert_averages_several_checkpoints(tmp_path):
    names = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    models = [stm_resnet18(**SMALL) for _ in range(2)]
    for model, name in zip(models, names, strict=False):
        save_checkpoint(model, name)
    result = run("convert", names[0], names[1], names[0], names[2])
    assert result.exit_code == 0, result.output
    found = stm_resnet18(**SMALL)
    load_checkpoint(found, names[2])
    for mean, one, other in zip(*(model.parameters() for model in (found, *models)), strict=True):
        torch.testing.assert_close(mean, (2 * one + other) / 3)
    (tmp_path / "link.safetensors").symlink_to(names[0])
    for target in (names[0], tmp_path / "link.safetensors"):
        refused = run("convert", names[0], names[1], target, "--overwrite")
        assert_refused(refused, f"{target}: found as both input and output")
    save_checkpoint(stm_resnet18(**SMALL | {"key_dim": 8}), names[1])
    refused = run("convert", names[0], names[1], tmp_path / "d.safetensors")
    assert_refused(refused, "mean: found STM with resnet18, key_dim=16", "key_dim=8", "expected equal ones")


def test_info():
    result = run("info")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["torch"] == torch.__version__.split("+")[0]
    assert lines["reference"] == "ready"
    for backend in BACKENDS:
        assert lines[backend.name] == ("; ".join(backend.absent_reasons()) or "ready")
    assert {"stm_fast", "torchvision", "triton", "numpy", "av", "python", "cpu"} <= lines.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_a_valid_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert f"Example: stm-fast {command}" in text
    for flag in [word for word in text.split("Example:")[1].split() if word.startswith("--")]:
        assert flag in text.split("Example:")[0]


def test_the_help_lists_every_command():
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert "Example: stm-fast demo" in text


# bad input: the source


def test_not_a_video(place):
    text = place.folder / "notes.mp4"
    text.write_text("shopping list\n" * 99)
    place.refuses(f"{text}: not a video", source=text)


@pytest.mark.parametrize("index_first", [False, True])
def test_a_truncated_mp4(place, index_first):
    cut = place.folder / "cut.mp4"
    whole = write_video(place.folder / "whole.mp4", 20).read_bytes()
    if not index_first:
        with_index_last(place.folder / "whole.mp4", cut)
        whole = cut.read_bytes()
    assert (whole.find(b"moov") < whole.find(b"mdat")) == index_first
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    place.refuses(f"{cut}: ", "truncated" if index_first else "cut off", source=cut)


def with_index_last(source, target):
    """The same packets, with the index at the end of the file."""
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)


# bad input: the masks


def test_a_mask_of_another_size(place):
    write_mask(place.folder / "m.png", np.ones((24, 16), np.uint8))
    place.refuses("m.png: mask of 16x24, expected 48x32 like the frames", masks=place.folder / "m.png")


def test_a_mask_with_soft_edges(place):
    Image.fromarray(np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)).save(
        place.folder / "m.png"
    )
    place.refuses("m.png: mask looks anti-aliased", masks=place.folder / "m.png")


@pytest.mark.slow
def test_a_mask_in_colors(place):
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors[:9, :9], colors[9:, 9:] = (200, 0, 0), (0, 200, 0)
    Image.fromarray(colors).save(place.folder / "m.png")
    place.refuses("m.png: mask has colors (PNG of mode RGB)", masks=place.folder / "m.png")


@pytest.mark.slow
def test_a_mask_without_objects(place):
    write_mask(place.folder / "m.png", one_object(0))
    place.refuses("m.png: mask without objects", masks=place.folder / "m.png")


@pytest.mark.slow
def test_masks_that_match_no_frame(place):
    (place.folder / "masks").mkdir()
    write_mask(place.folder / "masks/00006.png", one_object())
    place.refuses("00006.png: no frame of clip has this name", masks=place.folder / "masks")


# bad input: the output


@pytest.mark.slow
def test_an_output_folder_with_results(place):
    assert place.segment("--write", "masks,csv").exit_code == 0
    place.refuses("out: the output folder is not empty", "--overwrite")
    assert place.segment("--write", "masks,csv", "--overwrite").exit_code == 0


@pytest.mark.slow
def test_an_output_folder_that_is_the_source(place):
    frames = place.folder / "frames"
    frames.mkdir()
    Image.fromarray(one_object()).convert("RGB").save(frames / "0.png")
    place.refuses("the output folder holds the input", source=frames, output=frames, more=["--overwrite"])
    place.refuses("found a file, expected an output folder", output=place.video)


@pytest.mark.slow
def test_a_disk_that_fills_up(place, small_disk):
    result = place.segment(source=write_video(place.folder / "long.mp4", 80), output=small_disk / "out")
    assert result.exit_code == 2
    assert re.fullmatch(f"stm-fast: disk full while writing {small_disk}.*\n", result.stderr)
    grows = (".resume.json", "objects.csv")
    found = [path for path in (small_disk / "out").rglob("*") if path.is_file() and path.name not in grows]
    assert found
    for path in found:
        assert path.parent.name == "masks"
        assert read_mask(path).ids.shape == (HEIGHT, WIDTH)


# bad input: weights and options


def test_a_checkpoint_of_another_architecture(place):
    torch.save(resnet18().state_dict(), place.folder / "resnet18.pth")
    place.refuses("resnet18.pth: found no STM", weights=place.folder / "resnet18.pth")
    place.refuses("absent.pth: no such file", weights=place.folder / "absent.pth")


class Bomb:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("command", ["segment", "convert"])
def test_a_pickle_with_code(place, command):
    bomb, mark = place.folder / "bomb.pth", place.folder / "it_ran"
    bomb.write_bytes(pickle.dumps({"Encoder_M.mean": Bomb(mark)}))
    if command == "segment":
        place.refuses("bomb.pth: not a checkpoint", weights=bomb)
    else:
        assert_refused(run("convert", bomb, place.folder / "x.safetensors"), "bomb.pth: not a checkpoint")
        assert not (place.folder / "x.safetensors").exists()
    assert not mark.exists()


# the real program


def program(*arguments, **options):
    command = [sys.executable, "-m", "stm_fast", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.slow
def test_the_program_ends_with_the_exit_code_and_no_traceback(place):
    process = program(*place.arguments(source=place.folder / "absent.mp4"))
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, output) == (2, "")
    assert errors == f"stm-fast: {place.folder / 'absent.mp4'}: no such file or folder\n"


@pytest.mark.slow
def test_ctrl_c_leaves_only_whole_files(place):
    process = program(*place.arguments(source=write_video(place.folder / "long.mp4", 800)))
    deadline = time.monotonic() + 240
    while not list(place.out.glob("masks/*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, output) == (130, "")
    found = sorted(place.out.glob("masks/*.png"))
    assert 0 < len(found) < 800
    assert [path.name for path in found] == [f"{number:05d}.png" for number in range(len(found))]
    *_, interrupted, then, command = errors.splitlines()
    assert interrupted == (f"stm-fast: interrupted after {len(found)} frames; all files written so far are complete")
    assert then == "To resume:"
    again = shlex.split(command)
    again.remove("--resume")
    assert again == list(map(str, process.args))
    assert sorted(path.name for path in place.out.iterdir()) == [
        f".resume-{len(found)}-0.safetensors",
        ".resume.json",
        "masks",
        "objects.csv",
    ]
    for path in found:
        assert read_mask(path).ids.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("message", "plain", "shown"),
    [
        (
            f"{option('min_size')}: found 9, expected 1 to {option('max_size')}, 8",
            "min_size: found 9, expected 1 to max_size, 8",
            "--min-size: found 9, expected 1 to --max-size, 8",
        ),
        (option("max_frames", 7), "max_frames=7", "--max-memory-frames 7"),
        (option("storage", "int8"), "storage='int8'", "--memory-storage int8"),
        (option("folder", Path("a=b/c.d")), "folder=a=b/c.d", "--memory-folder a=b/c.d"),
        (option("every", None), "every=None", "--first-and-previous"),
        (option("overwrite", True), "overwrite=True", "--overwrite"),
        (option("skip_corrupt", False), "skip_corrupt=False", "no --skip-corrupt"),
        # files named like an option
        *[
            (text, text, text)
            for text in ("output: found a file", "max_size: found 3", "a, overwrite=True", "max_size")
        ],
    ],
)
def test_the_command_line_names_flags_where_the_library_names_options(message, plain, shown):
    for error in (InputError(message), pickle.loads(pickle.dumps(InputError(message)))):
        assert (str(error), with_flags(error)) == (plain, shown)
    assert (Message(message), with_flags(Message(message))) == (plain, shown)
    assert with_flags(plain) == plain


def test_a_file_named_like_an_option_keeps_its_name(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    Path("output").touch()
    result = run("segment", place.video, "-m", place.mask, "-o", "output")
    assert (result.exit_code, result.stderr) == (2, "stm-fast: output: found a file, expected an output folder\n")
