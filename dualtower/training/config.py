"""Everything that a run can be told, as frozen dataclasses: the same ones for recipes, command line and saved runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from dualtower.config import OMIT_DEFAULT
from dualtower.data.sampling import Sampling
from dualtower.data.transforms.augmentation import Augmentation
from dualtower.errors import ConfigError
from dualtower.evaluation.config import EvaluationConfig
from dualtower.losses import LossConfig
from dualtower.models.config import ModelConfig
from dualtower.models.precision import TowerPrecision
from dualtower.objectives.config import MatchingConfig, ReconstructionConfig, SelfSupervisedConfig, TaskConfig

__all__ = ["DataConfig", "RunConfig", "TrainConfig"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
SelfSupervisedName = Literal["simclr", "moco", "moco_v3", "byol", "autoencoder", "masked"]
ObjectiveName = Literal["contrastive", "matching", "product", "attributes"] | SelfSupervisedName
SMOKE_ROWS = 256
"""What ``--smoke`` takes of each split, so that it takes seconds on any catalog."""


@dataclass(frozen=True)
class DataConfig:
    """Which products, and how they are read."""

    card: Path = Path("data_cards/synthetic.md")
    """Data card (Markdown with YAML front matter) of the catalog."""
    source: str | None = None
    """Folder or Hub dataset to read instead of the card's own source."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop at the first bad row, or leave bad rows out and list them in the report. That includes an image that breaks
    while training goes on: another row of its batch stands in for it."""
    check_images: Literal["once", "always", "never"] = "once"
    """Decode every image before training: `once`, until an image changes; at `always` every start; or `never`."""
    train_split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split that chooses the best checkpoint and stops early."""
    max_rows: int | None = None
    """Only so many rows of each split, for a quick look: whole products, drawn at random and always the same. Where the
    queries come from `evaluation.qrels`, all rows are searched."""
    workers: int = 1
    """Loader processes per rank; 0 reads in the training process."""
    cache_mb: float = 2000
    """Keep decoded images in shared memory when they fit into this many MB; 0 never does."""

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"data.max_rows is {self.max_rows}; it must be at least 1, or None for all rows")


