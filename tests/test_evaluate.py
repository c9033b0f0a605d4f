"""Benchmark sets in their official layouts: listed, run, scored, submitted. The tests draw their own sets."""

import json
import os
import shutil
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from processes import run_ranks, torchrun
from small_inputs import FRAMES, SIZE, draw, given_masks, small_network, write_davis, write_sequence, write_youtube
from stm_fast.__main__ import app
from stm_fast.data.sequences import SETS, Objects, Sequence, annotated_sequences, davis16, davis17, folder, youtube_vos
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.data.synthetic_set import draw_sequence
from stm_fast.errors import InputError
from stm_fast.evaluation import contour_accuracy, region_similarity
from stm_fast.evaluation.baselines import copy_first_masks
from stm_fast.evaluation.benchmark_sets import (
    Timing,
    claim_output,
    describe_run,
    read_timings,
    run_sequences,
    write_zip,
)
from stm_fast.evaluation.record import make_record, write_tables
from stm_fast.evaluation.report import write_report
from stm_fast.evaluation.scoring import score_sequence, score_sequences
from stm_fast.inference.augmentation import AugmentedSegmenter
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM
from stm_fast.record_file import write_record_file
from stm_fast.video import object_ids, open_frames, read_mask, write_mask


@pytest.fixture(scope="module")
def model() -> STM:
    return small_network()


