"""What a training minimises: a module around the model, whose parts outside of it are pure functions.

`forward` runs inside DistributedDataParallel and autocast, on the rows of one rank; `loss` runs outside of both, in
float32, and joins the ranks. On any number of ranks the gradients are those of one process on the joined batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.data.attributes import class_labels, fit_classes
from dualtower.data.augment import Draw
from dualtower.data.products import Products
from dualtower.errors import ConfigError
from dualtower.fusion.reranker import TokenStates
from dualtower.losses import Loss, build_loss
from dualtower.losses.similarity import similarities
from dualtower.losses.supervised import supervised_contrastive
from dualtower.model import DualTower
from dualtower.training.config import MatchingConfig, RunConfig, TaskConfig
from dualtower.training.distributed import agree, gather, gather_codes, rank, share
from dualtower.types import Batch, Embeddings

__all__ = ["Contrastive", "Matching", "Objective", "ProductFused", "build_objective"]


TOWERS = ("text_tower", "image_tower", "text_head", "image_head", "logit_scale", "logit_bias")


class Objective(nn.Module, ABC):
    """Base of all objectives.

    Args:
        model: What is trained.
        idle: Parts of the model that this objective gives no gradient; they rest as if they were locked.
    """

    def __init__(self, model: DualTower, *, idle: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model, self.idle = model, idle

    @abstractmethod
    def forward(self, batch: Batch, draw: Draw) -> Any:
        """Compute what `loss` needs.

        Args:
            batch: Rows of this rank.
            draw: Random numbers that are the same on all ranks.
        """

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of the joined batch, a scalar."""


class Contrastive(Objective):
    """A contrastive loss between the embeddings of both towers."""

    def __init__(self, model: DualTower, loss: Loss) -> None:
        super().__init__(model, idle=("reranker", "fusion"))
        self._loss = loss

    def forward(self, batch: Batch, draw: Draw) -> Embeddings:
        """Embed the rows."""
        embeddings: Embeddings = self.model(batch)
        return embeddings

    def loss(self, outputs: Embeddings, batch: Batch) -> Tensor:
        """The loss of all ranks' embeddings; every rank computes it in full."""
        assert outputs.image is not None and outputs.text is not None
        return self._loss(
            gather(outputs.image),
            gather(outputs.text),
            scale=outputs.scale,
            bias=outputs.bias,
            products=gather_codes(batch.products),
        )


class MatchingLogits(NamedTuple):
    """The right partner of each row in column 0, hard negatives behind it; -inf where there was none.

    Attributes:
        text_to_image: ``[B, 1 + K]``.
        image_to_text: ``[B, 1 + K]``.
        embeddings: Of the towers.
    """

    text_to_image: Tensor
    image_to_text: Tensor
    embeddings: Embeddings