@dataclass(frozen=True)
class TrainConfig:
    """The budget, the optimizer, and what to save."""

    epochs: float | None = None
    """Budget in passes over the training split. Give exactly one of epochs, steps and minutes."""
    steps: int | None = None
    """Budget in optimizer steps."""
    minutes: float | None = None
    """Budget in minutes of wall clock, validation included; the schedule follows the clock."""

    batch_size: int = 256
    """Rows per process and forward pass; the loss sees the joined batch of all processes."""
    accumulate: int = 1
    """Forward passes per optimizer step. Each has its own negatives."""
    sampling: Sampling = "rows"
    """How rows become batches. `rows`: each once per epoch; `no_duplicate_products`: and no product twice in one
    batch."""
    class_balanced_by: str | None = None
    """Attribute whose classes are drawn equally often, for long tails; rows then repeat within an epoch."""
    augmentation: Augmentation | Literal["card"] = "product"
    """Image augmentation preset; `card` takes each row's from the data card's `augmentation`."""
    augmentation_rule: Mapping[str, str] = field(default_factory=dict, metadata=OMIT_DEFAULT)
    """What the data card says of it; filled in when the run begins."""
    augmentation_strength: float = 1.0
    """How far zoom, shift and colors may go, as a share of the preset's own reach; flips stay."""
    final_augmentation_strength: float | None = None
    """The same at the end of the budget, to which it goes in a straight line; default `augmentation_strength`."""
    random_erasing_prob: float = 0.0
    """Share of the images of which a rectangle is hidden."""
    token_dropout: float = 0.0
    """Share of a title's tokens that are hidden, anew in every batch."""
    image_size_schedule: tuple[float, ...] = ()
    """Image scales of equal shares of the budget, such as 0.6 0.8 1.0: small images first, full size last."""

    optimizer: str = "adamw"
    """Any optimizer of timm: adamw, nmuon (Muon with Nesterov momentum), sgd, lamb, lion, ..."""
    lr: float = 1e-3
    """Peak learning rate."""
    text_lr: float | None = None
    """Peak learning rate of the text tower; default `lr`."""
    image_lr: float | None = None
    """Peak learning rate of the image tower; default `lr`."""
    adamw_lr: float | None = None
    """Peak learning rate of what a Muon optimizer leaves to AdamW (embeddings, norms, biases, scale); default `lr`."""
    layer_decay: float = 1.0
    """Each layer further from the head learns slower by this factor; 1 is off."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices and kernels (never of norms, biases, scale)."""
    beta2: float = 0.98
    """Second-moment decay of Adam-like optimizers."""
    warmup: float = 0.05
    """Share of the budget with linear warm-up; cosine decay follows."""
    final_lr: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    clip_norm: float | None = 1.0
    """Clip the joint gradient norm of all parameters to this."""
    lock_text: float = 0.0
    """Share of the budget in which the text tower keeps its weights; 1 freezes it for good."""
    lock_image: float = 0.0
    """Share of the budget in which the image tower keeps its weights; 1 freezes it for good."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is validated and saved."""
    precision: Precision = "auto"
    """`fp32`, `bf16` or (on GPUs) `fp16` for all of the model; `auto` is bf16 on GPUs that have it, else fp16, and on
    CPUs what is measured to be the fastest for each tower when the run begins."""
    tower_precision: TowerPrecision | None = None
    """What `auto` has measured; a resumed run keeps it."""
    sync_batchnorm: bool = False
    """Take batch statistics over the rows of all processes instead of each one's own."""
    cpu_threads: int | None = None
    """CPU threads per process; default all cores, shared out among the processes of this machine."""
    compile: bool = False
    """Compile the towers with torch.compile."""
    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""

    validate_every: float = 1.0
    """Epochs between validations."""
    patience: int | None = None
    """Validations without a better recall after which training stops."""
    checkpoint_steps: int | None = None
    """Save a checkpoint every so many steps."""
    checkpoint_minutes: float | None = 5.0
    """Save a checkpoint every so many minutes."""
    max_checkpoints: int = 2
    """Step checkpoints to keep; `best` is kept besides."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Experiment trackers of Accelerate: tensorboard, wandb, ..."""

    def __post_init__(self) -> None:
        given = [n for n in ("epochs", "steps", "minutes") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"the budget is given {len(given)} times ({', '.join(f'--train.{n}' for n in given)}); "
                "give one, and set the recipe's own to None, e.g. --train.epochs None --train.minutes 10"
            )
        for name in ("batch_size", "accumulate", "max_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("augmentation_strength", "final_augmentation_strength"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must not be negative")
        if self.tower_precision is not None and self.precision != "auto":
            raise ConfigError(
                f"train.tower_precision is what train.precision auto chose, and train.precision is {self.precision}; "
                "leave one of them out"
            )
        if not 0 <= self.augmentation_strength <= 2:
            raise ConfigError(f"train.augmentation_strength is {self.augmentation_strength}; it must be from 0 to 2")
        for name in ("warmup", "lock_text", "lock_image", "random_erasing_prob", "token_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it is a share between 0 and 1")
        for name in ("epochs", "steps", "minutes", "lr", "adamw_lr", "validate_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"train.{name} is {value}; it must be above 0")
        if self.adamw_lr is not None and "muon" not in self.optimizer:
            raise ConfigError(
                f"train.adamw_lr is for a Muon optimizer, and train.optimizer is {self.optimizer}; "
                "leave it out, or set --train.optimizer nmuon"
            )


@dataclass(frozen=True)
class RunConfig:
    """One complete run. A recipe returns one of these; the command line overrides its leaves."""

    base: str | None = None
    """Model folder, or user/name on the Hub, to start from; its towers replace those of `model`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveName = "contrastive"
    """`contrastive` trains the towers: texts against images, or, where the model has one tower, two views of a row
    against each other. `matching` trains the `model.reranker` on them, `product` the `model.fusion`. `simclr`, `moco`,
    `moco_v3`, `byol`, `autoencoder` and `masked` train the image tower from images alone, `attributes` trains a
    `model.attribute_encoder` on attributes alone."""
    loss: LossConfig = field(default_factory=LossConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    ssl: SelfSupervisedConfig = field(default_factory=SelfSupervisedConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    out: Path = Path("runs/latest")
    """Folder of the run: model/, checkpoints/, config.json, metrics.json, report.md."""
    resume: bool = False
    """Go on from the last checkpoint in the run's folder."""
    overwrite: bool = False
    """Replace the run that is already in the folder."""

    def __post_init__(self) -> None:
        if self.objective == "attributes" and self.base is not None:
            raise ConfigError(
                f"base = {self.base!r}, but an attribute encoder stands on no towers; leave out --base, or start from "
                "another encoder with --model.attribute-encoder.attributes.pretrained FOLDER"
            )
        for objective, head in (
            ("matching", "reranker"),
            ("product", "fusion"),
            ("attributes", "attribute_encoder"),
        ):
            if (self.objective == objective) != (getattr(self.model, head) is not None):
                raise ConfigError(
                    f"objective {self.objective!r} with model.{head} = {getattr(self.model, head)}; "
                    f"objective {objective!r} trains a model.{head}, and nothing else does"
                )

    @property
    def is_self_supervised(self) -> bool:
        """Whether images alone are trained on."""
        return self.objective in get_args(SelfSupervisedName)

    def smoke(self) -> RunConfig:
        """The same way in seconds: four small steps on some products, in a folder that the next smoke replaces."""
        data = replace(self.data, max_rows=self.data.max_rows or SMOKE_ROWS)
        train = replace(self.train, epochs=None, minutes=None, steps=4, batch_size=32, checkpoint_steps=2)
        evaluation = replace(self.evaluation, bootstrap=100)
        ssl = replace(self.ssl, queue=256)
        out = Path("runs/smoke") / self.out.name
        return replace(self, data=data, train=train, evaluation=evaluation, ssl=ssl, out=out, overwrite=True)
