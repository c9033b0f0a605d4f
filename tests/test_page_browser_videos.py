"""Videos that people bring: chosen, dropped, large, broken; and people without the token."""

import base64

import numpy as np
import pytest

from browser import needs_browser
from page_driver import LOOSE, write_clip
from stm_fast.data.synthetic import SyntheticClip
from video_files import damage_frame

pytestmark = [needs_browser, pytest.mark.slow]

FRAMES = 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    synthetic = SyntheticClip(3, frames=FRAMES, height=96, width=160, objects=1, object_size=(0.22, 0.28))
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", synthetic)


@pytest.fixture
def nobody(visit):
    """Somebody without a video, yet."""
    return visit.person(visit.serve()).open("empty")


def drop(person, path):
    """Drops a file on the page."""
    person.page.evaluate(
        """([text, name]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const moved = new DataTransfer();
            moved.items.add(new File([bytes], name, {type: "video/mp4"}));
            for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(kind, {dataTransfer: moved, bubbles: true, cancelable: true})
                );
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name],
    )


def test_a_chosen_file_is_opened(nobody, clip):
    nobody.picture("empty")
    nobody.page.set_input_files("#file", clip.path)
    nobody.until(lambda data: data["ready"] == "1", "the video is shown")
    video = nobody.project()["video"]
    assert (video["frames"], video["width"], video["height"]) == (FRAMES, 160, 96)
    nobody.lasso(clip.own(0, 1))
    nobody.finished(lambda: nobody.press("Enter"))
    assert "." not in nobody.project()["states"]


def test_a_dropped_file_is_opened(nobody, clip):
    drop(nobody, clip.path)
    nobody.until(lambda data: data["ready"] == "1", "the video is shown")
    assert nobody.project()["video"]["frames"] == FRAMES


def test_another_video_takes_the_place_of_one(nobody, clip, tmp_path):
    nobody.page.set_input_files("#file", clip.path)
    nobody.until(lambda data: data["ready"] == "1", "the video is shown")
    nobody.lasso(clip.own(0, 1))
    other = write_clip(tmp_path / "other.mp4", SyntheticClip(4, frames=3, height=64, width=64, objects=1))
    drop(nobody, other.path)
    nobody.until(lambda data: data["ready"] == "1" and nobody.project()["video"]["frames"] == 3, "the other is shown")
    assert not nobody.ids(0).any()
    drop(nobody, clip.path)
    nobody.until(
        lambda data: data["ready"] == "1" and nobody.project()["video"]["frames"] == FRAMES, "the first is shown"
    )
    assert nobody.ids(0).any(), "with what was drawn"


@pytest.mark.parametrize("broken", ["truncated", "text"])
def test_a_broken_video_is_refused_with_a_message(nobody, clip, tmp_path, broken):
    path = tmp_path / f"{broken}.mp4"
    path.write_bytes(clip.path.read_bytes()[:2000] if broken == "truncated" else b"no video at all" * 100)
    nobody.page.set_input_files("#file", path)
    nobody.until(lambda data: path.name in nobody.status(), "the message names the file")
    nobody.picture(f"broken {broken}")
    assert nobody.project()["video"] is None
    nobody.expect("status of 422")
    nobody.page.set_input_files("#file", clip.path)
    nobody.until(lambda data: data["ready"] == "1", "another is opened")


def test_a_video_damaged_in_the_middle_is_usable_before_the_damage(visit, clip, tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(clip.path.read_bytes())
    damage_frame(path, 5)
    person = visit.open(path)
    person.lasso(clip.own(0, 1))
    person.finished(lambda: person.press("Enter"))
    person.picture("damaged")
    assert "damaged.mp4" in person.status(), person.status()
    states = person.project()["states"]
    assert states.startswith("gf"), states
    assert states.endswith("...."), states
    person.correct(clip.own(0, 1))
    person.expect("status of 422")  # it may still be asking for the frames ahead


def test_a_large_video_opens_and_is_tracked(visit, tmp_path):
    small = SyntheticClip(3, frames=3, height=216, width=384, objects=1, object_size=(0.22, 0.28))
    path = tmp_path / "large.mp4"
    clip = write_clip(path, small, enlarged=10)
    person = visit.open(path)
    video = person.project()["video"]
    assert (video["width"], video["height"]) == (3840, 2160)
    person.lasso(clip.own(0, 1), margin=10 * LOOSE)
    assert person.score(clip, 0) > 0.8
    person.picture("4K")
    person.finished(lambda: person.press("Enter"))
    assert "." not in person.project()["states"]
    assert person.score(clip, 2) > 0.7


@pytest.mark.parametrize("token", ["wrong", ""])
def test_nobody_enters_without_the_token(visit, clip, token):
    server = visit.serve(clip.path)
    person = visit.person(server)
    answer = person.page.goto(f"{server.origin}/?token={token}" if token else server.origin)
    assert answer.status == 403
    person.picture("wrong token")
    assert person.page.request.get(f"{server.origin}/api/frame/0").status == 403
    assert person.page.request.post(f"{server.origin}/api/undo").status == 403
    person.expect("status of 403")
    assert person.open().project()["video"]["frames"] == FRAMES
    assert np.array(person.pixels()).std() > 5


def test_a_network_that_cannot_be_loaded_is_told_before_it_is_needed(visit, clip, tmp_path):
    weights = tmp_path / "bad.safetensors"
    weights.write_bytes(b"no weights")
    server = visit.serve(clip.path, "--weights", weights)
    first = visit.person(server).open()
    first.until(lambda _: "bad.safetensors" in first.status(), "the one who waits for it hears of it")
    later = visit.another_tab(first).open()
    assert "bad.safetensors" in later.status()
    later.lasso(clip.own(0, 1))
    assert later.project()["states"][0] == "g"
