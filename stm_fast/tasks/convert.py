"""stm-fast convert: a checkpoint, or the mean of several, as safetensors."""

from collections.abc import Sequence
from pathlib import Path

from stm_fast.network import save_checkpoint
from stm_fast.network.mean import into_mean
from stm_fast.printing import say
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.network import load_model


def convert_checkpoints(sources: Sequence[NetworkChoice], target: Path, *, half: bool) -> None:
    """Writes the mean of the sources' weights.

    Raises:
        InputError: a checkpoint that is none, several of different networks, or a file that cannot be written.
    """
    model = into_mean([load_model(source) for source in sources])
    save_checkpoint(model, target, half=half)
    say(f"{target}: {model.architecture}")
