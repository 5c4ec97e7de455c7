"""The one training loop: batch -> objective around the model -> loss -> step, through Accelerate.

The loop knows no tower, no loss, no objective and no loader by name. Whatever it draws at random is a function of
(seed, step, rank), and all other state is in the checkpoint, so a run that is killed and resumed ends where the
uninterrupted one does.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from timm.utils import ModelEmaV3

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import agree_on_step, all_reduce_max, broadcast_, with_averaged_gradients
from dualtower.errors import ConfigError, NonFiniteLoss, RowError
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Objective
from dualtower.sharding import sharded
from dualtower.training.allocator import keep_freed_memory
from dualtower.training.batches import augmented, image_size
from dualtower.training.batchnorm import synchronize_batchnorm
from dualtower.training.budget import Budget, Clock
from dualtower.training.checkpoint import Position, latest_checkpoint
from dualtower.training.compiling import compile_towers
from dualtower.training.config import RunConfig
from dualtower.training.gradients import (
    SMALLEST_LOSS_SCALE,
    clip_gradients,
    nan_unless_finite,
    non_finite_weights,
)
from dualtower.training.inputs import run_inputs, same_everywhere
from dualtower.training.loader import StatefulLoader
from dualtower.training.metric_logger import MetricLogger
from dualtower.training.optim import create_optimizer, freeze_locked, resting_parts, set_learning_rates, set_modes
from dualtower.training.prefetch import on_device
from dualtower.training.saving import TrainingState
from dualtower.training.signals import StopRequest
from dualtower.training.skipped_rows import SkippedRows
from dualtower.types import Batch

__all__ = ["Outcome", "Trainer"]

logger = logging.getLogger(__name__)

SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
Validate = Callable[[Objective], dict[str, float]]


@dataclass(frozen=True)
class _Group:
    """Batches of one optimizer step, and where the loader stood after the last of them."""

    batches: list[Batch]
    loader_state: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        position: Where it stands.
        ended: ``budget`` (used up), ``patience`` (no better validation) or ``stopped`` (a signal; resumable).
        model: The unwrapped model with the best validated weights (the last ones where nothing was validated).
        skipped_rows: Rows whose images broke on the way, in any process.
    """

    position: Position
    ended: str
    model: DualTower
    skipped_rows: list[RowError] = field(default_factory=list)


