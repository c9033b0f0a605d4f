"""pytest plugin of make gpu-cache: results are not compared, since nothing was computed, and tests go on to the end."""

from typing import Any

import pytest
import torch

from stm_fast.testing import runs


def pytest_configure(config: pytest.Config) -> None:
    for module, name in ((torch.testing, "assert_close"), (runs, "assert_no_worse_than_eager")):
        setattr(module, name, _nothing)
    runs.rounded_once = runs.eager_outputs = _no_results


def _nothing(*_arguments: Any, **_options: Any) -> None:
    return None


def _no_results(*_arguments: Any, **_options: Any) -> dict[str, torch.Tensor]:
    return {}
