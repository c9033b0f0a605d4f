"""stm_fast.load, folders of weights, the Hugging Face hub, and the frame size that belongs to weights."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml

import stm_fast
from hub_server import COMMIT, GATED, Hub, hub_server
from small_inputs import HEIGHT, SIZE, SMALL, draw, small_network, write_sequence
from stm_fast import STM, InputError, VideoSegmenter, segment_video, stm_lite2, stm_resnet18
from stm_fast.inference.options import RunOptions
from stm_fast.network import load_checkpoint, released, save_checkpoint
from stm_fast.network.architecture import NETWORKS
from stm_fast.network.checkpoint import load_network
from stm_fast.network.deploy import for_inference
from stm_fast.network.fingerprint import fingerprint
from stm_fast.network.mean import into_mean
from stm_fast.network.places import Repository, find_weights
from stm_fast.network.released import MIN_SIZE

LARGEST = 2**14


def sized(min_size: int) -> STM:
    model = small_network()
    model.min_size = min_size
    return model


def seen_size(model: STM, *, frame: tuple[int, int] = SIZE, **options: int) -> tuple[int, ...]:
    """H, W of a frame as the network sees it."""
    segmenter = VideoSegmenter(model, **options)
    segmenter.step(torch.zeros(3, *frame), torch.ones(frame, dtype=torch.uint8))
    assert segmenter._seen is not None
    return tuple(segmenter._seen.frame.shape[1:])


def ran(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python program that has ended with success."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(stm_fast.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def program(*arguments: str, folder: Path, **environment: str) -> list[str]:
    """The lines that a Python program prints."""
    return ran(*arguments, folder=folder, **environment).stdout.splitlines()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")}


# load


@pytest.mark.parametrize("weights", [*released.FILES, *released.FILES.values()], ids=lambda weights: Path(weights).stem)
def test_the_weights_of_the_package_are_prepared_with_their_size(weights):
    model = stm_fast.load(weights, device="cpu", dtype="float32")
    assert model.prepared
    assert not model.training
    assert model.min_size == MIN_SIZE
    expected = for_inference(stm_lite2(weights=weights))
    assert fingerprint(model) == fingerprint(expected)


def test_a_file_is_loaded_in_the_dtype_asked_for(tmp_path):
    save_checkpoint(small_network(), tmp_path / "x.safetensors")
    model = stm_fast.load(tmp_path / "x.safetensors", device="cpu", dtype="bfloat16")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert model.min_size == 1
    for device in ("cpu", torch.device("cpu"), "auto"):
        stm_fast.load(str(tmp_path / "x.safetensors"), device=device)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "absent.pth"}, r"absent\.pth: no such file, expected a checkpoint"),
        ({"device": "abacus"}, "device: found 'abacus', expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:9999"}, "device: found 'cuda:9999', but this machine has"),
        ({"dtype": "int8"}, "dtype: found 'int8'"),
        ({"compile": "magic"}, "compile: found 'magic'"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_one_line(options, words):
    with pytest.raises(InputError, match=words):
        stm_fast.load(**{"device": "cpu", **options})


# names


@pytest.mark.parametrize("name", ["user/repo", "user/repo@v1", "hf://user/repo", "A-b.c/d_e.2@refs/pr/1"])
def test_a_name_that_is_no_path_is_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_weights(name)
    assert isinstance(found, Repository)
    assert str(found) == name.removeprefix("hf://")


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("user").mkdir()
    Path("user/repo").touch()
    assert find_weights("user/repo") == Path("user/repo")
    assert find_weights(Path("user/repo")) == Path("user/repo")
    assert find_weights("hf://user/repo") == Repository("user/repo")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runs/best.safetensors", "no such file"),
        ("runs/best.pth", "no such file"),
        ("there/repo", "no such file"),  # its folder exists
        ("nowhere/repo", "no such file"),  # its folder is a broken link
        ("there/broken", "no such file"),
        ("there", r"there/model\.safetensors: no such file"),
        ("repo", "no such file"),
        ("../repo", "no such file"),
        ("/user/repo", "no such file"),
        ("a/b/c", "no such file"),
        ("", "no such file"),
        ("hf://repo", "not a name on the hub, expected user/repo"),
        ("hf://user/../x", "not a name on the hub"),
        ("hf://user/repo@", "not a name on the hub"),
    ],
)
def test_other_names_are_never_looked_up(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    for link in ("nowhere", "there/broken"):
        Path(link).symlink_to("nothing")
    with pytest.raises(InputError, match=words):
        find_weights(name)


def test_a_repository_needs_huggingface_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stm_fast.network.places.find_spec", lambda name: None)
    for name in ("user/repo", "hf://user/repo"):
        with pytest.raises(InputError, match=r"no such file or folder, and .* pip install 'huggingface_hub>=1'$"):
            find_weights(name)
    with pytest.raises(InputError, match="huggingface_hub"):
        small_network().push_to_hub("user/repo")


# folders


def test_a_folder_holds_weights_configuration_and_card(tmp_path):
    model, folder = sized(240), tmp_path / "new/folder"
    model.save_pretrained(folder, license="cc-by-nc-4.0")
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    for found in (STM.from_pretrained(folder), load_network(folder / "model.safetensors")):
        assert fingerprint(found) == fingerprint(model)
        assert found.min_size == 240
    assert not STM.from_pretrained(str(folder)).training
    assert stm_fast.load(folder, device="cpu", dtype="float32").min_size == 240
    _, header, text = (folder / "README.md").read_text().split("---\n")
    assert yaml.safe_load(header) == {
        "license": "cc-by-nc-4.0",
        "library_name": "stm_fast",
        "pipeline_tag": "mask-generation",
        "tags": ["video-object-segmentation", "space-time-memory"],
    }
    assert "below 240 pixels" in text


def test_saving_again_keeps_the_card(tmp_path):
    sized(240).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    other = sized(96)
    other.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert STM.from_pretrained(tmp_path).min_size == 96


def test_a_prepared_network_is_not_saved(tmp_path):
    model = for_inference(small_network())
    for save in (
        lambda: model.save_pretrained(tmp_path / "folder"),
        lambda: save_checkpoint(model, tmp_path / "x.safetensors"),
        lambda: deepcopy(model).save_pretrained(tmp_path / "folder"),
    ):
        with pytest.raises(InputError, match="found a network prepared for inference, whose weights are packed"):
            save()
    assert not os.listdir(tmp_path)


def test_a_prepared_network_is_not_prepared_again():
    with pytest.raises(InputError, match="model: found a network prepared for inference, expected the original"):
        for_inference(for_inference(small_network()))


@pytest.mark.parametrize("license", ["", "MIT License", "mit\ntags: x", "{{", "-"])
def test_a_license_is_an_identifier(license, tmp_path):
    with pytest.raises(InputError, match="license: found"):
        small_network().save_pretrained(tmp_path / "x", license=license)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config | {"min_size": 241}, "its min_size: found 241, expected 240 as in model"),
        (lambda config: config | {"library_name": "other"}, "its library_name: found other, expected stm_fast"),
        (lambda config: config | {"auto_map": {"AutoModel": "evil.Model"}}, "its auto_map: found"),
        (
            lambda config: config | {"architecture": config["architecture"] | {"key_dim": 17}},
            "its architecture: found key_dim 17, exp",
        ),
        (lambda config: {}, "its library_name: found None"),
        (lambda config: [config], "found list, expected the configuration"),
        (lambda config: "x" * 2**17, "found 131074 bytes, expected at most 65536"),
    ],
)
def test_a_configuration_must_describe_the_weights(change, words, tmp_path):
    sized(240).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(change(json.loads(config.read_text()))))
    with pytest.raises(InputError, match=f"config.json: {words}"):
        stm_fast.load(tmp_path)


def test_a_folder_without_a_configuration_or_with_a_pickle_is_refused(tmp_path):
    small_network().save_pretrained(tmp_path)
    torch.save(small_network().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: not a safetensors file"):
        stm_fast.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        stm_fast.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file, expected the configuration"):
        stm_fast.load(tmp_path)


# the frame size that belongs to weights


def test_the_size_is_loaded_saved_copied_and_averaged(tmp_path):
    save_checkpoint(sized(240), tmp_path / "x.safetensors")
    fresh = stm_resnet18(**SMALL)
    assert fresh.min_size == 1
    load_checkpoint(fresh, tmp_path / "x.safetensors")
    assert fresh.min_size == 240
    torch.save(fresh.state_dict(), tmp_path / "x.pth")  # as published: without metadata
    load_checkpoint(fresh, tmp_path / "x.pth")
    assert fresh.min_size == 1
    assert for_inference(sized(96)).min_size == deepcopy(sized(96)).min_size == 96
    assert into_mean([sized(1), sized(96), sized(48)]).min_size == 96


@pytest.mark.parametrize("found", ["0", "-1", str(LARGEST + 1), "480.0", " 480", "", "\u0664\u0668\u0660", "9" * 5000])
def test_an_impossible_size_in_a_file_is_refused(found, tmp_path, monkeypatch):
    model, path = small_network(), tmp_path / "x.safetensors"
    model.min_size = found
    save_checkpoint(model, path)
    with pytest.raises(InputError, match=f"min_size: found .*, expected 1 to {LARGEST}"):
        load_network(path)


def test_the_size_of_foreign_safetensors_is_not_taken(tmp_path):
    from safetensors.torch import save_file

    save_file(small_network().state_dict(), tmp_path / "x.safetensors", {"min_size": "480"})
    assert load_network(tmp_path / "x.safetensors").min_size == 1


@pytest.mark.parametrize(
    ("own", "options", "expected"),
    [
        (64, {}, 64),
        (64, {"max_size": 40}, 40),  # the user's choice has priority
        (64, {"min_size": 1}, HEIGHT),
        (64, {"min_size": 48}, 48),
        (64, {"max_size": 96}, 64),
        (1, {}, HEIGHT),
        (1, {"min_size": 48}, 48),
        (1, {"max_size": 16}, 16),
    ],
)
def test_small_frames_are_enlarged_as_suits_the_weights(own, options, expected):
    assert min(seen_size(sized(own), **options)) == expected
    assert min(seen_size(for_inference(sized(own)), **options)) == expected
    resolved = RunOptions(**options).for_weights(own)
    assert resolved.for_weights(9999) == resolved
    assert min(seen_size(sized(1), max_size=resolved.max_size, min_size=resolved.min_size)) == expected


@pytest.mark.slow
def test_python_and_the_command_give_the_same_results(tmp_path):
    """Byte for byte, with the size of the weights in both."""
    pictures, ids = draw(frames=3)
    write_sequence(tmp_path / "clip", tmp_path / "masks", pictures, {0: ids[0]})
    command = "segment clip --masks masks --device cpu --output command"
    program("-m", "stm_fast", *command.split(), folder=tmp_path, OMP_NUM_THREADS="1")
    lines = "import stm_fast\nmodel = stm_fast.load(device='cpu', dtype='float32')\n"
    lines += "stm_fast.segment_video('clip', 'masks', 'python', model=model)"
    program("-c", lines, folder=tmp_path, OMP_NUM_THREADS="1")
    found, expected = (files_in(tmp_path / name) for name in ("python", "command"))
    assert found == expected
    assert len([name for name in found if name.startswith("masks/")]) == 3
    # and the size has an effect
    model = stm_fast.load(device="cpu", dtype="float32")
    segment_video(tmp_path / "clip", tmp_path / "masks", tmp_path / "own", model=model, min_size=1)
    assert {name for name, data in files_in(tmp_path / "own").items() if data != found[name]} >= {"masks/00002.png"}


# the hub, on this machine

LOAD = """
import json, sys, stm_fast
for name in sys.argv[1:]:
    try:
        model = stm_fast.load(name, device="cpu", dtype="float32")
        print(json.dumps([name, str(model.architecture), model.min_size]))
    except stm_fast.InputError as error:
        print(json.dumps([name, str(error)]))