class Matching(Objective):
    """Tell the right partner from hard ones, as in ALBEF (https://arxiv.org/abs/2107.07651), but among K at once.

    Negatives come from the joined batch of all ranks, drawn by the towers' own scores, and never from a row of the same
    product. The logit of a pair is that of the towers, as it stands, plus the re-ranker's correction.

    Args:
        model: With a re-ranker.
        config: Which negatives.
        contrastive: Keeps the towers in shape where they are trained too; None where both are locked for good.

    Raises:
        ConfigError: The model has no re-ranker.
    """

    def __init__(self, model: DualTower, config: MatchingConfig, *, contrastive: Contrastive | None) -> None:
        super().__init__(model, idle=("fusion",) if contrastive else ("fusion", *TOWERS))
        if model.reranker is None:
            raise ConfigError("matching trains a re-ranker; give the recipe's model a reranker=RerankerConfig()")
        self.config, self._contrastive = config, contrastive

    def forward(self, batch: Batch, draw: Draw) -> MatchingLogits:
        """Score each row's own pair and its hard negatives."""
        assert self.model.reranker is not None
        embeddings = self.model(batch)
        assert embeddings.text_features is not None and embeddings.image_features is not None
        text = _shared(self.model.reranker.text_states(embeddings.text_features))
        image = _shared(self.model.reranker.image_states(embeddings.image_features))
        with torch.no_grad():
            all_images, all_texts = gather_codes(embeddings.image), gather_codes(embeddings.text)
            kind = self.model.config.similarity
            towers = embeddings.scale * similarities(all_texts, all_images, kind)
            same = _same_product(gather_codes(batch.products))
        first = rank() * len(batch.products)
        own = torch.arange(first, first + len(batch.products), device=towers.device)
        images = self._candidates(towers, same, own, draw)
        texts = self._candidates(towers.T, same, own, draw)
        rows = own.unsqueeze(1).expand_as(images)
        forward = self._score(text, rows, image, images) + towers[rows, images]
        backward = self._score(text, texts, image, rows) + towers[texts, rows]
        return MatchingLogits(
            forward.masked_fill(_wrong(same, rows, images), -torch.inf),
            backward.masked_fill(_wrong(same, rows, texts), -torch.inf),
            embeddings,
        )

    def loss(self, outputs: MatchingLogits, batch: Batch) -> Tensor:
        """Cross-entropy of the right partner in both directions; a row without any negative adds nothing."""
        right = torch.zeros(len(outputs.text_to_image), dtype=torch.int64, device=outputs.text_to_image.device)
        total = sum(F.cross_entropy(_precise(logits), right) for logits in outputs[:2]) / 2
        assert isinstance(total, Tensor)
        return total if self._contrastive is None else total + self._contrastive.loss(outputs.embeddings, batch)

    def _candidates(self, logits: Tensor, same: Tensor, own: Tensor, draw: Draw) -> Tensor:
        """Own partner, then negatives of each of this rank's rows, drawn without replacement: int64 ``[B, 1 + K]``."""
        hardness = logits
        if self.config.temperature:  # the top K under Gumbel noise are a draw from the softmax
            hardness = logits / self.config.temperature + draw.gumbel(logits.shape[1])
        count = min(self.config.negatives, logits.shape[1] - 1)
        negatives = hardness.masked_fill(same, -torch.inf)[own].topk(count, dim=1).indices
        return torch.cat([own.unsqueeze(1), negatives], dim=1)

    def _score(self, text: TokenStates, texts: Tensor, image: TokenStates, images: Tensor) -> Tensor:
        """Corrections of pairs ``texts [B, C] x images [B, C]``."""
        assert self.model.reranker is not None
        scores: Tensor = self.model.reranker(text.take(texts.flatten()), image.take(images.flatten()))
        return scores.view_as(texts)


class ProductViews(NamedTuple):
    """A product twice, with other inputs hidden each time.

    Attributes:
        first: Fused vectors ``[B, D]``.
        second: Fused vectors ``[B, D]``.
        tasks: Head -> logits of both views, ``[2 * B, classes]``.
        embeddings: Of the towers.
    """

    first: Tensor
    second: Tensor
    tasks: dict[str, Tensor]
    embeddings: Embeddings


