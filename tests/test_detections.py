"""Segmented objects as detections of the supervision package: drawn, written and read back."""

import csv
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from stm_fast import InputError, Segmentation, VideoSegmenter, stm_lite2
from stm_fast.data.synthetic import SyntheticClip

needs_supervision = pytest.mark.skipif(find_spec("supervision") is None, reason="supervision is not installed")
# id 7 fills rows 2 to 3 and columns 4 to 8, id 2 has no pixel, id 9 is the last pixel
IDS = [7, 2, 9]


def a_segmentation():
    prob = torch.full((4, 6, 10), 0.05)
    prob[0] = 0.85
    prob[:, 2:4, 4:9] = torch.tensor([0.1, 0.8, 0.05, 0.05])[:, None, None]
    prob[:, 5, 9] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    return Segmentation(3, prob, list(IDS))


@needs_supervision
def test_fields_of_detections():
    found = a_segmentation().to_detections()
    assert found.tracker_id.tolist() == found.class_id.tolist() == [7, 9]
    assert found.xyxy.tolist() == [[4, 2, 8, 3], [9, 5, 9, 5]]
    assert found.mask.dtype == bool
    assert found.mask.sum((1, 2)).tolist() == [10, 1]
    assert np.allclose(found.confidence, a_segmentation().scores[[0, 2]])
    assert 0.5 < found.confidence[0] < 0.8


@needs_supervision
def test_a_frame_without_objects_has_no_detections():
    nothing = Segmentation(0, torch.ones(1, 6, 10), [])
    lost = Segmentation(0, torch.stack([torch.ones(6, 10), torch.zeros(6, 10)]), [1])
    for result in (nothing, lost):
        found = result.to_detections()
        assert len(found) == 0
        assert found.mask.shape == (0, 6, 10)


@needs_supervision
def test_masks_are_drawn_and_boxes_written(tmp_path):
    import supervision

    clip = SyntheticClip(seed=1, frames=2, height=96, width=160, objects=2)
    frames = [torch.from_numpy(picture.image).permute(2, 0, 1) for picture in clip]
    results = list(VideoSegmenter(stm_lite2()).propagate(frames, {0: torch.from_numpy(clip[0].ids)}))

    found = results[0].to_detections()
    picture = clip[0].image
    drawn = supervision.MaskAnnotator(opacity=1).annotate(picture.copy(), found)
    assert np.array_equal((drawn != picture).any(2), clip[0].ids > 0)

    with supervision.CSVSink(str(tmp_path / "objects.csv")) as sink:
        for result in results:
            sink.append(result.to_detections(), {"frame": result.frame_index})
    rows = list(csv.DictReader((tmp_path / "objects.csv").read_text().splitlines()))
    assert [(row["frame"], row["tracker_id"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
    ys, xs = np.nonzero(clip[0].ids == 1)
    edges = [float(rows[0][name]) for name in ("x_min", "y_min", "x_max", "y_max")]
    assert edges == [xs.min(), ys.min(), xs.max(), ys.max()]


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"pip install supervision$"):
        a_segmentation().to_detections()