def run_command(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def small_run(root, output, *arguments):
    return run_command("davis17", "--data", root, "-o", output, "--arch", "resnet18", "--workers", 1, *arguments)


# listing


def test_davis17_lists_the_split(tmp_path):
    sequences = davis17(write_davis(tmp_path), "val")
    assert [sequence.name for sequence in sequences] == ["blob", "star"]
    assert sequences[0].annotated == ("00000", "00001", "00002", "00003", "00004")
    assert sequences[0].fully_annotated
    (sequences[0].annotations / "00003.png").unlink()
    assert not davis17(tmp_path, "val")[0].fully_annotated


@pytest.mark.parametrize("release", [2016, 2017])
def test_davis16_reads_lists_and_masks_of_both_releases(tmp_path, release):
    if release == 2017:
        write_davis(tmp_path, split_file="ImageSets/2016/val.txt", change=lambda ids: np.where(ids == 2, 255, ids))
    else:
        write_davis(tmp_path, change=lambda ids: (255 * (ids == 1)).astype(np.uint8))
        pairs = [
            f"/JPEGImages/480p/{name}/{frame:05d}.jpg /Annotations/480p/{name}/{frame:05d}.png "
            for name in ("blob", "star")
            for frame in range(FRAMES)
        ]
        (tmp_path / "ImageSets/480p").mkdir()
        (tmp_path / "ImageSets/480p/val.txt").write_text("\n".join(pairs))
    sequences = davis16(tmp_path, "val")
    assert [sequence.name for sequence in sequences] == ["blob", "star"]
    _, ids = draw(0)
    np.testing.assert_array_equal(sequences[0].read_annotation("00001"), ids[1] == 1)


def test_youtube_vos_gives_new_objects_and_requires_what_meta_lists(tmp_path):
    root, late = write_youtube(tmp_path)
    (sequence,) = youtube_vos(root, "valid")
    assert sequence.frames == root / "all_frames/valid_all_frames/JPEGImages/v1"
    assert sequence.required == {"00000", "00005", "00010", "00015"}
    assert not sequence.fully_annotated
    assert sequence.given("00000", [])[1] == [1]
    assert sequence.given("00005", [1]) is None
    ids, new = sequence.given("00010", [1])
    assert new == [2]
    np.testing.assert_array_equal(ids, late)
    assert sequence.given("00010", [1, 2]) is None


def test_youtube_vos_without_all_frames(tmp_path):
    root, _ = write_youtube(tmp_path)
    (root / "all_frames").rename(root / "elsewhere")
    assert youtube_vos(root, "valid")[0].frames == root / "valid/JPEGImages/v1"


def test_davis17_gives_the_first_frame_and_takes_255_for_void(tmp_path):
    root = write_davis(tmp_path, change=lambda ids: np.where(ids == 2, 255, ids))
    sequence = davis17(root, "val")[0]
    assert sequence.given("00000", [])[1] == [1]
    assert sequence.given("00001", [1]) is None
    assert object_ids(sequence.read_annotation("00000")) == [1]


def test_folder_with_and_without_lists(tmp_path):
    write_davis(tmp_path, split_file="ImageSets/few.txt")
    (tmp_path / "ImageSets/few.txt").write_text("star\n\n")
    assert [sequence.name for sequence in folder(tmp_path, "all")] == ["blob", "star"]
    assert [sequence.name for sequence in folder(tmp_path, "few")] == ["star"]


@pytest.mark.parametrize(
    ("layout", "split", "message"),
    [
        (davis17, "test", "2017/test.txt: no such list"),
        (davis16, "val", "2016/val.txt: no such list of sequences, nor .*480p/val.txt"),
        (youtube_vos, "valid", "meta.json: no such file"),
        (folder, "all", "Annotations.*: no such folder of sequences"),
    ],
)
def test_other_layouts_are_refused_in_one_line(tmp_path, layout, split, message):
    with pytest.raises(InputError, match=message):
        layout(tmp_path, split)


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "", ".", "..", "v1/", "/v1", "v1\0"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    root, _ = write_youtube(tmp_path)
    (root / "valid/meta.json").write_text(json.dumps({"videos": {name: {"objects": {}}}}))
    with pytest.raises(InputError, match="expected the name of a folder"):
        youtube_vos(root, "valid")


def test_a_path_of_a_frame_that_is_in_no_sequence_is_refused(tmp_path):
    root = write_davis(tmp_path, split_file="ImageSets/2016/val.txt")
    write_mask(root / "Annotations/480p/00000.png", draw()[1][0])  # as though "" were a sequence
    (root / "ImageSets/2016/val.txt").write_text("/00000.jpg /00000.png\n")
    with pytest.raises(InputError, match=r"name of a sequence: found '/00000.*', expected the name of a folder"):
        davis16(root, "val")


def test_frames_that_are_their_own_annotations_are_refused(tmp_path):
    pictures, masks = draw(0)
    write_sequence(tmp_path / "JPEGImages/blob", tmp_path / "Annotations/blob", pictures, dict(enumerate(masks)))
    shutil.rmtree(tmp_path / "JPEGImages")
    (tmp_path / "JPEGImages").symlink_to("Annotations")
    with pytest.raises(InputError, match="blob: found the frames there too, expected a folder of masks alone"):
        folder(tmp_path, "all")


def test_a_listed_sequence_without_frames_or_masks(tmp_path):
    root = write_davis(tmp_path)
    (root / "ImageSets/2017/val.txt").write_text("blob\nghost\n")
    with pytest.raises(InputError, match="480p/ghost: no such folder of frames"):
        davis17(root, "val")
    (root / "JPEGImages/480p/ghost").mkdir()
    with pytest.raises(InputError, match="480p/ghost: no such folder of masks"):
        davis17(root, "val")
    (root / "Annotations/480p/ghost").mkdir()
    with pytest.raises(InputError, match="480p/ghost: no mask in it"):
        davis17(root, "val")


# scoring


def score(tmp_path, truth, found, objects=Objects.FIRST):
    """The scores of one sequence, written and read."""
    for kind, masks in (("truth", truth), ("found", found)):
        (tmp_path / kind).mkdir()
        for index, ids in enumerate(masks):
            write_mask(tmp_path / kind / f"{index:05d}.png", ids)
    return score_sequence(Sequence("clip", None, tmp_path / "truth", objects), tmp_path / "found")


def test_the_first_and_the_last_frame_do_not_count(tmp_path):
    _, ids = draw()
    found = ids.copy()
    found[[0, -1]] = 0
    scores = score(tmp_path, ids, found)
    assert [item.name for item in scores] == ["clip_1", "clip_2"]
    assert all(item.J.mean == 1 and item.F.mean == 1 and item.frames == ("00001", "00002", "00003") for item in scores)
    found[2] = 0
    (tmp_path / "again").mkdir()
    assert score(tmp_path / "again", ids, found)[0].region.tolist() == [1, 0, 1]


def test_scores_are_the_metrics_of_each_object(tmp_path):
    _, ids = draw(1)
    found = np.roll(ids, 2, axis=2)
    scores = score(tmp_path, ids, found)
    for item in scores:
        truth, other = ids[1:-1] == item.object_id, found[1:-1] == item.object_id
        np.testing.assert_array_equal(item.region, region_similarity(other, truth))
        np.testing.assert_array_equal(item.contour, contour_accuracy(other, truth))


def test_objects_are_counted_from_one_to_the_highest_of_the_first_annotation(tmp_path):
    """As in the toolkit: id 2 counts although no pixel has it, and id 4, which appears later, does not."""
    truth = np.zeros((5, *SIZE), np.uint8)
    truth[:, 4:12, 4:12] = 1
    truth[:, 16:24, 4:12] = 3
    truth[2:, 4:12, 30:40] = 4
    scores = score(tmp_path, truth, np.where(truth == 4, 0, truth))
    assert [item.object_id for item in scores] == [1, 2, 3]
    assert scores[1].region.tolist() == scores[1].contour.tolist() == [1, 1, 1]


def test_a_later_object_counts_as_right_before_it_appears(tmp_path):
    # object 2 appears in frame 3 of 0..5 and is found nowhere: frames 1 and 2 count 1, frames 3 and 4 count 0
    truth = np.zeros((6, *SIZE), np.uint8)
    truth[:, 4:12, 4:12] = 1
    truth[3:, 4:12, 30:40] = 2
    scores = score(tmp_path, truth, np.where(truth == 2, 0, truth), Objects.ALL)
    assert scores[1].region.tolist() == scores[1].contour.tolist() == [1, 1, 0, 0]
    assert scores[1].J == (0.5, 0.5, 1)


def test_davis16_counts_whatever_is_not_background(tmp_path):
    truth = np.zeros((3, *SIZE), np.uint8)
    truth[:, 4:12, 4:12] = 255
    found = np.where(truth > 0, 1, 0).astype(np.uint8)
    assert [(item.object_id, item.J.mean) for item in score(tmp_path, truth, found, Objects.ONE)] == [(1, 1.0)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda found: (found / "00002.png").unlink(), "00002.png: no such mask"),
        (lambda found: write_mask(found / "00002.png", np.zeros((8, 9), np.uint8)), "9x8, expected 48x32"),
        (lambda found: write_mask(found / "00002.png", np.full(SIZE, 3, np.uint8)), r"found objects \[3\]"),
    ],
)
def test_results_that_cannot_be_scored(tmp_path, spoil, message):
    _, ids = draw()
    score(tmp_path, ids, ids)
    spoil(tmp_path / "found")
    with pytest.raises(InputError, match=message):
        score_sequence(Sequence("clip", None, tmp_path / "truth", Objects.FIRST), tmp_path / "found")


