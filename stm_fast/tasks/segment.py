"""stm-fast segment: masks and an overlay of a video, or of many."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as distributed

from stm_fast.choices import Overlay
from stm_fast.config import MemoryConfig
from stm_fast.inference import InterruptedRun, Summary, segment_video
from stm_fast.inference.bulk import Job
from stm_fast.inference.estimation import Estimate
from stm_fast.inference.process_group import process_group
from stm_fast.inference.shards import rank, shard
from stm_fast.memory import RankLostError
from stm_fast.printing import remark, warn
from stm_fast.tasks.bulk import Segment, clear, segment_many
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.interruption import how_to_resume, stop_on_signals
from stm_fast.tasks.network import load_for_inference
from stm_fast.tasks.progress import print_summary, print_untrained, progress_bar, task_name

_RANK_LOST = 1


def segment_videos(
    jobs: Sequence[Job],
    masks: Path,
    *,
    mask_frame: str | None,
    network: NetworkChoice,
    memory: MemoryConfig,
    max_size: int | None,
    min_size: int | None,
    backend: str,
    overlay: Overlay,
    overwrite: bool,
    resume: bool,
    checkpoint_seconds: float,
    shard_memory: bool,
) -> int:
    """Segments one video, or several one after the other.

    Args:
        masks: of one video a file or a folder; of several a folder that has either for each.
        mask_frame: of one video, the frame that the one mask is of; None for what its name says.
        min_size: None for what suits the network.
        shard_memory: all processes share the memory of one video.

    Returns:
        The exit code.

    Raises:
        InputError: as :func:`stm_fast.inference.segment_video`; of several videos each is told, and the others go on.
    """
    model = load_for_inference(network)
    several = len(jobs) > 1
    if several and overwrite:
        clear(shard(jobs), masks)
    with stop_on_signals() as stop, process_group(shard_memory) as group:

        def run(source: Path, masks: Path, output: Path, advance: Callable[[int, int | None], None]) -> Summary:
            return segment_video(
                source,
                masks,
                output,
                model=model,
                mask_frame=mask_frame,
                memory=memory,
                max_size=max_size,
                min_size=network.smallest_side(min_size, max_size),
                backend=backend,
                overlay=overlay,
                overwrite=overwrite,
                resume=resume or (several and not overwrite),
                checkpoint_seconds=checkpoint_seconds,
                leave_record=several,
                group=group,
                should_stop=stop,
                progress=advance,
                estimated=_print_estimate,
            )

        try:
            code = segment_many(jobs, masks, run) if several else _segment_one(jobs[0], masks, run, network.untrained)
        except InterruptedRun as error:
            return _ended(error, stop.exit_code)
        except RankLostError as error:
            return _ended(error, _RANK_LOST)
    if several and network.untrained:
        print_untrained()
    return code


def _segment_one(job: Job, masks: Path, run: Segment, untrained: bool) -> int:
    """One video, by all processes where they share its memory, else by the first."""
    if rank() == 0:
        with progress_bar(task_name(untrained)) as advance:
            summary = run(job.source, masks, job.output, advance)
        print_summary(summary, untrained)
    elif distributed.is_initialized():
        run(job.source, masks, job.output, lambda *_: None)
    return 0


def _print_estimate(estimate: Estimate) -> None:
    if rank() == 0:
        remark(f"memory: {estimate}")


def _ended(why: Exception, code: int) -> int:
    warn(str(why))
    if rank() == 0:
        remark(*how_to_resume())
    return code
