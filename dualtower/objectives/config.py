"""What the objectives can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dualtower.errors import ConfigError

__all__ = ["MatchingConfig", "ReconstructionConfig", "SelfSupervisedConfig", "TaskConfig"]


@dataclass(frozen=True)
class MatchingConfig:
    """Which wrong partners a re-ranker learns to tell from the right one."""

    negatives: int = 4
    """Hard negatives of every text and of every image, out of the joined batch."""
    temperature: float = 1.0
    """Negatives are drawn like the softmax of the towers' logits divided by this; 0 takes the hardest."""

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ConfigError(f"matching.negatives is {self.negatives}; it must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"matching.temperature is {self.temperature}; it must not be negative")


@dataclass(frozen=True)
class TaskConfig:
    """What the vector of a whole product is trained for."""

    labels: tuple[str, ...] = ()
    """Attributes; products that share the values of all of them attract each other. None: rows of one product do."""
    supervised: float = 1.0
    """Weight of the supervised contrastive loss over `labels`."""
    identity: float = 1.0
    """Weight of `loss` (InfoNCE, hinge ...) between two views of a product, each with other inputs hidden."""
    temperature: float = 0.1
    """Temperature of the contrastive losses."""
    heads: tuple[str, ...] = ()
    """Attributes to predict from the vector."""
    weights: tuple[float, ...] = ()
    """Weight of each head's loss; default 1 each."""
    logit_adjustment: float = 0.0
    """Factor of the log of a class's share that is added to its logit while training, for long tails; 1 is balanced."""

    def __post_init__(self) -> None:
        for name in ("labels", "heads"):  # both `a b` and `a,b` on the command line
            parts = tuple(part for given in getattr(self, name) for part in given.split(",") if part)
            object.__setattr__(self, name, parts)
        if self.weights and len(self.weights) != len(self.heads):
            raise ConfigError(f"task.weights has {len(self.weights)} numbers for {len(self.heads)} task.heads")
        if min(self.supervised, self.identity, *self.weights, 0.0) < 0 or not self.temperature > 0:
            raise ConfigError("task: weights must not be negative, and the temperature must be above 0")

    @property
    def head_weights(self) -> dict[str, float]:
        """Weight of each head."""
        return dict(zip(self.heads, self.weights or [1.0] * len(self.heads), strict=True))


@dataclass(frozen=True)
class SelfSupervisedConfig:
    """How an image tower learns from images alone."""

    positives: Literal["view", "product", "label"] = "view"
    """What attracts each other: two views of one `view`ed image, views of any two images of one `product`, or of any
    two rows with the same `label`. Rows of one product are never negatives of each other."""
    label: str | None = None
    """Attribute whose equal values attract each other, for `positives label`."""
    temperature: float = 0.2
    """Temperature of the contrast of SimCLR and MoCo."""
    projection: int = 128
    """Width of what the projector puts out, in which views are compared."""
    hidden: int | None = None
    """Width of the hidden layers of projector and predictor; default that of the features, and twice that with a
    predictor."""
    tile: int | None = None
    """Side of the tiles of logits of SimCLR; 0 holds all 2N x 2N at once; None chooses by the batch."""
    momentum: float = 0.99
    """How much of itself the slow copy of MoCo and BYOL keeps in every step, at the start."""
    final_momentum: float = 0.99
    """The same at the end; a cosine leads there. BYOL's is 1."""
    queue: int = 4096
    """Keys in the queue of MoCo v2: a multiple of the rows of a step."""
    structure: float = 0.2
    """Weight of the structural similarity beside the squared error of an autoencoder."""
    masked: float = 0.75
    """Share of the patches that a masked autoencoder's encoder does not see."""
    decoder_width: int = 128
    """Width of a masked autoencoder's decoder."""
    decoder_layers: int = 2
    """Layers of a masked autoencoder's decoder."""
    whiten: bool = True
    """Put a head on the finished tower that whitens its features by the training images: no training, and on product
    photos a good deal of recall and accuracy. Without it the embeddings are the bare features."""
    adversary: float = 0.0
    """How far the values of the first view's pixels, 0 to 255, may each be moved to where SimCLR finds the second view
    the least: 8 makes features that bear attacks (`dualtower robustness`), at the cost of `adversary_steps` + 1 more
    passes in both directions. 0 is off."""
    adversary_steps: int = 5
    """Steps of each attack."""
    stage: int = -2
    """Stage of the tower whose features are whitened: -1 is the last, which knows best what it was trained for; the one
    before finds more labels and products."""
    grid: int | None = None
    """By how many cells per side they are pooled; default 2, or 1 where that made more than 1,024 numbers."""
    probe: tuple[str, ...] | None = None
    """Attributes that the result is measured by; default all categories of the data card. They train nothing."""
    transductive: bool = False
    """Also train on the images of the validation and the test split, which the report then says."""

    def __post_init__(self) -> None:
        if (self.positives == "label") != (self.label is not None):
            raise ConfigError(
                f"ssl.positives is {self.positives} and ssl.label {self.label!r}; "
                "with `--ssl.positives label` name an attribute, such as --ssl.label articleType, else none"
            )
        if not 0 < self.masked < 1:
            raise ConfigError(f"ssl.masked is {self.masked}; it is a share above 0 and below 1")
        if self.structure < 0:
            raise ConfigError(f"ssl.structure is {self.structure}; it must not be negative")
        for name in ("temperature", "projection", "queue", "decoder_width", "decoder_layers"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"ssl.{name} is {getattr(self, name)}; it must be above 0")
        if self.adversary < 0 or self.adversary_steps < 1:
            raise ConfigError(
                f"ssl.adversary is {self.adversary} and ssl.adversary_steps {self.adversary_steps}; give a bound from "
                "0, which is off, and at least one step"
            )
        if self.stage >= 0 or (self.grid is not None and self.grid < 1):
            raise ConfigError(
                f"ssl.stage is {self.stage} and ssl.grid {self.grid}; a stage counts from the end, from -1, and there "
                "is at least one cell"
            )
        for name in ("momentum", "final_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"ssl.{name} is {getattr(self, name)}; it must be from 0 to 1")

    @property
    def second_image(self) -> str | None:
        """What the second view of a row shows, see `Views`."""
        return {"view": None, "product": "product", "label": self.label}[self.positives]


@dataclass(frozen=True)
class ReconstructionConfig:
    """By what an attribute encoder is measured; nothing of it changes what is trained."""

    relevance: tuple[str, ...] = ()
    """Attributes; products that share the values of all of them are to be found, by queries in which these are hidden.
    Default the first category that the encoder reads."""
    missing: tuple[float, ...] = (0.0, 0.2, 0.5)
    """Shares of all values that are hidden, in queries and in the products that they search."""

    def __post_init__(self) -> None:
        if not self.missing or not all(0 <= share < 1 for share in self.missing):
            raise ConfigError(
                f"reconstruction.missing is {self.missing}; give one or more shares of at least 0 and below 1"
            )