"""
NOT_FOUND = "no such file, and no such repository on "
REFUSED = {
    "user/repo@absent": "no such revision on ",
    "user/absent": NOT_FOUND,
    GATED: "access is restricted; accept its terms on ",
    "user/bin": "found no model.safetensors on ",
    "user/empty": "found no config.json on ",
    "user/pickle": "model.safetensors: not a safetensors file",
    "user/other": "config.json: its architecture: found key_dim 17, expected key_dim 16",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with repositories, the environment of programs that use it, and their folder."""
    folder = tmp_path_factory.mktemp("hub")
    sized(240).save_pretrained(folder / "model")
    files = {file.name: file.read_bytes() for file in (folder / "model").iterdir()}
    config = files["config.json"]
    with hub_server() as server:
        server.repositories.update(
            {
                "user/repo": files,
                GATED: files,
                "user/empty": {},
                "user/bin": {"config.json": config, "pytorch_model.bin": b"x", "model.pth": b"x"},
                "user/pickle": {"config.json": config, "model.safetensors": b"\x80\x02" * 50},
                "user/other": files | {"config.json": config.replace(b'"key_dim": 16', b'"key_dim": 17')},
            }
        )
        yield server, folder, {"HF_ENDPOINT": server.address, "HF_HOME": str(folder / "home"), "HF_TOKEN": ""}