class ProductFused(Objective):
    """Train one vector per product: alike for rows that belong together, and telling of what heads predict.

    Args:
        model: With a fusion.
        config: Losses and their weights.
        classes: Attribute -> classes, for the columns of a batch's labels.
        log_shares: Head -> log of each class's share of the training rows, ``[classes]``.
        pair_loss: Between the two views of every product.
        contrastive: Keeps the towers in shape where they are trained too; None where both are locked for good.

    Raises:
        ConfigError: The model has no fusion.
    """

    def __init__(
        self,
        model: DualTower,
        config: TaskConfig,
        *,
        classes: Mapping[str, Sequence[str]],
        log_shares: Mapping[str, Tensor],
        pair_loss: Loss,
        contrastive: Contrastive | None,
    ) -> None:
        super().__init__(model, idle=("reranker",) if contrastive else ("reranker", *TOWERS))
        if model.fusion is None:
            raise ConfigError("objective 'product' trains a fusion; give the recipe's model a fusion=FusionConfig()")
        self.config, self.classes = config, classes
        self._pair_loss, self._contrastive = pair_loss, contrastive
        self.log_shares = {name: config.logit_adjustment * shares for name, shares in log_shares.items()}

    def forward(self, batch: Batch, draw: Draw) -> ProductViews:
        """Fuse every product twice; dropout makes the difference."""
        embeddings = self.model(batch)
        (first, tasks), (second, again) = (self.model.fuse(embeddings, batch) for _ in range(2))
        return ProductViews(first, second, {n: torch.cat([tasks[n], again[n]]) for n in tasks}, embeddings)

    def loss(self, outputs: ProductViews, batch: Batch) -> Tensor:
        """The weighted sum of all losses over the joined batch."""
        first, second = gather(outputs.first), gather(outputs.second)
        products = gather_codes(batch.products)
        labels = None if batch.labels is None else gather_codes(batch.labels)
        scale = first.new_tensor(1 / self.config.temperature)
        bias = scale.new_zeros(())
        total = self.config.identity * self._pair_loss(first, second, scale=scale, bias=bias, products=products)
        same = products if not self.config.labels else self._joint_label(labels)
        both = torch.cat([first, second])
        total = total + self.config.supervised * supervised_contrastive(both, torch.cat([same, same]), scale=scale)
        for number, (name, weight) in enumerate(self.config.head_weights.items()):
            assert labels is not None
            halves = [gather(part.contiguous()) for part in _precise(outputs.tasks[name]).chunk(2)]
            logits = torch.cat(halves) + self.log_shares[name].to(first.device)
            target = labels[:, number].repeat(2)
            if (target >= 0).any():
                total = total + weight * F.cross_entropy(logits, target, ignore_index=-1)
        if self._contrastive is not None:
            total = total + self._contrastive.loss(outputs.embeddings, batch)
        return total

    def _joint_label(self, labels: Tensor | None) -> Tensor:
        """One number for the values of all label attributes; -1 where one of them is unknown."""
        assert labels is not None
        names = list(self.classes)
        joint = labels.new_zeros(len(labels))
        for name in self.config.labels:
            joint = joint * len(self.classes[name]) + labels[:, names.index(name)]
        unknown = torch.stack([labels[:, names.index(name)] < 0 for name in self.config.labels]).any(0)
        return joint.masked_fill(unknown, -1)


def build_objective(config: RunConfig, model: DualTower, products: Products) -> Objective:
    """The objective that a run asks for.

    Args:
        config: The run.
        model: What is trained.
        products: Training split, which knows the classes and how frequent they are.
    """
    contrastive = Contrastive(model, build_loss(config.loss, similarity=model.config.similarity))
    kept = None if min(config.train.lock_text, config.train.lock_image) >= 1 else contrastive
    if config.objective == "matching":
        return Matching(model, config.matching, contrastive=kept)
    if config.objective == "product":
        heads = model.config.fusion.tasks if model.config.fusion else {}
        classes = {**heads, **fit_classes(config.task.labels, products.attributes)}
        shares = {name: _log_shares(known, products.attributes[name]) for name, known in heads.items()}
        pair_loss = build_loss(config.loss)
        return ProductFused(
            model, config.task, classes=classes, log_shares=shares, pair_loss=pair_loss, contrastive=kept
        )
    return contrastive


def _log_shares(classes: Sequence[str], values: Sequence[Any]) -> Tensor:
    labels = class_labels({"": classes}, [{"": value} for value in values])[:, 0]
    counts = torch.bincount(labels[labels >= 0], minlength=len(classes)).float()
    return (counts / counts.sum()).clamp(min=1e-12).log()


def _precise(values: Tensor) -> Tensor:
    """At least float32: autocast computes in less."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _same_product(products: Tensor) -> Tensor:
    return products.unsqueeze(1) == products


def _wrong(same: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
    """Where there were not enough negatives, the draw falls back on rows of the same product."""
    wrong = same[rows, candidates].clone()
    wrong[:, 0] = False
    return wrong


def _shared(states: TokenStates) -> TokenStates:
    """The states of all ranks, padded to the longest text of them all."""
    length = int(agree(float(states.tokens.shape[1]), 0.0, states.tokens.device)[0])
    missing = length - states.tokens.shape[1]
    tokens = share(F.pad(states.tokens, (0, 0, 0, missing)))
    if states.mask is None:
        return TokenStates(tokens, None)
    mask = F.pad(states.mask, (0, missing))
    return TokenStates(tokens, gather_codes(mask.to(torch.uint8)).bool())
