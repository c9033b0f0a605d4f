"""objects.csv, the table of a run, and the lines about objects at its end."""

import csv
import random

import numpy as np
import pytest
from PIL import Image

from small_inputs import HEIGHT, WIDTH, small_network
from stm_fast.errors import InputError
from stm_fast.inference.sightings import Sighting
from stm_fast.runs.loop import Segmented
from stm_fast.runs.object_table import ObjectTable, Sight, sights
from stm_fast.runs.video import InterruptedRun, Summary, segment_video
from stm_fast.tasks.progress import print_summary
from stm_fast.video import Frame, read_written_mask, write_mask

COLUMNS = [
    *("index", "frame", "time", "object", "pixels", "x", "y", "width", "height", "center_x", "center_y"),
    *("probability", "score", "state"),
]
BOX = ["x", "y", "width", "height", "center_x", "center_y"]
FOUND, DOUBTFUL = Sighting(2, 9, 0.8, 0.75, "found"), Sighting(2, 9, 0.5, 0.25, "doubtful")
LOST = Sighting(2, 0, 0, 0, "lost")


def frame(index, name=None):
    return Frame(index, index / 25, name or f"{index:05d}", np.zeros((2, 3, 3), np.uint8))


def write(folder, states, done=range(0), first=0):
    """Writes a frame for each sighting of object 2 and closes the table; returns it."""
    table = ObjectTable(folder, done)
    for index, sighting in enumerate(states, first):
        table.write(Segmented(frame(index), np.full((3, 3), 2, np.uint8), [sighting]))
    table.sync()
    table.close()
    return table