def test_two_frames_are_too_few_to_score(tmp_path):
    _, ids = draw()
    with pytest.raises(InputError, match="found 2 annotated frames"):
        score(tmp_path, ids[:2], ids[:2])


@pytest.mark.slow
def test_processes_give_the_same_scores_in_the_same_order(tmp_path):
    root = write_davis(tmp_path, names=("c", "a", "b"))
    pairs = [(sequence, sequence.annotations) for sequence in davis17(root, "val")]
    alone, together = score_sequences(pairs, workers=1), score_sequences(pairs, workers=2)
    assert (
        [item.name for item in together] == [item.name for item in alone] == ["c_1", "c_2", "a_1", "a_2", "b_1", "b_2"]
    )
    assert all(item.J.mean == 1 for item in together)


# running


@pytest.mark.slow
def test_a_set_is_run_scored_and_recorded(tmp_path):
    root, output = write_davis(tmp_path / "davis"), tmp_path / "out"
    result = small_run(root, output)
    assert result.exit_code == 0, result.output
    masks = sorted(str(path.relative_to(output)) for path in output.glob("Annotations/*/*"))
    assert masks == [f"Annotations/{name}/{frame:05d}.png" for name in ("blob", "star") for frame in range(FRAMES)]
    _, ids = draw(0)
    np.testing.assert_array_equal(read_mask(output / "Annotations/blob/00000.png").ids, ids[0])

    record = json.loads((output / "results.json").read_text())
    found = np.stack([read_mask(output / f"Annotations/blob/{frame:05d}.png").ids for frame in (1, 2, 3)])
    expected = region_similarity(found == 2, ids[1:4] == 2)
    assert record["objects"][1]["J"]["per_frame"] == expected.tolist()
    means = [[item[measure]["mean"] for item in record["objects"]] for measure in "JF"]
    assert record["global"]["J&F-Mean"] == pytest.approx(np.mean(means))
    assert record["run"]["inference"]["memory"]["every"] == 5
    assert record["speed"]["frames"] == 2 * FRAMES
    network = sum(s for stage, s in record["speed"]["stage_seconds"].items() if stage not in ("decode", "write"))
    assert network == pytest.approx(record["speed"]["network_seconds"])

    lines = (output / "global_results-val.csv").read_text().splitlines()
    assert lines[0] == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert lines[1].split(",")[0] == f"{np.mean(means):.3f}"
    lines = (output / "per-sequence_results-val.csv").read_text().splitlines()
    assert lines[0] == "Sequence,J-Mean,F-Mean"
    assert [line.split(",")[0] for line in lines[1:]] == ["blob_1", "blob_2", "star_1", "star_2"]
    assert "Global results for val, in percent" in result.stdout
    assert "frames/s without loading" in result.stdout