def loaded(hub: tuple[Hub, Path, dict[str, str]], *names: str, **more: str) -> dict[str, list[str | int]]:
    """What `load` gives for each name, in one new process."""
    _, folder, environment = hub
    lines = program("-c", LOAD, *names, folder=folder, **environment, **more)
    return {name: rest for name, *rest in map(json.loads, lines)}


@pytest.mark.slow
def test_a_repository_is_downloaded_once_and_then_works_offline(hub):
    server, *_ = hub
    server.requests.clear()
    expected = [str(small_network().architecture), 240]
    names = ["user/repo", "user/repo@main", f"hf://user/repo@{COMMIT}"]
    assert loaded(hub, *names) == dict.fromkeys(names, expected)
    files = [request for request in server.requests if "/api/" not in request]
    assert [file for file in files if file.startswith("GET")] == [
        f"GET user/repo main {name}" for name in ("config.json", "model.safetensors")
    ]
    server.requests.clear()
    assert loaded(hub, *names, HF_HUB_OFFLINE="1") == dict.fromkeys(names, expected)
    assert not server.requests


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line(hub):
    found = loaded(hub, *REFUSED)
    for name, words in REFUSED.items():
        (line,) = found[name]
        assert words in line
        assert "\n" not in line


@pytest.mark.slow
def test_without_a_connection_only_the_hub_is_missed(hub):
    server, folder, _ = hub
    server.requests.clear()
    (line,) = loaded(hub, "user/new", HF_HUB_OFFLINE="1")["user/new"]
    assert line == f"user/new: no such file, not in the cache of the hub, and no connection to {server.address}"
    # files and folders never ask the hub
    assert loaded(hub, "default", str(folder / "model"), "model/model.safetensors").keys()
    assert not server.requests


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_asked_once(hub):
    _, folder, environment = hub
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    # nothing listens there any more
    done = ran("-c", LOAD, "user/new", folder=folder, **environment | {"HF_ENDPOINT": address})
    message = f"user/new: no such file, not in the cache of the hub, and no connection to {address}"
    assert json.loads(done.stdout) == ["user/new", message]
    assert not done.stderr  # huggingface_hub prints a line for each time that it tries again


