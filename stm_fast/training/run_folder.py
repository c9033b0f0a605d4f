"""The files of a training run."""

from collections.abc import Sequence
from pathlib import Path

from stm_fast.errors import InputError, option
from stm_fast.whole_file import make_folder, refuse_input, refuse_links, remove_left_over


class RunFolder:
    """Names of a run's files.

    ``checkpoint.pt`` all that a run needs to resume, ``model.safetensors`` its weights (their average if the run has
    one), ``best.safetensors`` those with the highest J&F, ``log.jsonl``, ``tensorboard/``, ``pictures/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.model = path / "model.safetensors"
        self.best = path / "best.safetensors"
        self.pictures = path / "pictures"

    def picture(self, step: int) -> Path:
        return self.pictures / f"step-{step:07}.png"

    def check(self, resume: bool) -> None:
        """Raises InputError where another run is there, or the folder of pictures is a link."""
        for file in (self.checkpoint, self.model, self.best):
            if file.exists() and not resume:
                other = f"give another {option('output')}, or {option('resume', True)}"
                raise InputError(f"{file}: a run is there already; {other}")
        refuse_links(self.pictures)

    def check_inputs(self, inputs: Sequence[Path]) -> None:
        """Raises InputError where weights of this run would overwrite `inputs`, the initial ones."""
        for file in (self.model, self.best):
            refuse_input(file, inputs)

    def claim(self, resume: bool, inputs: Sequence[Path] = ()) -> None:
        """Makes the folder. Raises InputError as `check` and `check_inputs` do."""
        self.check(resume)
        self.check_inputs(inputs)
        make_folder(self.path)
        remove_left_over(self.path)