@pytest.mark.slow
def test_some_sequences_of_a_split(tmp_path):
    root, output = write_davis(tmp_path / "davis"), tmp_path / "out"
    refused = small_run(root, output, "--sequence", "moon")
    assert refused.exit_code == 2
    assert "--sequence: found 'moon', expected one of" in refused.stderr
    assert "blob, star" in refused.stderr
    assert small_run(root, output, "--sequence", "star").exit_code == 0
    assert [path.name for path in (output / "Annotations").iterdir()] == ["star"]


def test_the_masks_are_those_of_the_engine(tmp_path, model):
    root = write_davis(tmp_path / "davis", names=("blob",))
    (sequence,) = davis17(root, "val")
    output = tmp_path / "out"
    claim_output(output, describe_run(model, "davis17", "val", RunOptions()))
    run_sequences([sequence], output, model, RunOptions())
    segmenter = VideoSegmenter(model)
    _, ids = draw(0)
    for index in range(FRAMES):
        picture = np.array(Image.open(sequence.frames / f"{index:05d}.jpg"))
        prob = segmenter.step(
            torch.from_numpy(picture).permute(2, 0, 1), torch.from_numpy(ids[0]) if index == 0 else None
        )
        np.testing.assert_array_equal(read_mask(output / f"Annotations/blob/{index:05d}.png").ids, prob.argmax(0))
    (timing,) = read_timings([sequence], output)
    assert (timing.frames, timing.objects) == (FRAMES, 2)
    assert 0 < timing.network_seconds < timing.seconds


def test_finished_sequences_are_skipped_and_partial_ones_repeated(tmp_path, model):
    root, output = write_davis(tmp_path / "davis"), tmp_path / "out"
    blob, star = davis17(root, "val")
    claim_output(output, describe_run(model, "davis17", "val", RunOptions()))
    run_sequences([blob], output, model, RunOptions())
    kept = output / "Annotations/blob/00002.png"
    kept.write_bytes(b"untouched")
    half = output / "Annotations/.star.4711.partial"
    half.mkdir()
    done = []
    run_sequences([blob, star], output, model, RunOptions(), lambda *counts: done.append(counts))
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert kept.read_bytes() == b"untouched"
    assert len(list((output / "Annotations/star").iterdir())) == FRAMES
    assert not half.exists()


def finished(tmp_path, model):
    """An output folder in which the first of two sequences is finished."""
    root, output = write_davis(tmp_path / "davis"), tmp_path / "out"
    sequences, run = davis17(root, "val"), describe_run(model, "davis17", "val", RunOptions())
    claim_output(output, run, sequences)
    run_sequences(sequences[:1], output, model, RunOptions())
    return sequences, output, run


def without_run(output):
    (output / "run.json").unlink()


def without_a_mask(output):
    (output / "Annotations/blob/00002.png").unlink()


def with_an_extra_mask(output):
    shutil.copy(output / "Annotations/blob/00002.png", output / "Annotations/blob/00099.png")


def without_a_timing(output):
    (output / "timings/blob.json").unlink()


def with_another_timing(output):
    timing = json.loads((output / "timings/blob.json").read_text()) | {"sequence": "star"}
    del timing["sha256"]
    write_record_file(output / "timings/blob.json", timing)


