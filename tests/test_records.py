"""Files that the package writes and reads back: damage is reported in one line, equal content gives equal bytes."""

import json
import random
import string
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from stm_fast.csv_file import csv_lines, open_csv, read_csv
from stm_fast.errors import InputError
from stm_fast.record_file import difference, read_record_file, typed, write_record_file
from stm_fast.tensor_file import read_tensors, write_tensors
from stm_fast.training.log import TrainingLog, read_log

CONTENT = {"names": ["a", "ö", "\udc80"], "share": 0.1, "run": {"none": None, "sizes": [1, 2**70]}, "done": False}
HEADER = "index,frame,object,pixels,score\n"


def read(file):
    return read_record_file(file, "the record of a test", "write it again")


def refused(file):
    with pytest.raises(InputError) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("; write it again")
    assert "\n" not in str(caught.value)


# records


def test_a_record_is_read_back_unchanged(tmp_path):
    file = tmp_path / "record.json"
    write_record_file(file, CONTENT | {"path": tmp_path})
    assert read(file) == CONTENT | {"path": str(tmp_path)}
    text = file.read_text()
    assert text.startswith('{\n "names": [\n')
    assert len(json.loads(text)["sha256"]) == 64
    # other white space, another order and a byte order mark are equivalent
    file.write_text("\ufeff" + json.dumps(dict(reversed(json.loads(text).items())), indent=4), encoding="utf-8")
    assert read(file) == CONTENT | {"path": str(tmp_path)}


def test_any_flipped_bit_of_a_record_is_refused_or_changes_nothing(tmp_path):
    file = tmp_path / "record.json"
    write_record_file(file, CONTENT)
    whole = file.read_bytes()
    harmless = 0
    for at in range(len(whole)):
        for bit in {at % 8, 5}:  # 5: changes the case of letters
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            file.write_bytes(damaged)
            with suppress(InputError):
                assert read(file) == CONTENT
                harmless += 1
    assert harmless < len(whole) / 10


@pytest.mark.parametrize(
    "text",
    [
        *("", "\0", "{", "[]", "null", "1", '"sha256"', "{}", '{"sha256": null}', '{"sha256": []}', "[" * 100_000),
        *('{"a": 1, "sha256": "0"}', '{"a": ' + "9" * 5000 + "}", '{"a": NaN}', "\ud800"),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "record.json").write_text(text, errors="surrogatepass")
    refused(tmp_path / "record.json")


def test_a_missing_record_is_refused(tmp_path):
    refused(tmp_path / "record.json")
    (tmp_path / "folder.json").mkdir()
    refused(tmp_path / "folder.json")


def test_the_entry_that_differs_is_named():
    expected = {"dtype": "float32", "memory": {"every": 5, "top_k": None}}
    assert difference(dict(expected), expected) is None
    assert difference(expected | {"dtype": "float16"}, expected) == "its dtype: found float16, expected float32"
    assert difference({}, {"a": 1}) == "its a: found None, expected 1"
    assert difference({"a": "x\n" * 1000}, {}).startswith("its a: found x x x")
    assert len(difference({"a": "x\n" * 1000}, {})) < 200
    changed = expected | {"memory": {"every": 3, "top_k": None}}
    assert difference(changed, expected) == "its memory: found every 3, expected every 5"


@dataclass(frozen=True)
class _Inner:
    kind: Literal["one", "two"]
    sizes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Outer:
    inner: _Inner
    share: float
    seconds: dict[str, float]
    anything: Any = None
    perhaps: int | None = None


OUTER = {"inner": {"kind": "one", "sizes": [1]}, "share": 1, "seconds": {"a": 0.5}}


def test_a_record_becomes_a_dataclass():
    assert typed(OUTER, _Outer, "it") == _Outer(_Inner("one", [1]), 1.0, {"a": 0.5})
    more = {"anything": [{}], "perhaps": 3}
    assert typed(OUTER | more, _Outer, "it") == _Outer(_Inner("one", [1]), 1.0, {"a": 0.5}, [{}], 3)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"share": True}, "it.share"),
        ({"share": "1"}, "it.share"),
        ({"seconds": {"a": None}}, "it.seconds.a"),
        ({"seconds": []}, "it.seconds"),
        ({"perhaps": 1.0}, "it.perhaps"),
        ({"perhaps": False}, "it.perhaps"),
        ({"inner": {"kind": "three"}}, "it.inner.kind"),
        ({"inner": {"kind": []}}, "it.inner.kind"),
        ({"inner": {"kind": "one", "sizes": [1, 1.5]}}, "it.inner.sizes.1"),
        ({"inner": {}}, "it.inner"),
        ({"inner": []}, "it.inner"),
        ({"more": 1}, "it: found"),
    ],
)
def test_values_of_wrong_types_are_named(change, name):
    with pytest.raises(ValueError, match=name):
        typed(OUTER | change, _Outer, "it")


