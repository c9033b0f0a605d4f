"""What the commands do, once their options are right.

A task is imported where a command names it, and torch with it: so a command checks its options before it names one.
"""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.tasks.benchmark import time_frames, time_reads, tune_tiles
    from stm_fast.tasks.demo import run_demo
    from stm_fast.tasks.evaluate import evaluate_set, score_results
    from stm_fast.tasks.info import print_info
    from stm_fast.tasks.network import convert_checkpoints
    from stm_fast.tasks.segment import segment_videos
    from stm_fast.tasks.sets import open_results, open_set
    from stm_fast.tasks.train import train_network
    from stm_fast.training.config_file import read_config
    from stm_fast.versions import __version__
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "__version__",
    "convert_checkpoints",
    "evaluate_set",
    "open_results",
    "open_set",
    "print_info",
    "read_config",
    "run_demo",
    "score_results",
    "segment_videos",
    "time_frames",
    "time_reads",
    "train_network",
    "tune_tiles",
]