def flipped(name):
    def flip(output):
        data = bytearray((output / name).read_bytes())
        data[len(data) // 2] ^= 1
        (output / name).write_bytes(data)

    return flip


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            without_run,
            r"Annotations/blob: found masks, but no .*run\.json that describes their run; give another",
        ),
        (without_a_mask, "Annotations/blob: found 4 masks, expected 5; remove it to run the sequence again"),
        (with_an_extra_mask, "Annotations/blob: found 6 masks, expected 5; remove it to run the sequence again"),
        (without_a_timing, r"timings/blob\.json: no such file, .*; remove .*Annotations/blob to run it again"),
        (with_another_timing, r"timings/blob\.json: found the timing of star, expected blob; remove"),
        (flipped("timings/blob.json"), r"timings/blob\.json: not the timing of a sequence, or damaged; remove"),
        (
            flipped("run.json"),
            r"run\.json: not the record of a run of this version, or damaged; give another",
        ),
    ],
)
def test_an_output_folder_changed_since_its_run_is_refused_at_once(tmp_path, model, spoil, words):
    sequences, output, run = finished(tmp_path, model)
    claim_output(output, run, sequences)
    spoil(output)
    before = sorted(output.rglob("*"))
    with pytest.raises(InputError, match=words) as caught:
        claim_output(output, run, sequences)
    assert "\n" not in str(caught.value)
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 0},
        {"frames": "5"},
        {"objects": -1},
        {"network_seconds": 0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"stage_seconds": {"decode": None}},
        {"stage_seconds": {"decode": -1}},
        {"sequence": None},
        {"more": 1},
    ],
)
def test_timings_with_impossible_values_are_refused(tmp_path, change):
    """Even with a correct checksum."""
    (sequence,) = davis17(write_davis(tmp_path / "davis", names=("blob",)), "val")
    timing = asdict(Timing("blob", 5, 2, 0.5, 1.0, {"decode": 0.1}))
    (tmp_path / "timings").mkdir()
    write_record_file(tmp_path / "timings/blob.json", timing)
    assert read_timings([sequence], tmp_path) == [Timing(**timing)]
    write_record_file(tmp_path / "timings/blob.json", timing | change)
    with pytest.raises(InputError, match=r"timings/blob\.json: not the timing of a sequence \(.*\); remove "):
        read_timings([sequence], tmp_path)


def test_the_difference_from_another_run_is_named(tmp_path, model):
    _, output, run = finished(tmp_path, model)
    text = (output / "run.json").read_text()
    with pytest.raises(InputError, match=r"its dtype: found torch\.float32, expected torch\.float16; give another"):
        claim_output(output, run | {"dtype": "torch.float16"})
    with pytest.raises(InputError, match="its inference: found max_size None, expected max_size 64; give another"):
        claim_output(output, describe_run(model, "davis17", "val", RunOptions(max_size=64)))
    (output / "run.json").write_text(json.dumps(json.loads(text)))
    claim_output(output, run)


