"""First masks of real objects in the page: a lasso and five clicks."""

from pathlib import Path
from shutil import copy
from statistics import mean, median

import pytest

from annotated import sequences
from browser import needs_browser
from page_driver import Clip

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# chosen before any was tried: the objects in the first masks of clips/, those of the validation list of davis16-train/,
# and the first of its training list; the package's network has seen none of them
OBJECTS = [
    *(("clips", "chair", 1), ("clips", "caps", 1), ("clips", "judo", 1), ("clips", "bike", 1), ("clips", "bike", 2)),
    *(("davis16-train", name, 1) for name in ("bmx-bumps", "car-turn", "dance-jump", "flamingo", "bear")),
]

pytestmark = [
    needs_browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "clips").is_dir(), reason="shared data are absent"),
]


def first_mask(visit, folder, data, name, object_id):
    """J of an object after a lasso and five clicks on the first frame."""
    sequence = next(sequences(DATA / data, [name]))
    video = folder / f"{name}-{object_id}"
    video.mkdir()
    copy(sequence.frames[0], video)
    truth = sequence.read(0)
    person = visit.open(video)
    person.lasso(truth == object_id, margin=max(truth.shape) // 80)
    person.correct(truth == object_id, clicks=5)
    person.picture(f"first mask {name} {object_id}")
    own = Clip(video, [(truth == object_id).astype(truth.dtype)])
    return person.score(own, 0)


def test_a_lasso_and_five_clicks_on_ten_real_objects(visit, tmp_path):
    scores = {(name, key): first_mask(visit, tmp_path, data, name, key) for data, name, key in OBJECTS}
    listed = ", ".join(f"{name} {key}: {score:.3f}" for (name, key), score in scores.items())
    print(f"{listed}; mean {mean(scores.values()):.3f}, median {median(scores.values()):.3f}")
    assert len(scores) == 10
    # measured: mean 0.827, median 0.883; two are below 0.8: a bicycle, and a bicycle with its rider
    assert mean(scores.values()) >= 0.8, listed
    assert median(scores.values()) >= 0.85, listed
    assert sum(score >= 0.8 for score in scores.values()) >= 7, listed
