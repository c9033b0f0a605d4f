"""The output folder of a training run."""

from collections.abc import Sequence
from pathlib import Path

from stm_fast.errors import InputError, option, reading
from stm_fast.whole_file import make_folder, refuse_input, refuse_links, remove_left_over

# the first line of the configuration, by which a file of the user is told apart
CONFIG_HEADER = "# every setting of this run, written by stm-fast train\n"


class RunFolder:
    """The files of a run.

    ``config.yaml`` is its configuration, complete and with all changes, ``checkpoint.pt`` the state to resume from,
    ``model.safetensors`` the weights (their moving average if there is one), ``best.safetensors`` those with the
    highest J&F; also ``log.jsonl``, ``tensorboard/`` and ``pictures/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoint = path / "checkpoint.pt"
        self.model = path / "model.safetensors"
        self.best = path / "best.safetensors"
        self.pictures = path / "pictures"

    def picture(self, step: int) -> Path:
        """The image of a step."""
        return self.pictures / f"step-{step:07}.png"

    def check(self, resume: bool) -> None:
        """Raises InputError if the folder contains another run or a user's file, or a link to a folder of pictures."""
        for file in (self.checkpoint, self.model, self.best):
            if file.exists() and not resume:
                other = f"give another {option('output')}, or {option('resume', True)}"
                raise InputError(f"{file}: already holds a run; {other}")
        refuse_links(self.pictures)
        with reading(self.config):
            if self.config.exists() and not self.config.read_bytes().startswith(CONFIG_HEADER.encode()):
                raise InputError(f"{self.config}: found a file of yours where the run writes its own; rename it")

    def check_inputs(self, inputs: Sequence[Path]) -> None:
        """Raises InputError if the run would overwrite `inputs`, the initial weights."""
        for file in (self.model, self.best):
            refuse_input(file, inputs)

    def claim(self, resume: bool, inputs: Sequence[Path] = ()) -> None:
        """Creates the folder. Raises InputError as `check` and `check_inputs` do."""
        self.check(resume)
        self.check_inputs(inputs)
        make_folder(self.path)
        remove_left_over(self.path)