def test_equal_masks_give_equal_archives(tmp_path):
    """Whatever the permissions and dates of the files, even before 1980; hidden files are not masks."""
    (sequence,) = davis17(write_davis(tmp_path / "davis", names=("blob",)), "val")
    archives = []
    for number in range(2):
        output = tmp_path / f"out{number}"
        shutil.copytree(sequence.annotations, output / "Annotations/blob")
        for mask in (output / "Annotations/blob").iterdir():
            os.utime(mask, (number, number))
            mask.chmod(0o600 + 0o44 * number)
        if number:
            (output / "Annotations/blob/._00000.png").write_bytes(b"")
        write_zip([sequence], output, output / "x.zip", "Annotations/")
        archives.append((output / "x.zip").read_bytes())
    assert archives[0] == archives[1]
    with zipfile.ZipFile(tmp_path / "out0/x.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"Annotations/blob/{frame:05d}.png" for frame in range(FRAMES)]
        assert archive.read("Annotations/blob/00001.png") == (sequence.annotations / "00001.png").read_bytes()
        assert archive.infolist()[0].external_attr >> 16 == 0o100644


def test_a_name_that_is_not_utf8_is_reported(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    shutil.copytree(write_davis(tmp_path / "davis") / "Annotations/480p/blob", tmp_path / "Annotations" / name)
    sequence = Sequence(name, None, tmp_path / "Annotations" / name, Objects.FIRST)
    with pytest.raises(InputError, match=r"found the name 'caf\\udce9/00000\.png', expected UTF-8"):
        write_zip([sequence], tmp_path, tmp_path / "x.zip", "")
    assert not (tmp_path / "x.zip").exists()
    scores = score_sequence(sequence, sequence.annotations)
    write_tables(scores, "val", tmp_path)
    assert (tmp_path / "per-sequence_results-val.csv").read_bytes().splitlines()[1] == b"caf\xe9_1,1.000,1.000"
    write_report(
        make_record({"set": "folder", "split": "all"}, scores, []),
        scores,
        {name: (sequence, sequence.annotations)},
        tmp_path / "x.html",
    )
    assert "caf\\udce9_1" in (tmp_path / "x.html").read_text()


def test_a_sequence_that_fails_leaves_no_masks(tmp_path, model):
    root, output = write_davis(tmp_path / "davis"), tmp_path / "out"
    blob, star = davis17(root, "val")
    (star.frames / "00003.jpg").write_bytes((star.frames / "00003.jpg").read_bytes()[:-200])
    claim_output(output, describe_run(model, "davis17", "val", RunOptions()))
    with pytest.raises(InputError, match=r"00003\.jpg"):
        run_sequences([blob, star], output, model, RunOptions())
    assert sorted(path.name for path in (output / "Annotations").iterdir()) == ["blob"]


@pytest.mark.slow
def test_results_of_two_configurations_are_not_mixed(tmp_path):
    root, output = write_davis(tmp_path / "davis", names=("blob",)), tmp_path / "out"
    assert small_run(root, output).exit_code == 0
    assert small_run(root, output, "--memory-graph").exit_code == 0, "the masks are the same"
    for other in (
        "--every=2",
        "--max-memory-frames=1",
        "--memory-storage=int8",
        "--dtype=bfloat16",
        "--compile=default",
    ):
        result = small_run(root, output, other)
        assert result.exit_code == 2, other
        assert "results of another run" in result.stderr


@pytest.mark.slow
def test_results_of_two_sets_are_not_mixed(tmp_path):
    output = tmp_path / "out"
    assert small_run(write_davis(tmp_path / "first", names=("blob",)), output).exit_code == 0
    result = small_run(write_davis(tmp_path / "other", names=("blob",)), output)
    assert result.exit_code == 2
    assert "results of another run" in result.stderr


def test_annotations_are_not_taken_for_results(tmp_path):
    pictures, masks = draw(0)
    write_sequence(tmp_path / "JPEGImages/blob", tmp_path / "Annotations/blob", pictures, dict(enumerate(masks)))
    result = run_command("folder", "--data", tmp_path, "-o", tmp_path, "--arch", "resnet18")
    assert result.exit_code == 2
    assert "which contains the annotations of the set; give another folder" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Annotations", "JPEGImages"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (".", "which contains the annotations of the set"),
        ("JPEGImages/480p", "which is among the data of the set"),
        ("Annotations/480p", "which is among the data of the set"),
        ("Annotations/480p/blob/out", "which is among the data of the set"),
        ("link", "which is among the data of the set"),
    ],
)
def test_results_are_not_written_among_the_data(tmp_path, place, words):
    root = write_davis(tmp_path / "davis")
    (root / "link").symlink_to("JPEGImages/480p")
    before = sorted(root.rglob("*"))
    result = small_run(root, root / place)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert words in result.stderr
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("part", ["Annotations", "timings"])
def test_files_behind_a_link_are_not_taken_for_results(tmp_path, part):
    output, other = tmp_path / "out", tmp_path / "other"
    other.mkdir(), output.mkdir()
    (output / part).symlink_to(other)
    for arguments in (("davis17", "--data", write_davis(tmp_path / "davis")), ("synthetic",)):
        result = run_command(*arguments, "-o", output, "--arch", "resnet18")
        assert result.exit_code == 2
        assert f"out/{part}: found a symbolic link to {other}" in result.stderr
    assert (os.listdir(output), os.listdir(other)) == ([part], [])


def test_pictures_behind_a_link_are_not_replaced_by_drawn_ones(tmp_path):
    """Pictures without annotations are taken for the work of a killed process, but not behind a link."""
    root, clip = tmp_path / "set", SyntheticClip(0, frames=2, height=SIZE[0], width=SIZE[1], objects=1)
    draw_sequence(tmp_path / "other", "a", clip)
    root.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for link, target in (("JPEGImages", "../other/JPEGImages"), ("JPEGImages/a", "../../other/JPEGImages/a")):
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(target)
        with pytest.raises(InputError, match=f"{link}: found a symbolic link to {target}"):
            draw_sequence(root, "a", clip)
        (root / link).unlink()
    (root / "JPEGImages").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sequence_that_is_too_short_to_score_is_named_before_the_run(tmp_path):
    root, output = write_davis(tmp_path / "davis"), tmp_path / "out"
    for index in range(2, FRAMES):
        (root / f"JPEGImages/480p/star/{index:05d}.jpg").unlink()
        (root / f"Annotations/480p/star/{index:05d}.png").unlink()
    result = small_run(root, output)
    assert result.exit_code == 2
    assert "star: found 2 annotated frames, expected at least 3 to score" in result.stderr
    assert not output.exists()


