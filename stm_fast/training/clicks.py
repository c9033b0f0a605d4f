"""Trains the click network, by iterative training with mask guidance (Sofiiuk et al., 2021).

python -m stm_fast.training.clicks DAVIS STILLS --output FOLDER

DAVIS is a folder like that of DAVIS-2016, of whose training split all sequences but those `HELD_OUT` are used; STILLS
has JPEGImages and Annotations, of which every tenth is left out of training, for validation. The trunk starts from the
ImageNet weights of EfficientNet-Lite2. In each step, a simulated user draws around objects or corrects masks; the
network answers, is corrected up to four times, and learns from its last answer. A run goes on where it stopped.
"""

import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from stm_fast.clicks.network import FROZEN, ClickNetwork
from stm_fast.clicks.prompting import Click, Prompts, image_tensor, merged, planes_of
from stm_fast.clicks.user import next_click
from stm_fast.clicks.weights import load_trunk, write_weights
from stm_fast.data.images import image_source
from stm_fast.data.sequences import SETS
from stm_fast.data.videos import VideoSource
from stm_fast.errors import InputError
from stm_fast.evaluation import region_similarity
from stm_fast.printing import percent, say, warn
from stm_fast.training.averaging import weight_average
from stm_fast.training.checkpoint import read_state, write_state
from stm_fast.training.click_examples import VIEW_SIDE, Item, Pool, View, Views, pool_of, warped
from stm_fast.training.click_prompts import random_click, random_region, spoiled
from stm_fast.training.config import Schedule
from stm_fast.training.losses import soft_iou_loss
from stm_fast.training.schedule import rate_factor
from stm_fast.video.grabcut import Bools, require_opencv
from stm_fast.whole_file import make_folder

# of DAVIS-2016 train: objects of the tests and the model card
HELD_OUT = ("bear", "bmx-bumps", "car-turn", "dance-jump", "flamingo")
_VALIDATION_EVERY = 10  # stills
_BATCH = 8
_RATE, _TRUNK_RATE, _DECAY, _CLIP_NORM = 1e-3, 2e-4, 1e-4, 5.0
_SCHEDULE = Schedule("cosine", warmup=100)
_AVERAGE = 0.998
# how examples begin: a region, a click without a mask, or else a click on a wrong mask
_REGION, _CLICK_ALONE = 0.6, 0.15
_ROUNDS = (0.32, 0.26, 0.2, 0.13, 0.09)  # probabilities of 0 to 4 corrections before the answer that is learned from
_IOU_WEIGHT, _WRONG_WEIGHT, _EDGE = 0.5, 3.0, 9  # the last one in pixels
_LOG_EVERY, _SAVE_EVERY, _VALIDATION_CLICKS = 50, 250, 5
_NOTHING = np.zeros((VIEW_SIDE, VIEW_SIDE), bool)


class Asked(NamedTuple):
    """What the network is asked: the mask so far, bool [S, S], and what the user did."""

    shown: Bools
    prompts: Prompts


class Answered(NamedTuple):
    """A step's examples: logits [B, S, S], the views, and what was asked."""

    logits: Tensor
    views: list[View]
    asked: list[Asked]


class ClickTraining:
    """A run, which depends on its arguments alone.

    Args:
        network: with the weights to start from.
        pools: of objects to train on.
        steps: of the whole run.
        seed: with the number of the step, of its examples.
    """

    def __init__(self, network: ClickNetwork, pools: list[Pool], steps: int, seed: int) -> None:
        self.network, self.step, self._pools, self._steps, self._seed = network, 0, pools, steps, seed
        for part in (self.network.stem, *self.network.stages[:FROZEN]):
            part.requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)
        self.average = weight_average(self.network, _AVERAGE)
        trunk = [weight for weight in self.network.stages.parameters() if weight.requires_grad]
        known = {id(weight) for weight in trunk}
        heads = [one for one in self.network.parameters() if one.requires_grad and id(one) not in known]
        groups = [{"params": trunk, "base": _TRUNK_RATE}, {"params": heads, "base": _RATE}]
        self._optimizer = torch.optim.AdamW(groups, lr=_RATE, weight_decay=_DECAY)
        self._weights = trunk + heads

    def train_step(self) -> float:
        """Takes a step. Returns its loss."""
        random = np.random.default_rng((self._seed, self.step))
        answered = self._answered(Views(self._pools, random), random)
        loss = _loss(answered)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * rate_factor(_SCHEDULE, self.step, self._steps)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._weights, _CLIP_NORM)
        self._optimizer.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return float(loss.detach())

    def _answered(self, views: Views, random: np.random.Generator) -> Answered:
        drawn = [views.draw() for _ in range(_BATCH)]
        images = _batch(drawn)
        asked = [_first_asked(view, random) for view in drawn]
        for _ in range(random.choice(len(_ROUNDS), p=_ROUNDS)):
            found = answers(self.network, images, asked)
            asked = [
                _next_asked(one, mask, view.own, random) for one, mask, view in zip(asked, found, drawn, strict=True)
            ]
        return Answered(self.network(images, _planes(asked))[:, 0], drawn, asked)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has."""
        model, average = self.network.state_dict(), self.average.state_dict()
        run = {"step": self.step, "steps": self._steps, "seed": self._seed}
        return run | {"model": model, "average": average, "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint. Raises InputError if it is that of another run."""
        for name, own in (("steps", self._steps), ("seed", self._seed)):
            if name not in state:
                raise InputError("found a checkpoint of another kind of training, expected another output folder")
            if state[name] != own:
                raise InputError(f"{name}: found {own}, expected {state[name]} as in the checkpoint of this run")
        self.step = state["step"]
        self.network.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])


