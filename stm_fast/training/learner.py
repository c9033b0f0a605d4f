"""The optimizer step, and all state that it changes."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from stm_fast.data.clips import ClipBatch
from stm_fast.errors import InputError
from stm_fast.network import STM
from stm_fast.training.averaging import weight_average
from stm_fast.training.compact import State
from stm_fast.training.config import Optimizer, TrainingConfig
from stm_fast.training.schedule import rate_factor
from stm_fast.training.step import ClipLoss

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of both optimizers
_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class StepResult(NamedTuple):
    """The result of a step."""

    loss: Tensor  # mean over this process's clips, a scalar
    gradient_norm: Tensor  # before it is clipped, a scalar
    learning_rate: float


class Learner:
    """The network, its optimizer and the moving average of its weights.

    Args:
        config: of the run.
        clip_loss: the network inside its loss, on the CPU; it is moved to the accelerator's device.
        accelerator: of the other processes, the device and the precision.

    Raises:
        InputError: a batch that cannot be divided among the processes.
    """

    def __init__(self, config: TrainingConfig, clip_loss: ClipLoss, accelerator: Accelerator) -> None:
        _check_batch(config, accelerator.num_processes)
        self._config, self._accelerator = config, accelerator
        # channels last, for faster convolutions
        self.clip_loss = clip_loss.to(accelerator.device).to(memory_format=torch.channels_last).train()
        self._average = None if config.ema is None else weight_average(clip_loss.model, config.ema)
        groups, self._rates = _groups(clip_loss.model, config.optimizer)
        optimizer = _OPTIMIZERS[config.optimizer.name](
            groups, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay
        )
        self._parallel, self._optimizer = accelerator.prepare(clip_loss, optimizer)

    @property
    def model(self) -> STM:
        """The result of the run: the network, with the moving average of its weights if there is one."""
        if self._average is None:
            return self.clip_loss.model
        return cast(STM, self._average.module)

    def step(self, batches: Sequence[ClipBatch], number: int, steps: int) -> StepResult:
        """Takes one optimizer step.

        Args:
            batches: this process's clips; gradients are accumulated over the batches.
            number: of the step, from 0.
            steps: total number of steps.
        """
        # random numbers of a step depend on its number alone, so that a run can resume anywhere
        torch.manual_seed(hash((self._config.seed, number, self._accelerator.process_index)))
        factor = rate_factor(self._config.schedule, number, steps)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        losses = [self._backward(batch, last=batch is batches[-1]) / len(batches) for batch in batches]
        norm = self._accelerator.clip_grad_norm_(
            self.clip_loss.parameters(), self._config.optimizer.clip_norm or torch.inf
        )
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            self._average.update_parameters(self.clip_loss.model)
        return StepResult(torch.stack(losses).sum(), norm, self._config.optimizer.lr * factor)

    def on_device(self, batch: ClipBatch) -> tuple[Tensor, Tensor, list[int]]:
        """The arguments of `ClipLoss`: frames ``[B, T, 3, H, W]`` in [0, 1], ids ``[B, T, H, W]`` int64, objects."""
        device = self._accelerator.device
        frames = batch.frames.to(device, non_blocking=True).float() / 255
        return frames, batch.ids.to(device, non_blocking=True).long(), batch.objects

    def state(self) -> State:
        """All state that a step changes, as nested dictionaries of tensors and numbers."""
        scaler, average = self._accelerator.scaler, self._average
        return {
            "model": self.clip_loss.model.state_dict(),
            "average": None if average is None else average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Loads a `state`.

        Raises:
            RuntimeError, ValueError, LookupError: it does not match the network or the optimizer.
        """
        own = self.state()
        for name in ("model", "average"):
            _check_alike(state[name], own[name], name)
        self.clip_loss.model.load_state_dict(state["model"])
        # learning rates are set in each step, and other settings come from the configuration
        groups = own["optimizer"]["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        for weight, moments in self._optimizer.state.items():
            if any(moments[name].shape != weight.shape for name in _MOMENTS) or moments["step"].numel() != 1:
                raise ValueError(f"optimizer: moments whose shape is not {list(weight.shape)}")
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def _backward(self, batch: ClipBatch, last: bool) -> Tensor:
        """Accumulates the gradient of a batch; after the last one, gradients are summed over the processes."""
        with nullcontext() if last else self._accelerator.no_sync(self._parallel):
            loss: Tensor = self._parallel(*self.on_device(batch))
            self._accelerator.backward(loss / self._config.optimizer.accumulate)
        return loss.detach()


def _check_alike(found: State | None, own: State | None, name: str) -> None:
    """Raises ValueError if names, shapes or dtypes differ."""
    kinds = [state and {key: (tensor.shape, tensor.dtype) for key, tensor in state.items()} for state in (found, own)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{name}: other names, shapes or dtypes")


def _groups(model: STM, optimizer: Optimizer) -> tuple[list[dict[str, Any]], list[float]]:
    """Groups of trainable parameters and their learning rates: one group, or one for heads and one for trunks."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if optimizer.trunk_lr is None:
        return [{"params": trained}], [optimizer.lr]
    trunk = {weight for encoder in model.encoders() for weight in encoder.parameters()}
    heads, trunks = [w for w in trained if w not in trunk], [w for w in trained if w in trunk]
    return [{"params": heads}, {"params": trunks}], [optimizer.lr, optimizer.trunk_lr]


def _check_batch(config: TrainingConfig, processes: int) -> None:
    batch, parts = config.optimizer.batch, config.optimizer.accumulate
    if batch % (parts * processes):
        raise InputError(
            f"optimizer.batch: found {batch} clips per step, expected a multiple of {parts * processes}: "
            f"optimizer.accumulate {parts} x {processes} processes"
        )