def test_files_left_by_finder_are_not_frames(tmp_path):
    pictures, masks = draw(0)
    write_sequence(tmp_path / "JPEGImages/blob", tmp_path / "Annotations/blob", pictures, dict(enumerate(masks)))
    for name in ("JPEGImages/blob/._00000.jpg", "Annotations/blob/._00000.png"):
        (tmp_path / name).write_bytes(b"no picture")
    (sequence,) = SETS["folder"](tmp_path, "all")
    assert sequence.fully_annotated
    assert given_masks(tmp_path / "Annotations/blob", open_frames(tmp_path / "JPEGImages/blob")).ids.keys() == set(
        range(FRAMES)
    )


@pytest.mark.slow
def test_youtube_vos_runs_all_frames_and_submits_the_required_ones(tmp_path):
    root, late = write_youtube(tmp_path / "youtube")
    output = tmp_path / "out"
    result = run_command("youtube-vos", "--data", root, "-o", output, "--arch", "resnet18")
    assert result.exit_code == 0, result.output
    assert json.loads((output / "results.json").read_text())["speed"]["frames"] == 16
    with zipfile.ZipFile(output / "submission.zip") as archive:
        assert archive.namelist() == [f"Annotations/v1/{frame:05d}.png" for frame in (0, 5, 10, 15)]
    found = read_mask(output / "Annotations/v1/00010.png").ids
    np.testing.assert_array_equal(found == 2, late == 2)  # new objects overwrite
    assert object_ids(read_mask(output / "Annotations/v1/00005.png").ids) in ([], [1])
    assert "1 of 1 sequences are not annotated, and not scored" in result.stderr


