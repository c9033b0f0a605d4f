"""Lists of sequences and meta.json, as users, editors and other systems write them."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from small_inputs import one_object
from stm_fast.choices import SetName
from stm_fast.data.sequences import MEANINGS, SETS, davis16, davis17, folder, youtube_vos
from stm_fast.errors import InputError
from stm_fast.video import write_mask


@pytest.fixture
def root(tmp_path):
    return tmp_path


def add_sequence(root: Path, name: str, inside: str = "") -> None:
    (root / "JPEGImages" / inside / name).mkdir(parents=True)
    (root / "Annotations" / inside / name).mkdir(parents=True)
    write_mask(root / "Annotations" / inside / name / "00000.png", one_object())


def write_list(root: Path, content: bytes, place: str = "") -> Path:
    file = root / "ImageSets" / place / "val.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"bike\n", ["bike"]),
        (b"\xef\xbb\xbfbike\r\n", ["bike"]),
        (b"\xef\xbb\xbf\r\nbike\r\n\r\nmy clip\r\n", ["bike", "my clip"]),
        (b"bike\rmy clip", ["bike", "my clip"]),
        ("  bike \nv\u00e9lo\t\n視頻\nbike".encode(), ["bike", "vélo", "視頻"]),
        (b"my clip\na  b", ["my clip", "a  b"]),
    ],
)
def test_a_line_of_a_list_is_a_name(root, content, names):
    for name in names:
        add_sequence(root, name)
    write_list(root, content)
    assert [sequence.name for sequence in folder(root, "val")] == names


@pytest.mark.parametrize(
    "line",
    [
        "/JPEGImages/480p/{0}/00000.jpg /Annotations/480p/{0}/00000.png",
        "/JPEGImages/480p/{0}/00000.jpg /Annotations/480p/{0}/00000.png 1 0 1",
        "JPEGImages/480p/{0}/00000.jpg\tAnnotations/480p/{0}/00000.png",
        "/JPEGImages/480p/{0}/00000.jpg",
        "{0}",
    ],
)
def test_lists_of_davis_2016_hold_pairs_of_paths(root, line):
    names = ["bike", "my clip"]
    for name in names:
        add_sequence(root, name, "480p")
    lines = [line.format(name).replace("00000", f"{frame:05}") for name in names for frame in range(3)]
    write_list(root, "\r\n".join(lines).encode(), "480p")
    assert [sequence.name for sequence in davis16(root, "val")] == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("vélo\n".encode("latin-1"), "found invalid UTF-8 at byte 1"),
        ("bike\n".encode("utf-16"), "found invalid UTF-8 at byte 0"),
        ("bike\n".encode("utf-16-le"), r"name of a sequence: found 'b\x00i\x00k\x00e\x00"),
        (b"\x89PNG\r\n\x1a\n", "found invalid UTF-8 at byte 0"),
        (b"", "found no sequence, expected a name a line"),
        (b"\xef\xbb\xbf\r\n \t\r\n", "found no sequence, expected a name a line"),
        (b"a/bike\n", "name of a sequence: found 'a/bike'"),
        (b"../bike\n", "name of a sequence: found '../bike'"),
        (b"/JPEGImages/480p/../00000.jpg /Annotations/480p/../00000.png", "name of a sequence: found '..'"),
        (b"a\x1b[31m\n", "no such folder of frames"),
        (b"a" * 300, "of at most 255 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_invalid_list_of_sequences_is_refused_in_one_line(root, content, words):
    add_sequence(root, "bike")
    write_list(root, content)
    # the command line prints both in the same way
    with pytest.raises((InputError, OSError), match=re.escape(words)) as refused:
        folder(root, "val")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["folder", "dangling", "loop"])
def test_a_missing_list_file_is_named(root, kind):
    file = root / "ImageSets/2017/val.txt"
    file.parent.mkdir(parents=True)
    file.mkdir() if kind == "folder" else file.symlink_to("nowhere" if kind == "dangling" else file.name)
    with pytest.raises(InputError, match=r"ImageSets/2017/val\.txt: no such file, expected a list of sequences"):
        davis17(root, "val")


def write_meta(root: Path, content: bytes) -> None:
    (root / "valid/JPEGImages").mkdir(parents=True)
    (root / "valid/meta.json").write_bytes(content)


def meta(**videos) -> bytes:
    return json.dumps({"videos": videos}).encode()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_meta_says_which_frames_are_required(root, mark):
    write_meta(root, mark + meta(b={"objects": {"1": {"frames": ["0", "5"]}, "2": {"frames": ["5", "10"]}}}))
    add_sequence(root / "valid", "b")
    (sequence,) = youtube_vos(root, "valid")
    assert (sequence.name, sequence.required) == ("b", {"0", "5", "10"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        ("é".encode("latin-1"), "invalid UTF-8"),
        (b"null", "found no videos by name"),
        (b"[]", "found no videos by name"),
        (b'{"videos": ["a"]}', "found no videos by name"),
        (b'{"videos": {}}', "found no video"),
        (meta(a=None), "found no objects by name of 'a'"),
        (meta(a={"objects": ["1"]}), "found no objects by name of 'a'"),
        (meta(a={"objects": {"1": None}}), "found an object without a list of frames of 'a'"),
        (meta(a={"objects": {"1": {}}}), "found an object without a list of frames of 'a'"),
        (meta(a={"objects": {"1": {"frames": "00000"}}}), "found an object without a list of frames of 'a'"),
        (meta(a={"objects": {"1": {"frames": [0, 5]}}}), "found an object without a list of frames of 'a'"),
        (meta(a={"objects": {"1": {"frames": [["0"]]}}}), "found an object without a list of frames of 'a'"),
        (meta(a={"objects": {"1": {"frames": ["../../x"]}}}), "frame of 'a': found '../../x'"),
        (meta(**{"../a": {"objects": {}}}), "name of a sequence: found '../a'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_meta_is_refused_in_one_line(root, content, words):
    write_meta(root, content)
    with pytest.raises(InputError, match=r"^[^\n]*$") as refused:
        youtube_vos(root, "valid")
    assert words in str(refused.value)


def test_every_set_that_a_user_can_name_is_registered():
    assert set(SETS) == set(MEANINGS) == set(get_args(SetName))
