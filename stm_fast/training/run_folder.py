"""The output folder of a training run."""

from collections.abc import Sequence
from pathlib import Path

from stm_fast.errors import InputError, option
from stm_fast.whole_file import make_folder, refuse_input, refuse_links, remove_left_over


class RunFolder:
    """The files of a run.

    ``checkpoint.pt`` is the state to resume from, ``model.safetensors`` the weights (their moving average if there is
    one), ``best.safetensors`` those with the highest J&F; also ``log.jsonl``, ``tensorboard/`` and ``pictures/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.model = path / "model.safetensors"
        self.best = path / "best.safetensors"
        self.pictures = path / "pictures"

    def picture(self, step: int) -> Path:
        """The image of a step."""
        return self.pictures / f"step-{step:07}.png"

    def check(self, resume: bool) -> None:
        """Raises InputError if the folder contains another run, or its folder of pictures is a link."""
        for file in (self.checkpoint, self.model, self.best):
            if file.exists() and not resume:
                other = f"give another {option('output')}, or {option('resume', True)}"
                raise InputError(f"{file}: already holds a run; {other}")
        refuse_links(self.pictures)

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