def test_only_score(tmp_path):
    root = write_davis(tmp_path / "davis")
    truth = root / "Annotations/480p"
    result = run_command("davis17", "--only-score", truth, truth, "-o", tmp_path / "scores", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "100.0" in result.stdout
    assert json.loads((tmp_path / "scores/results.json").read_text())["global"]["J&F-Mean"] == 1
    assert result.stderr == (
        "stm-fast: blob, star: the results are the annotations themselves; their scores are meaningless\n"
    )
    # with the split, a sequence without results is an error; without it, only existing results are scored
    results = tmp_path / "results"
    results.mkdir()
    (truth / "blob").rename(results / "blob")
    (truth / "blob").symlink_to(results / "blob")
    assert run_command("davis17", "--only-score", results, truth, "--workers", 1).exit_code == 0
    result = run_command("davis17", "--only-score", results, truth, "--data", root, "--workers", 1)
    assert result.exit_code == 2
    assert "star/00001.png: no such mask" in result.stderr


def test_only_score_of_one_folder_of_masks(tmp_path):
    truth = write_davis(tmp_path / "davis") / "Annotations/480p/star"
    result = run_command("folder", "--only-score", truth, truth)
    assert result.exit_code == 0, result.output
    assert "star_2  100.0  100.0" in result.stdout


@pytest.mark.slow
def test_two_processes_share_the_sequences(tmp_path):
    root = write_davis(tmp_path / "davis", names=("a", "b", "c"))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert small_run(root, alone).exit_code == 0
    arguments = ["--data", root, "-o", shared, "--arch", "resnet18", "--workers", "1"]
    found = torchrun("evaluate", "davis17", *map(str, arguments), folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("Global results for val") == 1
    for mask in alone.glob("Annotations/*/*.png"):
        agreement = np.mean(read_mask(mask).ids == read_mask(shared / mask.relative_to(alone)).ids)
        assert agreement > 0.999  # another number of threads rounds differently
    assert len(json.loads((shared / "results.json").read_text())["sequences"]) == 3


@pytest.mark.slow
def test_processes_draw_a_synthetic_set_once(tmp_path):
    arguments = ["evaluate", "synthetic", "--sequence", "seed000001", "--max-size", "48", "-o", str(tmp_path / "out")]
    ranks = run_ranks(*arguments, folder=tmp_path)
    assert all(ended.returncode == 0 for ended in ranks), ranks
    assert len(list((tmp_path / "out/data/Annotations").iterdir())) == 8


# augmentation


def test_flipped_and_scaled_views_are_averaged(model):
    pictures, ids = draw(2)
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    mask = torch.from_numpy(ids[0])
    augmented = AugmentedSegmenter(model, RunOptions(flip=True))
    straight, mirrored = VideoSegmenter(model), VideoSegmenter(model)
    for index, frame in enumerate(frames):
        given = mask if index == 0 else None
        mean = augmented.step(frame, given)
        one = straight.step(frame, given)
        other = mirrored.step(frame.flip(-1), None if given is None else given.flip(-1)).flip(-1)
        torch.testing.assert_close(mean, (one + other) / 2, rtol=0, atol=1e-5)
    assert augmented.object_ids == [1, 2]


def test_given_masks_stay_exact_at_every_scale(model):
    pictures, ids = draw(2)
    segmenter = AugmentedSegmenter(model, RunOptions(scales=(0.75, 1.3), flip=True))
    frame = torch.from_numpy(pictures[0]).permute(2, 0, 1)
    first = torch.from_numpy(np.where(ids[0] == 2, 2, 0).astype(np.uint8))
    prob = segmenter.step(frame, first)
    torch.testing.assert_close(prob.argmax(0), (first == 2).long())
    prob = segmenter.step(frame, torch.from_numpy(ids[0]), [1])
    assert segmenter.object_ids == [2, 1]
    torch.testing.assert_close(prob.argmax(0) == 2, torch.from_numpy(ids[0] == 1))
    torch.testing.assert_close(prob.sum(0), torch.ones(SIZE))


def test_small_frames_are_enlarged_for_the_network(model):
    pictures, ids = draw(2)
    frames, mask = torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.from_numpy(ids[0])
    augmented = AugmentedSegmenter(model, RunOptions(min_size=2 * min(SIZE)))
    alone, as_it_is = VideoSegmenter(model, min_size=2 * min(SIZE)), VideoSegmenter(model)
    prob, expected, other = ([s.step(frames[0], mask), s.step(frames[1])][1] for s in (augmented, alone, as_it_is))
    assert torch.equal(prob, expected)
    assert not torch.equal(prob, other)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_scales_must_be_positive(model, scales):
    with pytest.raises(InputError, match="scales"):
        AugmentedSegmenter(model, RunOptions(scales=scales))


def test_annotated_sequences_of_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        annotated_sequences(tmp_path / "nowhere", Objects.ALL)
    with pytest.raises(InputError, match="no folder of a sequence"):
        annotated_sequences(tmp_path, Objects.ALL)


@pytest.mark.slow
def test_a_set_of_synthetic_clips_is_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr("stm_fast.data.synthetic_set.SEQUENCES", 2)
    names = SETS["synthetic"](tmp_path, "3")
    assert [sequence.name for sequence in names] == [f"seed{seed:06}" for seed in range(3, 3 + len(names))]
    first = names[0]
    assert first.fully_annotated
    drawn = SyntheticClip(3, frames=len(first.annotated), objects=3)
    assert np.array_equal(first.read_annotation("00007"), drawn[7].ids)
    assert np.array_equal(np.asarray(Image.open(first.frames / "00007.png")), drawn[7].image)
    before = (first.frames / "00007.png").stat().st_mtime_ns
    shutil.rmtree(names[1].annotations)
    SETS["synthetic"](tmp_path, "3")
    assert (first.frames / "00007.png").stat().st_mtime_ns == before
    assert names[1].fully_annotated
    for split in ("val", "1000000"):
        with pytest.raises(InputError, match=f"split: found .*{split}"):
            SETS["synthetic"](tmp_path, split)


def test_copied_first_masks_include_objects_given_later(tmp_path):
    root, late = write_youtube(tmp_path / "data")
    [sequence] = youtube_vos(root, "valid")
    copy_first_masks([sequence], tmp_path / "out")
    found = tmp_path / "out/Annotations/v1"
    first = sequence.read_annotation("00000")
    assert sorted(file.stem for file in found.iterdir()) == [f"{index:05d}" for index in range(0, 16, 5)]
    assert np.array_equal(read_mask(found / "00005.png").ids, first)
    assert np.array_equal(read_mask(found / "00015.png").ids, np.where(late > 0, late, first))


@pytest.mark.slow
def test_baselines_are_scored_with_the_network(tmp_path):
    root = write_davis(tmp_path / "data", names=("blob",))
    result = small_run(root, tmp_path / "out", "--baselines")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert set(record["baselines"]) == {"first mask copied", "untrained network"}
    copied = score_sequence(davis17(root, "val")[0], tmp_path / "out/baselines/first mask copied/Annotations/blob")
    mean = np.mean([score.J.mean for score in copied])
    assert record["baselines"]["first mask copied"]["J-Mean"] == pytest.approx(mean)
    assert "first mask copied" in result.output
