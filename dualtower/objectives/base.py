"""What every objective is: a module around the model that owns all that it trains, and what the loop asks of it.

The loop never asks which objective it has. It hands over batches with the views that the objective wants, steps the
parameters, lets the objective change its state once they have moved, asks it for the validation score, and saves its
state beside the model's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.errors import CheckpointError, ConfigError
from dualtower.evaluation import Evaluation, Section
from dualtower.evaluation.config import EvaluationConfig
from dualtower.models.dual_tower import DualTower
from dualtower.types import Batch

__all__ = ["Objective", "Views"]

_MODEL = "model."


@dataclass(frozen=True)
class Views:
    """What an objective wants of every row.

    Attributes:
        images: Augmented views of the row's image: the first in `Batch.pixels`, the others in `Batch.more_views`. With
            0 of them no image is read.
        texts: Views of the row's text: the first in `Batch.tokens`, the others in `Batch.more_tokens`. They are of
            different captions where the row has several, and of each of them other tokens are dropped where the run
            drops any. With 0 of them no text is read.
        attributes: Whether the attributes of a row are enough, so that it needs neither image nor text.
        second_image: What the second view shows: None is the same image; ``product`` another image of the product; the
            name of an attribute, an image of another row that has the same value.
    """

    images: int = 1
    texts: int = 1
    attributes: bool = False
    second_image: str | None = None

    def __post_init__(self) -> None:
        if min(self.images, self.texts) < 0 or not (self.images or self.texts or self.attributes):
            raise ConfigError(f"an objective wants at least one view of the image or of the text of a row, not {self}")


class Objective(nn.Module, ABC):
    """Base of all objectives.

    Beside the model, an objective may have parts of its own, as submodules, parameters and buffers. Parameters that
    require a gradient are trained with the model's, in optimizer groups named after the part. Buffers, and parameters
    that require none (a momentum copy of a tower), are state, which `after_step` changes. All of it is moved to the
    device, averaged where the run averages weights, and saved in checkpoints bit for bit; a model folder holds the
    model alone. The state must be the same on all ranks, but for the statistics of batch normalization: a checkpoint
    holds the main process's.

    Attributes:
        views: What it wants of every row.
        lr_factors: Own part -> factor on the learning rate of `TrainConfig.lr`; parts that are not named have 1.
        measured_by_retrieval: Whether the model is for retrieval among products, so that rows on which that cannot be
            measured are refused before the training; if not, they are measured by `sections` alone.

    Args:
        model: What is trained, and saved in the end. No other part may hold it or a part of it.
        idle: Parts of the model that this objective gives no gradient; they rest as if they were locked.
    """

    views: Views = Views()
    lr_factors: ClassVar[Mapping[str, float]] = {}
    measured_by_retrieval: ClassVar[bool] = True

    def __init__(self, model: DualTower, *, idle: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model, self.idle = model, idle

    @abstractmethod
    def forward(self, batch: Batch, rng: BatchRNG) -> Any:
        """Compute what `loss` needs; called inside DistributedDataParallel and autocast.

        Args:
            batch: Rows of this rank.
            rng: Random numbers that are the same on all ranks.
        """

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of the joined batch, a scalar."""

    def remember(self, outputs: Any) -> Any:
        """What `after_step` needs of the outputs of one batch; by default nothing, so that they can be freed."""
        return None

    def after_step(self, remembered: Sequence[Any], progress: float) -> None:
        """Change state without gradient once the weights have moved, such as a momentum copy or a queue.

        It is called on all ranks, and not after a step that an overflow in fp16 left out.

        Args:
            remembered: What `remember` kept of each batch of the step.
            progress: Share of the budget that was used up before the step, 0 to 1.
        """

    @abstractmethod
    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """Measure `self.model`; called on the averaged objective where the run averages weights.

        Args:
            items: Validation split.
            batch_size: Rows embedded at a time.

        Returns:
            Metrics by name. The key ``score``, of which more is better, picks the best checkpoint; without it, the last
            weights are the best.
        """

    def finished(self, model: DualTower, train: ItemDataset, settings: EvaluationConfig) -> DualTower:
        """The model that is saved and measured in the end, made of the trained one; by default that itself.

        Args:
            model: With the best validated weights.
            train: Training split.
            settings: Batch size.
        """
        return model

    def sections(
        self,
        model: DualTower,
        items: ItemDataset,
        train: ItemDataset,
        settings: EvaluationConfig,
        *,
        result: Evaluation | None,
        progress: bool,
    ) -> list[Section]:
        """Report what the finished model achieves beside retrieval; own parts are not those of the training.

        `self.model` may be another one.

        Args:
            model: The finished one.
            items: The measured split.
            train: Training split.
            settings: How the run measures.
            result: Retrieval among `items`; None only where the objective is not measured by it.
            progress: Whether to show a progress bar.
        """
        return []

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the objective's own parts, without the model's."""
        return [(name, parameter) for name, parameter in self.named_parameters() if not name.startswith(_MODEL)]

    def own_state(self) -> dict[str, Tensor]:
        """State of the objective's own parts, without the model's: the tensors themselves, not copies.

        Raises:
            ConfigError: A part holds a tensor of the model, which would be averaged and saved twice.
        """
        own = {n: t.data for n, t in self.state_dict(keep_vars=True).items() if not n.startswith(_MODEL)}
        of_model = {t.data_ptr() for t in self.model.state_dict().values() if t.numel()}
        twice = [name for name, tensor in own.items() if tensor.numel() and tensor.data_ptr() in of_model]
        if twice:
            raise ConfigError(
                f"{type(self).__name__} holds a tensor of its model again as {twice[0]}; refer to self.model instead, "
                "or deep-copy the part"
            )
        return own

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `own_state` gave.

        Raises:
            CheckpointError: It is the state of an objective with other parts.
        """
        own = self.own_state()
        shapes, wanted = ({name: tuple(t.shape) for name, t in given.items()} for given in (state, own))
        unfit = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        if unfit:
            name = unfit[0]
            raise CheckpointError(
                f"the checkpoint's objective has other parts than {type(self).__name__} ({name}: shape "
                f"{shapes.get(name, 'absent')} there, {wanted.get(name, 'absent')} here); "
                "resume with the version that wrote it, or begin anew with --overwrite"
            )
        self.load_state_dict(dict(state), strict=False)
