"""What a training minimises: a module around the model, whose parts outside of it are pure functions.

`forward` runs inside DistributedDataParallel and autocast, on the rows of one rank; `loss` runs outside of both, in
float32, and joins the ranks. On any number of ranks the gradients are those of one process on the joined batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.data.augment import Draw
from dualtower.errors import ConfigError
from dualtower.fusion.reranker import TokenStates
from dualtower.losses import Loss, build_loss
from dualtower.losses.similarity import similarities
from dualtower.model import DualTower
from dualtower.training.config import MatchingConfig, RunConfig
from dualtower.training.distributed import agree, gather, gather_codes, rank, share
from dualtower.types import Batch, Embeddings

__all__ = ["Contrastive", "Matching", "Objective", "build_objective"]


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
        super().__init__(model, idle=("reranker",))
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
        towers = ("text_tower", "image_tower", "text_head", "image_head", "logit_scale", "logit_bias")
        super().__init__(model, idle=() if contrastive else towers)
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
            towers = embeddings.scale * similarities(all_texts, all_images, kind).float()
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
        total = sum(F.cross_entropy(logits.float(), right) for logits in outputs[:2]) / 2
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


def build_objective(config: RunConfig, model: DualTower) -> Objective:
    """The objective that a run asks for."""
    contrastive = Contrastive(model, build_loss(config.loss, similarity=model.config.similarity))
    if config.objective == "contrastive":
        return contrastive
    frozen = min(config.train.lock_text, config.train.lock_image) >= 1
    return Matching(model, config.matching, contrastive=None if frozen else contrastive)


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