# tensors

TENSORS = {
    "b": torch.arange(6.0).view(2, 3),
    "a": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
    "one": torch.tensor(7),
    'ö\x01"\\': torch.ones(3, dtype=torch.bfloat16),
}
FACTS = {"rank": "1", "frames": "12", "format": "test", "run": "r", "a": "ö"}


def test_tensors_are_read_back_and_their_files_are_reproducible(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        write_tensors(file, TENSORS, FACTS, checksum=True)
    assert len({file.read_bytes() for file in files}) == 1
    found, facts = read_tensors(files[0])
    assert facts == FACTS
    assert found.keys() == TENSORS.keys() == load_file(files[0]).keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    for file in files:
        write_tensors(file, TENSORS, FACTS)
    assert len({file.read_bytes() for file in files}) == 1


def test_any_flipped_bit_of_tensors_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, TENSORS, FACTS, checksum=True)
    whole = file.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^it"):
            read_tensors(file)
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^it"):
            read_tensors(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="checksum"):
        read_tensors(file)
    write_tensors(file, TENSORS, FACTS)
    with pytest.raises(ValueError, match="it has no checksum"):
        read_tensors(file)


# tables


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\t=1", '"\'\t=1"'),
        ("\ta", '"\'\ta"'),
        ("\r=1", '"\'\r=1"'),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("\ufeff=1", "'\ufeff=1"),
        ("'=1", "''=1"),
        ("a;=1+1", '"a;=1+1"'),
        ('=HYPERLINK("x","y")', '"\'=HYPERLINK(""x"",""y"")"'),
        # unchanged
        ("-0.012", "-0.012"),
        (-0.5, "-0.5"),
        (-3, "-3"),
        ("+1", "+1"),
        ("1e-05", "1e-05"),
        ("00004", "00004"),
        ("it's", "it's"),
        ("'quoted'", "'quoted'"),
        ("J&F-Mean", "J&F-Mean"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(cell, written):
    assert csv_lines([(cell, 1)]) == f"{written},1\n"


def test_any_name_is_read_back_unchanged(tmp_path):
    rng = random.Random(0)
    parts = [*"=+-@'\",;\t\r\n 1.a\0\ufeff\u2028\uff1d\udc80", "ö", "\x0b"]
    names = ["".join(rng.choices(parts, k=rng.randrange(7))) for _ in range(3000)]
    names += [before + mark for before in ("", "'", "''") for mark in string.printable]
    with open_csv(tmp_path / "x.csv", "w") as file:
        file.write(csv_lines(("1", name, "2") for name in names))
    with open_csv(tmp_path / "x.csv", "r") as file:
        assert list(read_csv(file)) == [["1", name, "2"] for name in names]


# the log of a training run


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "{}", '{"step": "1"}', '{"step": 1.5}', '{"step": true}', "\0\0", "[" * 100_000]
)
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    for action in (lambda: read_log(file), lambda: TrainingLog(tmp_path, 3)):
        with pytest.raises(InputError, match=r"log\.jsonl: line 2 is damaged") as caught:
            action()
        assert "\n" not in str(caught.value)
    file.write_text('{"step": 1}\n' + line)
    assert read_log(file) == [{"step": 1}], "a truncated last line is ignored"
