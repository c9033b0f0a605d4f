"""The network's confidence in each object: the score, the table of a run, and the message at its end."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from stm_fast.inference.engine import Segmentation
from stm_fast.inference.objects import object_scores
from stm_fast.inference.sightings import Sighting
from stm_fast.network import stm_resnet18
from stm_fast.runs.loop import Segmented
from stm_fast.runs.score_table import ScoreTable, Sight, sights
from stm_fast.runs.video import Summary, segment_video
from stm_fast.tasks.progress import print_summary
from stm_fast.video import Frame, read_mask, write_mask

HEADER = ["index", "frame", "object", "pixels", "score"]


def frame(index, name=None):
    return Frame(index, index / 25, name or f"{index:05d}", np.zeros((2, 3, 3), np.uint8))


def rows(folder):
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_score_is_the_expected_j_of_a_mask():
    """Four pixels: two of the object, at 0.9 and 0.6, and one of the others at 0.3."""
    object_3 = torch.tensor([[0.9, 0.6, 0.3, 0.0]])
    lost = torch.tensor([[0.05, 0.0, 0.2, 0.0]])
    found = Segmentation(0, torch.stack([1 - object_3 - lost, object_3, lost]), [3, 9])
    assert found.mask.tolist() == [[3, 3, 0, 0]]
    assert found.scores.tolist() == pytest.approx([1.5 / 2.3, 0.0])


def test_certain_objects_score_1_and_absent_ones_0():
    prob = torch.zeros(3, 4, 4)
    prob[0], prob[1, :2], prob[0, :2] = 1, 1, 0
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[:2] = 200
    assert object_scores(prob, mask, [200, 7]).tolist() == [1, 0]
    assert object_scores(prob[:1], torch.zeros_like(mask), []).shape == (0,)


def test_a_run_writes_the_scores_of_every_object_that_exists(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "in").mkdir(), (tmp_path / "given").mkdir()
    for index in range(5):
        noise = np.random.default_rng(index).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / f"{index}.png")
    for index, (number, left) in {1: (4, 2), 3: (9, 30)}.items():
        ids = np.zeros((32, 48), np.uint8)
        ids[4:20, left : left + 12] = number
        write_mask(tmp_path / "given" / f"{index}.png", ids)
    model = stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()
    segment_video(tmp_path / "in", tmp_path / "given", tmp_path / "out", model=model, write=("masks", "csv"))
    header, *found = rows(tmp_path / "out")
    assert header == HEADER
    expected = [("1", "4"), ("2", "4"), ("3", "4"), ("3", "9"), ("4", "4"), ("4", "9")]
    assert [(name, number) for _, name, number, _, _ in found] == expected
    for index, name, number, pixels, score in found:
        assert index == name
        assert int(pixels) == (read_mask(tmp_path / f"out/masks/{name}.png").ids == int(number)).sum()
        assert 0 <= float(score) <= 1
        assert (float(score) == 0) == (pixels == "0")
    assert [score for _, name, number, _, score in found if (name, number) in {("1", "4"), ("3", "9")}] == ["1.000"] * 2


def test_a_resumed_run_keeps_the_lines_of_finished_frames(tmp_path):
    ids = np.full((3, 3), 2, np.uint8)
    table = ScoreTable(tmp_path, 0)
    for index in range(4):
        table.write(Segmented(frame(index), ids, [Sighting(2, 9, 0.5, 0.5, "doubtful")]))
    table.sync()
    table.close()
    with (tmp_path / "scores.csv").open("a") as file:
        file.write("4,00004,2,9")  # a process was killed here
    table = ScoreTable(tmp_path, 3)
    seen = [Sighting(2, 9, 0.25, 0.25, "doubtful"), Sighting(7, 0, 0.0, 0.0, "lost")]
    table.write(Segmented(frame(3, 'a "name", odd'), ids, seen))
    table.close()
    assert rows(tmp_path) == [
        HEADER,
        *([str(index), f"{index:05d}", "2", "9", "0.500"] for index in range(3)),
        ["3", 'a "name", odd', "2", "9", "0.250"],
        ["3", 'a "name", odd', "7", "0", "0.000"],
    ]
    ScoreTable(tmp_path, 0).close()
    assert rows(tmp_path) == [HEADER]


def test_the_summary_names_objects_that_were_not_found(tmp_path, capsys):
    assert sights(tmp_path) == []
    table = ScoreTable(tmp_path, 0)
    for index, seen in enumerate([True, False, True, False, False]):
        ids = np.zeros((3, 3), np.uint8)
        ids[0] = 1
        ids[1] = 5 * seen
        found = Sighting(5, 3, 0.7, 0.7, "found") if seen else Sighting(5, 0, 0.0, 0.0, "lost")
        table.write(Segmented(frame(index), ids, [Sighting(1, 3, 0.9, 0.9, "found"), found]))
    table.close()
    assert sights(tmp_path) == [Sight(1, 5, 0, "00004"), Sight(5, 5, 3, "00002")]
    print_summary(Summary(5, 2.0, [1, 5], tmp_path))
    note, summary = capsys.readouterr().out.splitlines()
    assert note == f"{tmp_path / 'scores.csv'}: object 5 not found in 3 of 5 frames, last found in 00002"
    assert summary == f"5 frames, objects 1, 5, 2.50 frames/s, results in {tmp_path}"