class Trainer:
    """Trains one objective on the batches of one loader.

    Args:
        config: The run.
        objective: Freshly built (the trainer loads a checkpoint into it when the config says resume).
        loader: This process's batches.
        accelerator: Device, precision and processes.
        validate: Measures an objective, in all processes at once (see `dualtower.sharding`). Of the key ``score`` more
            is better; without it no weights are better than the last ones. None never validates.
        splits: Name -> rows that the run is made from; a resumed run must find the same.

    Raises:
        ConfigError: The budget does not fit the loader, or the processes see different data.
        CheckpointError: There is a checkpoint to resume from, but it does not fit.
    """

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        loader: StatefulLoader,
        *,
        accelerator: Accelerator,
        validate: Validate | None = None,
        splits: Mapping[str, ItemDataset] | None = None,
    ) -> None:
        self.config, self.accelerator, self.validate = config, accelerator, validate
        self.objective, self.loader = objective, loader
        train, model = config.train, objective.model
        if accelerator.distributed_type in SHARDING:
            raise ConfigError(
                f"{accelerator.distributed_type.value} shards the weights, but here every process holds them all; "
                "choose plain multi-GPU training in `accelerate config`"
            )
        self.inputs = run_inputs(model.tokenizer, splits or {}, processes=accelerator.num_processes)
        same_everywhere(self.inputs)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self.steps_per_epoch = len(loader) // train.accumulate
        if not self.steps_per_epoch:
            raise ConfigError(f"an epoch has {len(loader)} batches, fewer than train.accumulate = {train.accumulate}")
        self.budget = Budget.of(train, self.steps_per_epoch)
        self.validation_steps = max(1, round(train.validate_every * self.steps_per_epoch))

        freeze_locked(objective, train)
        self.ema = ModelEmaV3(objective, decay=train.ema, use_warmup=True) if train.ema else None
        if train.sync_batchnorm and accelerator.num_processes > 1:
            synchronize_batchnorm(objective, accelerator.device)
        if train.compile:
            compile_towers(model)
        self.unwrapped = model
        accelerator.prepare_model(objective, evaluation_mode=True)  # device and autocast; ranks are joined below
        self.optimizer = accelerator.prepare_optimizer(create_optimizer(objective, train))
        if self.ema is not None:
            self.ema.to(accelerator.device)
        self.skipped_rows = SkippedRows(config.data.on_error)
        self.state = TrainingState(
            config,
            self.inputs,
            accelerator,
            objective,
            self.optimizer,
            ema=self.ema,
            loader=loader,
            skipped_rows=self.skipped_rows,
        )
        self.position = self.state.restore(self.budget)
        self.loader_state = loader.state_dict()
        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._let_rest(self._resting_parts(self.budget.progress(self.position.step, self.position.seconds)))
        self.metric_logger = MetricLogger(
            config, accelerator, self.position, budget=self.budget, steps_per_epoch=self.steps_per_epoch
        )

    def fit(self) -> Outcome:
        """Train until the budget is used up, patience runs out, or a signal asks to stop."""
        clock = Clock(self.position.seconds)
        saved_at, ended = self.position.seconds, "budget"  # all ranks must count from one moment
        if self._out_of_patience():  # as it was when the run ended that is resumed here
            return self._outcome("patience")
        with StopRequest() as stop, self.metric_logger:
            for group in self._groups():
                rows = [len(batch.ids) for batch in group.batches]
                stopping, seconds = agree_on_step(stop.requested, clock.seconds(), rows, self.accelerator.device)
                self.position = replace(self.position, seconds=seconds)
                progress = self.budget.progress(self.position.step, seconds)
                if progress >= 1:
                    break
                if stopping:
                    ended = "stopped"
                    break
                self._step(group, progress)
                if self.position.step % self.validation_steps == 0 and self._validated_enough():
                    ended = "patience"
                    break
                if self._checkpoint_due(seconds - saved_at):
                    self._save()
                    saved_at = seconds
            if ended == "budget" and self.position.validated < self.position.step:
                self._validated_enough()
            self._save()
        return self._outcome(ended)

    def _outcome(self, ended: str) -> Outcome:
        best = self.state.best(validated=self.position.best is not None)
        return Outcome(self.position, ended, best, self.skipped_rows.errors())

    def _groups(self) -> Iterator[_Group]:
        """Endless groups of `accumulate` batches, starting behind the last step."""
        self.loader.load_state_dict(self.loader_state)
        epochs_without = 0
        while epochs_without < 2:  # what is left of the first epoch may be too short
            epochs_without += 1
            batches: list[Batch] = []
            states: deque[Mapping[str, Any]] = deque()  # the batches are on the device one ahead of their steps
            for batch in on_device(self._batches(states), self.accelerator.device):
                state = states.popleft()
                self.skipped_rows.note(batch.broken)
                batches.append(batch)
                if len(batches) == self.config.train.accumulate:
                    yield _Group(batches, state)
                    batches, epochs_without = [], 0
        wanted = self.config.train.accumulate
        raise ConfigError(f"a whole epoch of the loader has fewer batches than train.accumulate = {wanted}")

    def _batches(self, states: deque[Mapping[str, Any]]) -> Iterator[Batch]:
        """The rest of the loader's epoch; notes where it stands after each batch."""
        for batch in self.loader:
            states.append(self.loader.state_dict())
            yield batch

    def _step(self, group: _Group, progress: float) -> None:
        train = self.config.train
        lr = set_learning_rates(self.optimizer, train, progress)
        if (resting := self._resting_parts(progress)) != self.resting:
            self._let_rest(resting)
        set_modes(self.objective, self.resting)
        losses, remembered = [], []
        for number, batch in enumerate(group.batches):
            last = number == len(group.batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, kept = self._forward(batch, number, progress)
                losses.append(loss.detach())
                remembered.append(kept)
                self.accelerator.backward(nan_unless_finite(loss) / len(group.batches))
        mean = torch.stack(losses).mean()
        skipped = not self._move(mean)
        if not skipped:
            with torch.no_grad():
                self.objective.after_step(remembered, progress)
        self.position = replace(
            self.position,
            step=self.position.step + 1,
            skipped=self.position.skipped + skipped,
        )
        self.loader_state = group.loader_state
        if self.ema is not None and not skipped:
            self.ema.update(self.objective, step=self.position.step - self.position.skipped)
        samples = sum(len(batch.ids) for batch in group.batches) * self.accelerator.num_processes
        scale = self.unwrapped.logit_scale
        self.metric_logger.step(
            self.position,
            loss=mean,
            lr=lr,
            logit_scale=scale if scale.requires_grad else None,
            samples=samples,
        )

    def _resting_parts(self, progress: float) -> frozenset[str]:
        return resting_parts(self.config.train, progress, self.objective.idle)

    def _let_rest(self, resting: frozenset[str]) -> None:
        """Take these parts of the model out of the graph, and the others into it.

        What takes no part has no backward pass and no gradient. The wrapper that averages gradients over the ranks
        waits for every parameter that could learn when it was made, so it is made anew where a lock ends.
        """
        self.resting = resting
        parameters = dict(self.unwrapped.named_parameters())
        for name in self.trainable:
            parameters[name].requires_grad_(name.split(".")[0] not in resting)
        self.model: torch.nn.Module = self.objective  # the hooks of an old wrapper go with it
        self.model = with_averaged_gradients(self.objective, self.accelerator.device)

    def _move(self, loss: torch.Tensor) -> bool:
        """Move the weights along their gradients; False where fp16 overflowed and the gradient scaler skipped the step.

        The averaged gradients are the same on all ranks, so all of them decide alike, at the price of one number that
        is read from the device.

        Raises:
            NonFiniteLoss: Loss or gradients are not finite. The weights stay what they were.
        """
        if self.accelerator.scaler is None:
            norm = clip_gradients(self.accelerator, self.objective, self.config.train.clip_norm).item()
            if not math.isfinite(norm):
                raise self._ruined(f"the gradient norm became {norm}", loss)
        elif self.config.train.clip_norm is not None:
            clip_gradients(self.accelerator, self.objective, self.config.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.optimizer.step_was_skipped:
            self._check_skip(loss)
            return False
        self.unwrapped.clamp_()
        return True

    def _check_skip(self, loss: torch.Tensor) -> None:
        """Tell a gradient that overflowed under too large a loss scale, which is ordinary, from a training in ruins."""
        assert self.accelerator.scaler is not None
        scale = self.accelerator.scaler.get_scale()
        broken, _ = all_reduce_max(float(not loss.isfinite()), 0.0, self.accelerator.device)
        if broken:
            raise self._ruined("the gradients became nan", loss)
        if scale < SMALLEST_LOSS_SCALE:
            raise self._ruined(f"fp16 overflowed in many steps in a row, all of them skipped (scale {scale:g}),", loss)
        if self.accelerator.is_main_process:
            logger.warning("step %d overflowed in fp16 and was skipped; loss scale now %g", self.position.step, scale)

    def _forward(self, batch: Batch, number: int, progress: float) -> tuple[torch.Tensor, Any]:
        """The loss of one batch, and what the objective remembers of it."""
        train = self.config.train
        size = image_size(self.config.model.image_settings, train.image_size_schedule, progress)
        rows, ranks, device = len(batch.ids), self.accelerator.num_processes, batch.product_codes.device
        seeds = (train.seed, self.position.step, number)
        rng = BatchRNG(*seeds, self.accelerator.process_index, size=rows, device=device)
        views = self.objective.views
        batch = augmented(batch, train, self.unwrapped.tokenizer, rng, size=size, views=views, progress=progress)
        joint_draw = BatchRNG(*seeds, ranks, size=rows * ranks, device=device)  # no rank has this number
        outputs = self.model(batch, joint_draw)
        return self.objective.loss(outputs, batch), self.objective.remember(outputs)

    def _ruined(self, what: str, loss: torch.Tensor | None = None) -> NonFiniteLoss:
        """The error of a training that cannot go on; names the state to go back to."""
        if loss is not None and not loss.isfinite():
            what = f"the loss became {loss.item()}"
        last = latest_checkpoint(self.state.folder)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
        return NonFiniteLoss(
            f"{what} at step {self.position.step}; {kept}. "
            "Lower --train.lr, set --train.clip-norm, or train in --train.precision fp32"
        )

    def _refuse_ruined_weights(self) -> None:
        """Raise, on all ranks alike, where a step of finite gradients was itself too large: nobody wants that saved."""
        model, own = self.unwrapped.state_dict(), self.objective.own_state()
        ruined = non_finite_weights(model) + non_finite_weights(own)
        anywhere, _ = all_reduce_max(float(bool(ruined)), 0.0, self.accelerator.device)
        if anywhere:
            raise self._ruined(f"weights became infinite or NaN ({', '.join(ruined[:3]) or 'in another process'})")

    def _checkpoint_due(self, seconds_since: float) -> bool:
        train = self.config.train
        by_steps = train.checkpoint_steps and self.position.step % train.checkpoint_steps == 0
        return bool(by_steps or (train.checkpoint_minutes and seconds_since >= train.checkpoint_minutes * 60))

    def _validated_enough(self) -> bool:
        """Validate, keep the weights when they are the best so far, and say whether patience has run out."""
        if self.validate is None:
            return False
        self._refuse_ruined_weights()
        averaged = self.state.averaged
        broadcast_(averaged.state_dict().values())  # batch statistics differ between the processes
        with sharded():
            figures = self.validate(averaged)
        self.metric_logger.validation(self.position, figures)
        if "score" not in figures:
            self.position = replace(self.position, validated=self.position.step)
            return False
        score, _ = all_reduce_max(figures["score"], 0.0, self.accelerator.device)
        better = self.position.best is None or score > self.position.best
        self.position = replace(
            self.position,
            best=score if better else self.position.best,
            stale=0 if better else self.position.stale + 1,
            validated=self.position.step,
        )
        if better:
            self.state.save_best(score, self.position.step)
        return self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.position.stale >= patience

    def _save(self) -> None:
        self._refuse_ruined_weights()
        self.state.save(self.position, self.loader_state)
