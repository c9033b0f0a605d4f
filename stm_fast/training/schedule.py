"""What changes during a run, as functions of the step or epoch: there is no state to save."""

import math

from stm_fast.training.config import Schedule, Skip


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The factor on the learning rate at a step, counted from 0, of a run of `steps`.

    The paper's rate is constant, though its author reduces it; re-implementations use the polynomial of DeepLab,
    ``(1 - step / steps) ** power``. During the first `warmup` steps the factor also rises linearly.
    """
    done = min(step / steps, 1.0)
    factor = 1.0
    if schedule.name == "poly":
        factor = (1 - done) ** schedule.power
    elif schedule.name == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    return factor * min((step + 1) / (schedule.warmup + 1), 1.0)


def max_skip(skip: Skip, epoch: int) -> int:
    """The most frames skipped between two frames of a clip in an epoch, counted from 0 (STM, "Main training")."""
    return min(skip.first + skip.step * (epoch // skip.every), skip.most)