def rows(folder):
    with (folder / "objects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_has_the_box_and_the_center_of_the_pixels(tmp_path):
    ids = np.zeros((40, 60), np.uint8)
    ids[10:14, 20:50] = 4
    ids[14, 20:22] = 4
    table = ObjectTable(tmp_path)
    seen = [Sighting(4, 122, 0.98765, 0.5, "found"), Sighting(200, 0, 0.0, 0.0, "lost")]
    table.write(Segmented(Frame(3, 0.1, 'a "name", odd', np.zeros((40, 60, 3), np.uint8)), ids, seen))
    table.close()
    y, x = np.nonzero(ids)
    place = ["20", "10", "30", "5", f"{x.mean():.2f}", f"{y.mean():.2f}"]
    assert [list(row.items()) for row in rows(tmp_path)] == [
        list(zip(COLUMNS, ["3", 'a "name", odd', "0.100000", *cells], strict=True))
        for cells in (
            ["4", "122", *place, "0.988", "0.500", "found"],
            ["200", "0", *[""] * 6, "0.000", "0.000", "lost"],
        )
    ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six frames of noise; object 4 is given in frame 1, object 9 in frame 3."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "in").mkdir(), (folder / "given").mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "in" / f"{index}.png")
    for index, (number, left) in {1: (4, 2), 3: (9, 30)}.items():
        ids = np.zeros((HEIGHT, WIDTH), np.uint8)
        ids[4:20, left : left + 12] = number
        write_mask(folder / "given" / f"{index}.png", ids)
    return folder


def segment(clip, output, stop_at=None, **options):
    done = []
    return segment_video(
        clip / "in",
        clip / "given",
        output,
        model=small_network(),
        should_stop=lambda: done[-1] == stop_at,
        progress=lambda frames, _: done.append(frames),
        **{"write": ("masks", "csv")} | options,
    )


def test_a_run_writes_a_line_for_every_object_that_exists(clip, tmp_path):
    segment(clip, tmp_path)
    found = rows(tmp_path)
    expected = [("1", "4"), ("2", "4"), ("3", "4"), ("3", "9"), ("4", "4"), ("4", "9"), ("5", "4"), ("5", "9")]
    assert [(row["frame"], row["object"]) for row in found] == expected
    for row in found:
        assert row["index"] == row["frame"]
        assert float(row["time"]) == pytest.approx(int(row["index"]) / 24, abs=1e-6)
        y, x = np.nonzero(read_written_mask(tmp_path / f"masks/{row['frame']}.png").ids == int(row["object"]))
        assert int(row["pixels"]) == len(x)
        assert row["state"] in (("lost",) if len(x) == 0 else ("found", "doubtful", "lost"))
        if row["state"] == "lost":
            assert not any(row[name] for name in BOX)
            continue
        box = x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1
        assert tuple(int(row[name]) for name in BOX[:4]) == box
        assert [float(row[name]) for name in BOX[4:]] == pytest.approx([x.mean(), y.mean()], abs=0.005001)
    given = [row for row in found if (row["frame"], row["object"]) in {("1", "4"), ("3", "9")}]
    assert [(row["probability"], row["score"], row["state"]) for row in given] == [("1.000", "1.000", "found")] * 2


@pytest.mark.parametrize("both", [False, True])
def test_a_resumed_run_writes_the_same_table(clip, tmp_path, both):
    """Also if frames come backwards first, and frames without objects have no lines."""
    summary = segment(clip, tmp_path / "whole", both=both)
    whole = (tmp_path / "whole/objects.csv").read_bytes()
    assert [int(row["index"]) for row in rows(tmp_path / "whole")] == sorted([0] * both + [1, 2, 3, 3, 4, 4, 5, 5])
    for stop_at in range(1, 6):
        output = tmp_path / str(stop_at)
        with pytest.raises(InterruptedRun):
            segment(clip, output, stop_at, both=both)
        assert segment(clip, output, both=both, resume=True).sights == summary.sights
        assert (output / "objects.csv").read_bytes() == whole


def test_the_lines_of_finished_frames_are_kept(tmp_path):
    checksum = write(tmp_path, [FOUND, DOUBTFUL, FOUND]).checksum
    kept = (tmp_path / "objects.csv").read_text()
    write(tmp_path, [FOUND], range(3), 3)
    with (tmp_path / "objects.csv").open("a") as file:
        file.write("4,00004,2,9")  # a process was killed here
    table = ObjectTable(tmp_path, range(3), checksum)
    assert (tmp_path / "objects.csv").read_text() == kept
    table.close()
    ObjectTable(tmp_path).close()
    assert rows(tmp_path) == []


def test_lines_are_put_into_the_order_in_which_frames_come(tmp_path):
    table = ObjectTable(tmp_path)
    for index in (4, 3, 2, 1, 0):
        table.write(Segmented(frame(index), np.full((3, 3), 2, np.uint8), [FOUND, LOST._replace(object_id=1)]))
    table.close()
    for done in (range(4, -1, -1), range(5), range(4, 1, -1), range(2, 5)):
        checksum = table.checksum if len(done) == 5 else None
        ObjectTable(tmp_path, done, checksum).close()
        assert [(int(row["index"]), row["object"]) for row in rows(tmp_path)] == [
            (at, one) for at in done for one in "21"
        ]


def test_the_watch_of_a_table_has_seen_its_lines(tmp_path):
    write(tmp_path, [Sighting(2, pixels, 1, 1, "found") for pixels in (100, 1)])
    for done, expected in ((range(2), 1), (range(1, -1, -1), 100)):
        table = ObjectTable(tmp_path, done)
        table.close()
        assert table.watch._usual == {2: expected}


def test_sights_count_frames_and_name_the_doubtful_ones(tmp_path):
    assert sights(tmp_path) == []
    write(tmp_path, [FOUND, DOUBTFUL, DOUBTFUL, LOST, FOUND, DOUBTFUL, LOST, LOST])
    [sight] = sights(tmp_path)
    spans = [("00001", "00002"), ("00005", "00005")]
    assert sight == Sight(2, frames=8, lost=3, doubtful=3, state="lost", last="00005", spans=spans)


@pytest.mark.parametrize(
    ("states", "line"),
    [
        ([FOUND], None),
        ([FOUND, LOST, FOUND, DOUBTFUL], "lost in 1 of 4 frames; doubtful in 1 frame (00003)"),
        ([FOUND, FOUND, LOST, LOST], "lost in 2 of 4 frames, last found in 00001"),
        ([FOUND, DOUBTFUL] * 3, "doubtful in 3 frames (00001, 00003, 00005)"),
        ([DOUBTFUL, DOUBTFUL, FOUND] * 4, "doubtful in 8 frames (00000 to 00001, 00003 to 00004, 00006 to 00007, ...)"),
    ],
)
def test_a_summary_tells_of_objects_that_were_lost_or_doubtful(tmp_path, capsys, states, line):
    write(tmp_path, states)
    print_summary(Summary(5, 2.0, [2], tmp_path, sights=sights(tmp_path)))
    *found, summary = capsys.readouterr().out.splitlines()
    assert found == [] if line is None else [f"object 2: {line}"]
    assert summary == f"5 frames, objects 2, 2.50 frames/s, results in {tmp_path}"


def test_a_summary_knows_of_objects_without_a_table(clip, tmp_path):
    summary = segment(clip, tmp_path / "whole")
    without = segment(clip, tmp_path / "without", write=("pictures",))
    assert not (tmp_path / "without/objects.csv").exists()
    assert without.sights == summary.sights
    assert [sight.object_id for sight in summary.sights] == [4, 9]


HEADER = ",".join(COLUMNS) + "\n"
LINE = "0,a,0.040000,1,4,1,2,2,2,1.50,2.50,0.900,0.500,found\n"


def test_a_line_as_written_is_read(tmp_path):
    (tmp_path / "objects.csv").write_text(HEADER + LINE)
    assert sights(tmp_path) == [Sight(1, 1, last="a")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"found \[\], expected index,frame,time,object,"),
        ("index,frame\n", "expected index,frame,time"),
        (HEADER.replace(",", ";"), "expected index,frame,time"),
        (HEADER + "\n", "found the line"),
        (HEADER + LINE.replace(",found", ""), "found the line"),
        (HEADER + LINE.replace("found", "found,1"), "found the line"),
        (HEADER + LINE.replace("found", "gone"), "found the line"),
        (HEADER + LINE.replace("a", ""), "found the line"),
        (HEADER + LINE.replace(",1,4", ",x,4"), "found the line"),
        (HEADER + LINE.replace(",1,4", ",0,4"), "found the line"),
        (HEADER + LINE.replace(",1,4", ",256,4"), "found the line"),
        (HEADER + LINE.replace(",1,4", ",1,-4"), "found the line"),
        (HEADER + LINE.replace(",1,4", ",1,\u0664"), "found the line"),
        (HEADER + LINE.replace(",1,4", f",1,{'9' * 5000}"), "found the line"),
        (HEADER + LINE.replace(",1,4", ",1,4\0"), "found the line"),
        (HEADER + LINE.replace("0,a", "\u00b2,a"), "found the line"),
        (HEADER + LINE.replace("0.900", "nan"), "found the line"),
        (HEADER + LINE.replace("0.500", "5"), "found the line"),
        (HEADER + LINE.replace("0.04", "-0.04"), "found the line"),
        (HEADER + LINE.replace("a", '"a'), "unexpected end of data"),
        (HEADER + LINE.replace("a", '"a"b'), "expected after"),
        (HEADER + LINE.replace("a", "a" * 200_000), "found the line"),
        (HEADER + LINE.replace("a", '"' + "a\n" * 100_000 + '"'), "field larger than field limit"),
    ],
    ids=lambda text: ascii(text[len(HEADER) : len(HEADER) + 12]),
)
def test_a_malformed_table_is_refused(tmp_path, text, words):
    (tmp_path / "objects.csv").write_text(text, newline="")
    with pytest.raises(InputError, match=words) as caught:
        sights(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'objects.csv'}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_kept_lines_must_be_as_written(tmp_path):
    lines = [LINE.replace("0", str(index), 1) for index in range(3)]
    file = tmp_path / "objects.csv"
    file.write_text(HEADER + "".join(lines))
    table = ObjectTable(tmp_path, range(2))
    table.close()
    assert file.read_text() == HEADER + lines[0] + lines[1]
    file.write_text(HEADER + "".join(random.Random(0).sample(lines, 3)) + '3,"')
    ObjectTable(tmp_path, range(2), table.checksum).close()
    assert file.read_text() == HEADER + lines[0] + lines[1]
    whole, twice = "".join(lines), lines[0] * 3 + lines[1]
    for damaged in (HEADER + whole.replace("4", "5", 1), HEADER + lines[1], HEADER + "\n" + whole, "", HEADER + twice):
        file.write_text(damaged)
        with pytest.raises(InputError, match=r"objects\.csv: the lines of the first 2 frames .* with overwrite=True"):
            ObjectTable(tmp_path, range(2), table.checksum)
        assert file.read_text() == damaged
