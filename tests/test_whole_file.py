"""Files get their names only when complete, and files left by a killed process cause no errors."""

import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stm_fast.errors import InputError
from stm_fast.tensor_file import write_tensors
from stm_fast.whole_file import (
    partial_path,
    refuse_input,
    refuse_links,
    remove_left_over,
    whole_file,
    whole_folder,
)


def test_tensor_files_have_the_usual_permissions_and_no_temporary_file(tmp_path):
    (tmp_path / "other").touch()
    write_tensors(tmp_path / "x.safetensors", {"a": torch.arange(3)}, {"format": "test"})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "x.safetensors")["a"], torch.arange(3))
    assert sorted(os.listdir(tmp_path)) == ["other", "x.safetensors"]
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_process_may_have_the_id_of_a_killed_one(tmp_path):
    tensors, folder = tmp_path / "x.safetensors", tmp_path / "masks"
    for path in (tensors, folder):
        partial_path(path).mkdir()
        (partial_path(path) / path.name).write_text("half")
        (partial_path(path) / "stale").write_text("half")
    write_tensors(tensors, {"a": torch.zeros(1)})
    assert safetensors.torch.load_file(tensors).keys() == {"a"}
    with whole_folder(folder) as partial:
        (partial / "new").touch()
    assert os.listdir(folder) == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["masks", "x.safetensors"]


def test_an_earlier_folder_is_replaced_only_by_a_whole_one(tmp_path):
    folder = tmp_path / "results"
    (folder / "masks").mkdir(parents=True)
    (folder / "masks/earlier").write_text("whole")
    with pytest.raises(InputError, match="cannot write"), whole_folder(folder) as partial:
        (partial / "new").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(folder, replace=True) as partial:
        (partial / "new").write_text(str(1 // 0))
    assert (folder / "masks/earlier").read_text() == "whole"
    with pytest.raises(InputError, match="cannot write"), whole_folder(folder, replace=True) as partial:
        partial.rmdir()
    assert (folder / "masks/earlier").read_text() == "whole"
    with whole_folder(folder, replace=True) as partial:
        (partial / "new").touch()
        assert os.listdir(folder) == ["masks"]
    assert os.listdir(folder) == ["new"]
    assert os.listdir(tmp_path) == ["results"]


def test_leftovers_of_one_name_or_of_all_are_removed(tmp_path):
    for name in ("a[1]", "a1", "a[1].v2"):
        (tmp_path / f".{name}.7.partial").mkdir()
        (tmp_path / f".{name}.8.partial").touch()
    (tmp_path / ".resume.json").touch()
    remove_left_over(tmp_path, "a[1]")
    others = [".a1.7.partial", ".a1.8.partial", ".a[1].v2.7.partial", ".a[1].v2.8.partial", ".resume.json"]
    assert sorted(os.listdir(tmp_path)) == others
    remove_left_over(tmp_path)
    assert os.listdir(tmp_path) == [".resume.json"]


def test_an_unwritable_path_is_reported_in_one_line(tmp_path):
    for path in (tmp_path / "absent/x.safetensors", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot write ") as caught:
            write_tensors(path, {"a": torch.zeros(1)})
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="cannot write "), whole_file(path) as partial:
            partial.touch()
    assert not os.listdir(tmp_path)


def test_a_link_is_removed_or_replaced_but_not_its_target(tmp_path):
    """Even if it has the name of a file left by a killed process, or of one about to be written."""
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir(), here.mkdir()
    (elsewhere / "file").write_text("theirs")
    (here / ".a.7.partial").symlink_to(elsewhere)
    (here / ".b.7.partial").symlink_to(elsewhere / "file")
    remove_left_over(here)
    assert os.listdir(here) == []
    for path in (here / "x", here / "folder"):
        partial_path(path).symlink_to(elsewhere / "file" if path.name == "x" else elsewhere)
    (here / "x").symlink_to(elsewhere / "file")
    with whole_file(here / "x") as partial:
        partial.write_text("ours")
    with whole_folder(here / "folder") as partial:
        (partial / "new").touch()
    assert not (here / "x").is_symlink()
    assert (os.listdir(elsewhere), (elsewhere / "file").read_text()) == (["file"], "theirs")
    assert (os.listdir(here / "folder"), (here / "x").read_text()) == (["new"], "ours")


def test_outputs_that_are_links_or_inputs_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    refuse_links(tmp_path, tmp_path / "folder", tmp_path / "absent")
    for name, target in (("link", "folder"), ("loop", "loop")):
        with pytest.raises(InputError, match=f"{name}: found a symbolic link to {target}, expected a folder"):
            refuse_links(tmp_path / "folder", tmp_path / name)
    (tmp_path / "folder/file").touch()
    refuse_input(tmp_path / "absent", [tmp_path / "folder/file", tmp_path / "absent"])
    with pytest.raises(InputError, match="link/file: found as both input and output"):
        refuse_input(tmp_path / "link/file", [tmp_path / "other", tmp_path / "folder/file"])


def test_a_path_that_names_no_file_is_refused():
    for path in ("/", "."):
        with (
            pytest.raises(InputError, match=rf"cannot write {re.escape(path)}: found a folder"),
            whole_file(Path(path)),
        ):
            pass
