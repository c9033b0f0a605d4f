"""The report: one self-contained page that a browser shows."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from stm_fast.data.sequences import Objects, Sequence
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation.benchmark_sets import Timing
from stm_fast.evaluation.record import make_record
from stm_fast.evaluation.report import CHART_HEIGHT, CHART_WIDTH, Line, line_chart, write_report
from stm_fast.evaluation.scoring import score_sequence
from stm_fast.inference.stages import STAGES
from stm_fast.video import write_mask

VOID_ELEMENTS = {"meta", "img", "br", "line"}
CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """Collects elements with their attributes, and checks that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(str(text))  # every piece of Markup would be escaped again
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two sequences; one has HTML in its name, and its masks drift to the right."""
    root = tmp_path_factory.mktemp("report")
    scores, results, timings = [], {}, []
    for seed, name in enumerate(("good", "<b>bad & ugly")):
        clip = SyntheticClip(seed, frames=12, height=60, width=80, objects=2)
        folders = [root / kind / f"{seed}" for kind in ("frames", "truth", "found")]
        for folder in folders:
            folder.mkdir(parents=True)
        for index, frame in enumerate(clip):
            Image.fromarray(frame.image).save(folders[0] / f"{index:05d}.jpg")
            write_mask(folders[1] / f"{index:05d}.png", frame.ids)
            write_mask(folders[2] / f"{index:05d}.png", np.roll(frame.ids, seed * index, 1))
        sequence = Sequence(name, folders[0], folders[1], Objects.FIRST)
        scores += score_sequence(sequence, folders[2])
        results[name] = (sequence, folders[2])
        stages = dict.fromkeys(("decode", *STAGES, "write"), 0.5)
        timings.append(Timing(name, 12, 2, 3.0, 4.0, stages))
    file = root / "report.html"
    write_report(make_record({"set": "davis17", "split": "val"}, scores, timings), scores, results, file)
    return file


def test_the_page_is_complete_and_self_contained(report):
    text = report.read_text()
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r"data:[^\"]*", "", text))


def test_the_contents_of_the_page(report):
    page = Page(report.read_text())
    assert len(page.all("svg")) == 2
    assert len(page.all("polyline")) == 2 * 2 * 2  # sequences, objects, measures
    assert len(page.all("img")) == 2 * 4 * 2  # sequences, worst frames, prediction and annotation
    assert not page.all("b")
    assert "<b>bad & ugly_1" in page.text
    assert "24 frames: 4.00 frames/s without loading, 3.00 frames/s end to end" in page.text
    for stage in STAGES:
        assert f"{stage}41.67" in page.text  # 1 s over 24 frames, in ms
    # the worst sequence comes first
    headings = page.text[page.text.index("Worst frames") :]
    assert headings.index("bad & ugly") < headings.index("good")


def test_without_scores_and_without_speed(tmp_path):
    write_report(make_record({"set": "youtube-vos", "split": "valid"}, [], []), [], {}, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "annotations are not public" in page.text
    assert not page.all("svg")


def test_names_in_a_chart_are_escaped():
    svg = line_chart([Line('<J> & "more"', [0.5], '"/><b>')], ["<i>&"])
    page = Page(svg)
    assert not page.all("b")
    assert not page.all("i")
    assert page.all("polyline")[0]["stroke"] == '"/><b>'
    assert "<i>&" in page.text
    assert '<J> & "more"' in page.text


def test_a_line_goes_through_its_values():
    svg = line_chart(
        [Line("J", [1.0, 0.0, 0.5], "#800000"), Line("F", [0.25] * 3, "red", dashed=True)], ["a", "b", "c"]
    )
    page = Page(svg)
    solid, dashed = page.all("polyline")
    points = np.array([tuple(map(float, point.split(","))) for point in solid["points"].split()])
    assert points[0, 0] < points[1, 0] < points[2, 0] <= CHART_WIDTH
    assert 0 <= points[0, 1] < points[2, 1] < points[1, 1] <= CHART_HEIGHT
    assert points[2, 1] == pytest.approx((points[0, 1] + points[1, 1]) / 2)
    assert "stroke-dasharray" in dashed
    assert "stroke-dasharray" not in solid
    assert "abc" in page.text.replace("J", "").replace("F", "")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page(report, tmp_path):
    picture = tmp_path / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,2600"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", report.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert picture.is_file(), found.stderr
    pixels = np.array(Image.open(picture).convert("RGB")).astype(int)
    # the bars of the stages, in their color, and pictures of many colors below them
    bars = (abs(pixels - [0x3B, 0x7D, 0xD8]).max(2) < 4).sum()
    assert bars > 8 * 100
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