def answers(network: torch.nn.Module, images: Tensor, asked: list[Asked]) -> list[Bools]:
    """The masks that a network answers with."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return list((network(images, _planes(asked))[:, 0] > 0).numpy())


def _batch(views: list[View]) -> Tensor:
    return image_tensor(np.stack([view.image for view in views])).contiguous(memory_format=torch.channels_last)


def _planes(asked: list[Asked]) -> Tensor:
    planes = torch.from_numpy(np.stack([planes_of(*one) for one in asked])).float()
    return planes.contiguous(memory_format=torch.channels_last)


def _first_asked(view: View, random: np.random.Generator) -> Asked:
    kind = random.random()
    if kind < _REGION:
        return Asked(_NOTHING, Prompts(random_region(view.own, random)))
    shown = _NOTHING if kind < _REGION + _CLICK_ALONE else spoiled(view.own, view.others, random)
    return _clicked(Asked(shown, Prompts(None)), random_click(shown, view.own, random))


def _next_asked(asked: Asked, found: Bools, own: Bools, random: np.random.Generator) -> Asked:
    """A click on what is wrong after an answer."""
    shown = corrected(asked, found)
    return _clicked(Asked(shown, asked.prompts), random_click(shown, own, random))


def _clicked(asked: Asked, click: Click | None) -> Asked:
    """The same with one more click, if there is one."""
    if click is None:
        return asked
    return asked._replace(prompts=asked.prompts._replace(clicks=(*asked.prompts.clicks, click)))


def corrected(asked: Asked, found: Bools) -> Bools:
    """The mask that is shown after an answer."""
    prompts = asked.prompts
    if prompts.clicks:
        return merged(asked.shown, found, prompts.clicks[-1])
    return asked.shown if prompts.area is None else found & prompts.area


def _loss(answered: Answered) -> Tensor:
    """Weighted cross-entropy and soft intersection over union, the mean over examples."""
    logits = answered.logits.float()
    own = torch.from_numpy(np.stack([view.own for view in answered.views])).float()
    weights = torch.from_numpy(np.stack([*map(_weights, answered.views, answered.asked)]))
    entropy = F.binary_cross_entropy_with_logits(logits, own, weights, reduction="none").sum((1, 2))
    both = torch.stack([torch.zeros_like(logits), logits], 1)  # of background and object
    overlap = soft_iou_loss(both, own.long(), torch.ones(len(own)))
    return (entropy / weights.sum((1, 2))).mean() + _IOU_WEIGHT * overlap


def _weights(view: View, asked: Asked) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Float32 [S, S]: larger at the edge of the object, and in the wrong region that was clicked."""
    cv2: Any = import_module("cv2")  # optional
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_EDGE, _EDGE))
    weights = 1 + cv2.morphologyEx(view.own.astype(np.uint8), cv2.MORPH_GRADIENT, disk).astype(np.float32)
    if asked.prompts.clicks and asked.shown.any():
        (x, y), add = asked.prompts.clicks[-1]
        wrong = view.own & ~asked.shown if add else asked.shown & ~view.own
        _, labels = cv2.connectedComponents(wrong.astype(np.uint8), connectivity=4)
        weights += _WRONG_WEIGHT * (labels == labels[int(y), int(x)])
    found: np.ndarray[Any, np.dtype[np.float32]] = weights
    return found


