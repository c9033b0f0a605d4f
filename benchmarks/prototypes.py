"""J of long clips with a memory of a fixed size: prototypes compared with whole frames of the same bytes.

python benchmarks/prototypes.py --seeds 6 --output benchmarks/results/prototypes-procedural.json
python benchmarks/prototypes.py clips/JPEGImages/480p/chair=clips/Annotations/480p/chair --frames 1000
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Annotated, NamedTuple, Protocol

import torch
import typer

from stm_fast.benchmarking.records import Record, describe_machine
from stm_fast.benchmarking.report import Table, bytes_text
from stm_fast.config import MemoryConfig
from stm_fast.data.synthetic import SyntheticClip, SyntheticFrame
from stm_fast.evaluation import region_similarity
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network.released import DEFAULT
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.network import load_for_inference
from stm_fast.video import open_frames, read_mask

# of procedural clips: objects are hidden for this many frames, again and again
HIDDEN = (100, 300)
OBJECTS = 2


@dataclass(frozen=True)
class PolicyRow:
    """J of a clip, over its objects and all frames but the first; an object that is hidden must have no pixel."""

    clip: str
    policy: str
    frames: int
    mean: float
    second_half: float
    bank_bytes: int  # the most at any frame
    seconds: float  # of processor time, the median of a frame


class Frames(Protocol):
    def __getitem__(self, index: int, /) -> SyntheticFrame: ...


class Repeated(NamedTuple):
    """A clip forwards and backwards, without end."""

    clip: list[SyntheticFrame]

    def __getitem__(self, index: int) -> SyntheticFrame:  # type: ignore[override]
        last = len(self.clip) - 1
        step = index % (2 * last)
        return self.clip[min(step, 2 * last - step)]


def main(
    clip: Annotated[list[str] | None, typer.Argument(help="Folders of a clip: FRAMES=MASKS.")] = None,
    seeds: Annotated[int, typer.Option(help="How many procedural clips.")] = 0,
    frames: Annotated[int, typer.Option(min=2)] = 2000,
    cap: Annotated[int, typer.Option(help="Frames in memory per object.")] = 10,
    prototypes: Annotated[int, typer.Option(help="How many of them hold prototypes.")] = 7,
    every: int = 5,
    max_size: int = 240,
    weights: Path = Path(DEFAULT),
    threads: int = 1,
    output: Path | None = None,
) -> None:
    """Prototypes compared with whole frames of the same bytes, in long clips."""
    if not clip and not seeds:
        raise typer.BadParameter("found no clip, expected FRAMES=MASKS or --seeds")
    torch.set_num_threads(threads)
    model = load_for_inference(NetworkChoice(weights, device="cpu"))
    settings = {"weights": weights.name, "cap": cap, "prototypes": prototypes, "every": every, "max_size": max_size}
    record = Record[PolicyRow](describe_machine("cpu"), settings)
    capped = MemoryConfig(every=every, max_frames=cap, evict="even")
    policies = {
        "prototypes": replace(capped, consolidate=prototypes),
        **{evict: replace(capped, evict=evict) for evict in ("even", "oldest", "least_used")},
    }
    for name, played in clips(clip or [], seeds, frames):
        for policy, memory in policies.items():
            segmenter = VideoSegmenter(model, memory=memory, max_size=max_size, min_size=1)
            record.rows.append(PolicyRow(name, policy, frames, *followed(segmenter, played, frames)))
            print(record.rows[-1], flush=True)
            if output is not None:
                record.write(output)


def clips(folders: list[str], seeds: int, frames: int) -> Iterator[tuple[str, Frames]]:
    for pair in folders:
        source, _, masks = pair.partition("=")
        found = [
            SyntheticFrame(each.image, read_mask(Path(masks) / f"{each.name}.png").ids) for each in open_frames(source)
        ]
        yield Path(source).name, Repeated(found)
    for seed in range(seeds):
        yield f"procedural {seed}", SyntheticClip(seed, frames=frames, objects=OBJECTS, hidden=HIDDEN)


def followed(segmenter: VideoSegmenter, clip: Frames, frames: int) -> tuple[float, float, int, float]:
    """The last four fields of a row."""
    scores, seconds, most = [], [], 0
    for index in range(frames):
        frame = clip[index]
        image, ids = torch.from_numpy(frame.image).permute(2, 0, 1), torch.from_numpy(frame.ids)
        start = time.process_time()
        probability = segmenter.step(image, None if index else ids)
        seconds.append(time.process_time() - start)
        most = max(most, segmenter.bank.nbytes)
        found = torch.tensor([0, *segmenter.object_ids])[probability.argmax(0)].numpy()
        if index:
            each = [region_similarity(found == label, frame.ids == label) for label in segmenter.object_ids]
            scores.append(mean(map(float, each)))
    return mean(scores), mean(scores[len(scores) // 2 :]), most, median(seconds)


def table(rows: Sequence[PolicyRow]) -> Table:
    """J of every clip and policy, and what a bank takes."""
    policies = dict.fromkeys(row.policy for row in rows)
    by_clip = {row.clip: {other.policy: other for other in rows if other.clip == row.clip} for row in rows}
    by_policy = [[row for row in rows if row.policy == policy] for policy in policies]
    lines = [[name, *(f"{100 * found[each].mean:.1f}" for each in policies)] for name, found in by_clip.items()]
    lines.append(["mean", *(f"{100 * mean(row.mean for row in found):.1f}" for found in by_policy)])
    lines.append(["largest bank", *(bytes_text(max(row.bank_bytes for row in found)) for found in by_policy)])
    lines.append(
        ["processor time of a frame", *(f"{1e3 * median(row.seconds for row in found):.0f} ms" for found in by_policy)]
    )
    return Table(["J", *policies], lines)


if __name__ == "__main__":
    typer.run(main)
