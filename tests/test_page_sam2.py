"""The prompter of SAM 2 with the real classes of transformers, at random tiny weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stm_fast.clicks.regions import Region
from stm_fast.errors import InputError
from stm_fast.page.prompters import make_prompter
from stm_fast.video.first_mask import Box

pytest.importorskip("cv2")
ROOT = Path(__file__).resolve().parents[1]
SIDE = 64
IMAGE = np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8)
SHOWN = np.zeros((60, 100), bool)
SHOWN[10:40, 20:60] = True


@pytest.fixture(scope="module")
def library():
    with pytest.MonkeyPatch.context() as patch:
        # the folder "kernels" of the repository is not the package of that name, which transformers looks for
        patch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
        yield pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def weights(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2")
    library.Sam2Model(tiny(library)).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    library.Sam2Processor(library.Sam2ImageProcessor(size=size)).save_pretrained(folder)
    return folder


def tiny(library):
    backbone = library.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 24, 32],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = library.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[32, 24, 16, 8],
        backbone_feature_sizes=[[SIDE // scale] * 2 for scale in (4, 8, 16)],
        fpn_hidden_size=32,
    )
    return library.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=library.Sam2PromptEncoderConfig(hidden_size=32, image_size=SIDE, mask_input_channels=4),
        mask_decoder_config=library.Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=16, num_attention_heads=2, num_hidden_layers=1, iou_head_hidden_dim=8
        ),
    )


@pytest.mark.slow
def test_regions_and_clicks_have_masks(weights, capfd):
    prompter = make_prompter("sam2", str(weights))
    assert prompter.clicks_alone
    seen, original = [], prompter._model.get_image_embeddings
    prompter._model.get_image_embeddings = lambda pixels: seen.append(1) or original(pixels)
    for region in (Region(Box(10, 10, 50, 40), ()), Region(None, ((10, 10), (50, 10), (30, 50)))):
        mask = prompter.from_region(IMAGE, region).mask
        assert mask.shape == SHOWN.shape
        assert mask.dtype == bool
        assert mask.any()
    for add, point in ((True, (80.5, 50.5)), (False, (30.5, 20.5))):
        changed = prompter.from_click(IMAGE, SHOWN, point, add) != SHOWN
        assert changed[int(point[1]), int(point[0])]
        assert not changed[add == SHOWN].any()
    assert prompter.from_click(IMAGE, np.zeros_like(SHOWN), (50, 30), True)[30, 50]
    assert len(seen) == 1, "features of the same frame are computed once"
    prompter.from_region(IMAGE[::-1], Region(Box(10, 10, 50, 40), ()))
    assert len(seen) == 2
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.slow
def test_what_are_not_weights_of_sam2_is_refused(weights, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^prompter_weights: found .*, expected a folder with weights of SAM 2"):
        make_prompter("sam2", str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("text", ["nothing", "no/such/folder", "hf://", "../a/b", "default"])
def test_weights_that_are_neither_a_folder_nor_a_repository_are_refused(text):
    with pytest.raises(InputError) as caught:
        make_prompter("sam2", text, allow_network=True)
    expected = "expected a folder with weights of SAM 2 for transformers, or user/repo on the Hugging Face hub"
    assert str(caught.value) == f"prompter_weights: found {text}, {expected}"
    assert "\0prompter_weights\0" in caught.value.message.marked, "commands name the flag"


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_a_repository_that_is_not_in_the_cache_is_not_downloaded_unasked():
    with pytest.raises(
        InputError, match=r"^prompter_weights: found user/missing, which is not in the cache of the hub"
    ):
        make_prompter("sam2", "user/missing")


LOAD = """
from stm_fast.errors import InputError
from stm_fast.page.prompters import make_prompter
try:
    make_prompter("sam2", "user/missing", allow_network=True)
except InputError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_without_a_connection_a_repository_is_refused_at_once(tmp_path):
    """The libraries would try for half a minute, and print that."""
    (tmp_path / "stm_fast").symlink_to(ROOT / "stm_fast")
    # nothing listens on port 9
    place = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path, env=os.environ | place, capture_output=True, text=True, check=True
    )
    expected = "no such file, not in the cache of the hub, and no connection to http://127.0.0.1:9"
    assert done.stdout == f"prompter_weights: user/missing: {expected}\n"
    assert "Retrying" not in done.stderr


def test_missing_weights_and_a_missing_library_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="prompter_weights: found none, expected a folder with weights of SAM 2"):
        make_prompter("sam2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"needs transformers with SAM 2.*: pip install 'transformers>=5'$"):
        make_prompter("sam2", str(tmp_path))
