"""J&F of whole sequences during training, with the loop and the scoring of `stm-fast evaluate`."""

import shutil
import tempfile
import weakref
from pathlib import Path

from accelerate.utils import gather_object

from stm_fast.config import MemoryConfig
from stm_fast.data.sequences import SETS, Sequence
from stm_fast.data.synthetic_set import draw_sequence
from stm_fast.data.synthetic_source import SyntheticSource
from stm_fast.errors import InputError
from stm_fast.evaluation.benchmark_sets import claim_output, run_sequences
from stm_fast.evaluation.output_folder import MASKS
from stm_fast.evaluation.record import overall
from stm_fast.evaluation.scoring import check_length, score_sequences
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM
from stm_fast.network.deploy import for_inference
from stm_fast.runs.ranks import launched
from stm_fast.training.config import SyntheticValidation, Validation


class Validator:
    """Segments and scores the sequences of a split, which are distributed among the processes.

    Attributes:
        every: epochs between two validations.

    Raises:
        InputError: sequences that are missing or cannot be scored.
    """

    def __init__(self, validation: Validation | SyntheticValidation, backend: str) -> None:
        self.every = validation.every
        self._sequences = self._open(validation)
        for sequence in self._sequences:
            if not sequence.fully_annotated:
                raise InputError(
                    f"{sequence.annotations}: found frames without a mask, expected a mask for every frame"
                )
            check_length(sequence)
        memory = MemoryConfig(every=validation.memory_every)
        self._options = RunOptions(memory, validation.max_size, validation.min_size, backend)

    def __call__(self, model: STM) -> dict[str, float]:
        """Scores a network: the global measures of the DAVIS toolkit, in [0, 1]."""
        copy = for_inference(model)
        share = launched().share(self._sequences)
        with tempfile.TemporaryDirectory(prefix="stm_fast_validation_") as name:
            folder = Path(name)
            claim_output(folder, {})
            run_sequences(share, folder, copy, self._options)
            pairs = [(sequence, folder / MASKS / sequence.name) for sequence in share]
            scores = score_sequences(pairs, workers=1) if pairs else []
        return overall(gather_object(scores))

    def _open(self, validation: Validation | SyntheticValidation) -> list[Sequence]:
        if isinstance(validation, Validation):
            return SETS[validation.kind](Path(validation.path), validation.split)
        root = Path(tempfile.mkdtemp(prefix="stm_fast_clips_"))
        weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)
        v = validation
        source = SyntheticSource(v.first + v.clips, v.height, v.width, v.frames, v.objects)
        for number in range(v.first, v.first + v.clips):
            draw_sequence(root, f"{number:07}", source.clip(number))
        return SETS["folder"](root, "all")
