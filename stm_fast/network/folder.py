"""A folder with a network: its weights, what they are, and a model card. `STM.save_pretrained` writes it."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError, reading, require_file, shown
from stm_fast.network.checkpoint import load_network, require_original, save_checkpoint
from stm_fast.network.entries import is_safetensors
from stm_fast.network.places import CARD, CONFIG, WEIGHTS
from stm_fast.network.stm import STM
from stm_fast.record_file import difference
from stm_fast.text_file import read_json
from stm_fast.whole_file import make_folder, whole_file

LIBRARY = "stm_fast"
_LARGEST_CONFIG = 2**16  # bytes
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_CARD = """\
---
license: {license}
library_name: stm_fast
pipeline_tag: mask-generation
tags:
- video-object-segmentation
- space-time-memory
---

# {architecture}

A Space-Time Memory network for video object segmentation with `stm_fast`: it takes the masks of the objects in one
frame of a video, and returns those of the others.

```python
import stm_fast

model = stm_fast.load("user/repo")  # this repository, or the folder of this file
segmenter = stm_fast.VideoSegmenter(model)
```

| | |
|---|---|
| parameters | {parameters:.1f} M |
| frames | RGB in [0, 1]; those whose shorter side is below {min_size} pixels are upscaled |

The training data, the scores and the limits of these weights have not been described yet.
"""


def write_network(model: STM, folder: Path, license: str) -> None:
    """`STM.save_pretrained`."""
    if _LICENSE.fullmatch(license) is None:
        raise InputError(f"license: found {shown(license)}, expected an identifier of the hub such as apache-2.0")
    require_original(model, folder)
    make_folder(folder)
    save_checkpoint(model, folder / WEIGHTS)
    _write(folder / CONFIG, json.dumps(_described(model), indent=2) + "\n")
    if not (folder / CARD).exists():
        parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
        facts = {"license": license, "architecture": model.architecture, "min_size": model.min_size}
        _write(folder / CARD, _CARD.format(**facts, parameters=parameters))


def read_network(config: Path, weights: Path) -> STM:
    """The network of two files that `write_network` wrote, in float32 on the CPU; nothing in them is trusted.

    Raises:
        InputError: a file that is missing or damaged, weights that are not safetensors, or a configuration that does
            not describe them.
    """
    stated = _read_config(config)
    require_file(weights, "a checkpoint")
    if not is_safetensors(weights):
        raise InputError(f"{weights}: not a safetensors file, expected one from STM.save_pretrained")
    model = load_network(weights)
    differs = difference(stated, _described(model))
    if differs is not None:
        raise InputError(f"{config}: {differs} as in {weights.name}")
    return model


def _described(model: STM) -> dict[str, Any]:
    """The content of the configuration."""
    return {"library_name": LIBRARY, "architecture": asdict(model.architecture), "min_size": model.min_size}


def _read_config(path: Path) -> dict[str, Any]:
    expected = "the configuration that STM.save_pretrained writes"
    require_file(path, expected)
    with reading(path):
        size = path.stat().st_size
    if size > _LARGEST_CONFIG:
        raise InputError(f"{path}: found {size} bytes, expected at most {_LARGEST_CONFIG}")
    content = read_json(path, expected)
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {type(content).__name__}, expected {expected}")
    return content


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text)