def validated(network: torch.nn.Module, items: list[Item], clicks: int) -> list[float]:
    """The mean J after a lasso and each of some clicks, on objects in the middle of their views."""
    rows = [list(_scores(network, item, clicks)) for item in items]
    return [float(score) for score in np.mean(rows, 0)]


def _scores(network: torch.nn.Module, item: Item, clicks: int) -> Iterator[float]:
    motion = _in_the_middle(item)
    own = warped((item.ids == item.id).astype(np.float32), motion) > 0.5
    images = image_tensor(warped(item.image, motion)[None])
    cv2: Any = import_module("cv2")  # optional
    area = cv2.dilate(own.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (19, 19))) > 0
    asked = Asked(_NOTHING, Prompts(area))
    for _ in range(clicks + 1):
        shown = corrected(asked, answers(network, images, [asked])[0])
        yield float(region_similarity(shown, own))
        asked = _clicked(Asked(shown, asked.prompts), next_click(shown, own))


def _in_the_middle(item: Item) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows, columns = np.nonzero(item.ids == item.id)
    middle = np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
    scale = VIEW_SIDE / (1.5 * max(np.ptp(columns) + 1, np.ptp(rows) + 1))
    return np.column_stack([scale * np.eye(2), VIEW_SIDE / 2 - scale * middle])


def data_of(davis: Path, stills: Path) -> tuple[list[Pool], list[Item]]:
    """The pools to train on, and what is left out for validation: the largest object of each of these stills."""
    sequences = [one for one in SETS["davis16"](davis, "train") if one.name not in HELD_OUT]
    source = image_source(stills)
    left_out = range(_VALIDATION_EVERY // 2, len(source), _VALIDATION_EVERY)
    of_stills = pool_of(source, 0.68, one_group_per_clip=False, without=left_out)
    pools = [pool_of(VideoSource(sequences), 0.32, one_group_per_clip=True), of_stills]
    validation = pool_of(source, 1, one_group_per_clip=True, without=sorted(set(range(len(source))) - {*left_out}))
    for pool, folder in zip((*pools, validation), (davis, stills, stills), strict=True):
        if not any(pool.groups):
            raise InputError(f"{folder}: found too few objects, expected some to train on and some for validation")
    return pools, [max(group, key=_pixels) for group in validation.groups]


def _pixels(item: Item) -> int:
    return int(np.count_nonzero(item.ids == item.id))


def train(network: ClickNetwork, davis: Path, stills: Path, output: Path, steps: int, seed: int) -> None:
    """Trains to the end, from the checkpoint in a folder if there is one. Raises InputError for bad data."""
    require_opencv()
    pools, validation = data_of(davis, stills)
    training = ClickTraining(network, pools, steps, seed)
    objects = [sum(map(len, pool.groups)) for pool in pools]
    say(f"objects in videos and in stills: {', '.join(map(str, objects))}; for validation: {len(validation)}")
    make_folder(output)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        state = read_state(checkpoint)
        training.restore(state)
        say(f"going on at step {training.step}")
    losses, start = list[float](), time.monotonic()
    while training.step < steps:
        losses.append(training.train_step())
        done = training.step
        if done % _LOG_EVERY == 0:
            say(f"step {done}: loss {np.mean(losses[-_LOG_EVERY:]):.4f}, {time.monotonic() - start:.0f} s")
        if done % _SAVE_EVERY == 0 or done == steps:
            scores = validated(training.average.module, validation[::2], _VALIDATION_CLICKS)
            say(f"step {done}: J after 0 to {_VALIDATION_CLICKS} clicks {', '.join(map(percent, scores))}")
            write_weights(output / "clicks.safetensors", training.average.module)
            write_state(checkpoint, training.state())


def main(
    davis: Annotated[Path, typer.Argument(help="With JPEGImages, Annotations and ImageSets.")],
    stills: Annotated[Path, typer.Argument(help="With JPEGImages and Annotations.")],
    output: Annotated[Path, typer.Option(help="Folder of the run: checkpoint.pt and clicks.safetensors.")],
    steps: Annotated[int, typer.Option(min=1, help="Of the whole run.")] = 3400,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
) -> None:
    """Trains on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network = ClickNetwork()
    try:
        load_trunk(network)
        train(network, davis, stills, output, steps, seed)
    except InputError as error:
        warn(str(error))
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