def test_a_broken_connection_is_one_line(hub, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: 1 / 0)
        with pytest.raises(InputError, match=r"user/repo: http.* cannot be used: division by zero"):
            STM.from_pretrained("hf://user/repo", local_files_only=True)


@pytest.mark.slow
def test_commands_take_a_repository(hub, tmp_path):
    _, folder, environment = hub
    target = tmp_path / "x.safetensors"
    program("-m", "stm_fast", "convert", "user/repo", str(target), folder=folder, **environment)
    assert load_network(target).min_size == 240
    assert fingerprint(load_network(target)) == fingerprint(small_network())


@pytest.mark.slow
def test_pushing_and_loading_again(hub):
    server, folder, environment = hub
    lines = """
import stm_fast
from stm_fast.network.fingerprint import fingerprint
model = stm_fast.STM.from_pretrained("model")
print(model.push_to_hub("user/pushed", license="mit", token="hf_none"))
found = stm_fast.STM.from_pretrained("user/pushed")
print(found.min_size, fingerprint(found) == fingerprint(model))
"""
    address = f"{server.address}/user/pushed/commit/{COMMIT}"
    assert program("-c", lines, folder=folder, **environment) == [address, "240 True"]
    files = server.repositories["user/pushed"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert b"license: mit" in files["README.md"]
    # a card that was written on the hub stays
    files["README.md"] = b"mine"
    program("-c", lines, folder=folder, **environment)
    assert files["README.md"] == b"mine"


@pytest.mark.slow
def test_masks_of_numpy_frames_in_three_lines():
    """The lines of a newcomer, in a new process."""
    lines = """
import numpy as np, stm_fast
segmenter = stm_fast.VideoSegmenter(stm_fast.load(device="cpu"))
prob = segmenter.step(np.zeros((3, 32, 48), np.uint8), np.ones((32, 48), np.uint8))
print(tuple(prob.shape), segmenter.object_ids)
"""
    assert program("-c", lines, folder=Path.cwd()) == ["(2, 32, 48) [1]"]


# torch.hub

TORCH_HUB = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in repr(finder)]  # as if not installed
import torch
model = torch.hub.load("clone", "stm", source="local", device="cpu", dtype="float32")
import stm_fast
print(stm_fast.__file__, stm_fast.kernels.__file__)
segmenter = stm_fast.VideoSegmenter(model, min_size=1)
segmenter.step(torch.zeros(3, 32, 48), torch.ones(32, 48, dtype=torch.uint8))
print(tuple(segmenter.step(torch.zeros(3, 32, 48)).shape), model.min_size)
print(torch.hub.load("clone", "stm_resnet18", source="local", key_dim=16).architecture.key_dim)
"""


@pytest.mark.slow
def test_torch_hub_loads_a_clone_that_is_not_installed(tmp_path):
    clone, root = tmp_path / "clone", Path(stm_fast.__file__).parents[1]
    clone.mkdir()
    shutil.copy(root / "hubconf.py", clone)
    for name in ("stm_fast", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "kernels")
        shutil.copytree(root / name, clone / name, ignore=ignored)
    places = f"{clone}/stm_fast/__init__.py {clone}/kernels/__init__.py"
    assert program("-c", TORCH_HUB, folder=tmp_path, PYTHONPATH="") == [places, "(2, 32, 48) 480", "16"]


def test_torch_hub_has_an_entry_for_every_network():
    spec = importlib.util.spec_from_file_location("hubconf", Path(stm_fast.__file__).parents[1] / "hubconf.py")
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    assert {name for name in hubconf.__all__ if name != "stm"} == {f"stm_{name}" for name in NETWORKS}
    assert hubconf.stm is stm_fast.load
    assert all(importlib.util.find_spec(name) for name in hubconf.dependencies)


def test_the_cards_of_the_package_and_of_saved_weights_have_the_same_header(tmp_path):
    stm_lite2().save_pretrained(tmp_path, license="cc-by-nc-4.0")
    own = Path(released.FILE).with_name("README.md")
    header, saved = (path.read_text().split("---\n")[1] for path in (own, tmp_path / "README.md"))
    assert header == saved
