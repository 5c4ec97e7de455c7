"""The matching objective: a re-ranker learns to tell the right partner from hard ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad, all_gather_with_summed_grad, all_reduce_max, rank
from dualtower.errors import ConfigError
from dualtower.evaluation import (
    Evaluation,
    Section,
    choose_weight,
    evaluate,
    rerank,
)
from dualtower.evaluation.config import EvaluationConfig
from dualtower.inference.pair_scoring import features_to_rerank
from dualtower.losses import Loss
from dualtower.losses.similarity import similarities
from dualtower.models.dual_tower import DualTower
from dualtower.models.heads.reranker import TokenStates
from dualtower.objectives.base import Objective
from dualtower.objectives.config import MatchingConfig
from dualtower.objectives.contrastive import TOWERS, at_least_float32, joined_loss
from dualtower.types import Batch, Embeddings

__all__ = ["Matching", "MatchingLogits"]


class MatchingLogits(NamedTuple):
    """The right partner of each row in column 0, hard negatives behind it; -inf where there was none.

    Attributes:
        text_to_image: ``[B, 1 + K]``.
        image_to_text: ``[B, 1 + K]``.
        own: Embeddings of the re-ranker.
        towers: Embeddings of the towers.
    """

    text_to_image: Tensor
    image_to_text: Tensor
    own: Embeddings
    towers: Embeddings


class Matching(Objective):
    """Tell the right partner from hard ones, as in ALBEF (https://arxiv.org/abs/2107.07651), but among K at once.

    Negatives come from the joined batch of all ranks, drawn by the towers' own scores, and never from a row of the same
    product. The logit of a pair is the re-ranker's alone: on the rows that the towers were trained on, theirs is right
    already and would leave nothing to learn. As in ALBEF, a contrastive loss brings the re-ranker's embeddings of whole
    texts and images into shape.

    Args:
        model: With a re-ranker.
        config: Which negatives.
        contrast: Between the re-ranker's embeddings.
        contrastive: Between the towers'; keeps them in shape where they are trained too; None where both are locked for
            good.

    Raises:
        ConfigError: The model has no re-ranker.
    """

    def __init__(self, model: DualTower, config: MatchingConfig, *, contrast: Loss, contrastive: Loss | None) -> None:
        super().__init__(model, idle=("fusion",) if contrastive else ("fusion", *TOWERS))
        if model.reranker is None:
            raise ConfigError("matching trains a re-ranker; give the recipe's model a reranker=RerankerConfig()")
        self.config, self._contrast, self._contrastive = config, contrast, contrastive

    def forward(self, batch: Batch, rng: BatchRNG) -> MatchingLogits:
        """Score each row's own pair and its hard negatives."""
        assert self.model.reranker is not None
        towers = self.model(batch)
        read, seen = features_to_rerank(self.model, batch, towers)
        assert read is not None and seen is not None
        text, image = self.model.reranker.text_states(read), self.model.reranker.image_states(seen)
        scale = self.model.reranker.logit_scale.exp()
        own = Embeddings(image.embedding, text.embedding, scale, scale.new_zeros(()))
        text, image = _shared(text), _shared(image)
        with torch.no_grad():
            all_images, all_texts, product_codes = all_gather_with_grad(towers.image, towers.text, batch.product_codes)
            kind = self.model.config.similarity
            logits = towers.scale * similarities(all_texts, all_images, kind)
            same = _same_product(product_codes)
        first = rank() * len(batch.product_codes)
        rows = torch.arange(first, first + len(batch.product_codes), device=logits.device)
        right = self.model.reranker(text.take(rows), image.take(rows)).unsqueeze(1)
        images, texts = (self._negatives(given, same, rows, rng) for given in (logits, logits.T))
        beside = rows.unsqueeze(1).expand_as(images)
        forward = self._score(text, beside, image, images).masked_fill(same[beside, images], -torch.inf)
        backward = self._score(text, texts, image, beside).masked_fill(same[beside, texts], -torch.inf)
        return MatchingLogits(torch.cat([right, forward], 1), torch.cat([right, backward], 1), own, towers)

    def loss(self, outputs: MatchingLogits, batch: Batch) -> Tensor:
        """Cross-entropy of the right partner in both directions; a row without any negative adds nothing."""
        right = torch.zeros(len(outputs.text_to_image), dtype=torch.int64, device=outputs.text_to_image.device)
        total = joined_loss(self._contrast, outputs.own, batch)
        total = total + sum(F.cross_entropy(at_least_float32(logits), right) for logits in outputs[:2]) / 2
        return total if self._contrastive is None else total + joined_loss(self._contrastive, outputs.towers, batch)

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """Mean reciprocal rank of both directions after re-ranking; sets the re-ranker's weight."""
        assert self.model.reranker is not None
        result = evaluate(self.model, items, ks=(10,), bootstrap=0, batch_size=batch_size)
        top = min(20, *(len(direction.gallery.rows) for direction in result.directions.values()))
        after = choose_weight(self.model, result, top=top)
        mrr = {f"{name}/mrr": result.report.metrics[name]["mrr"].value for name in after}
        mrr |= {f"{name}/mrr_reranked": value for name, value in after.items()}
        return {"score": sum(after.values()) / len(after), **mrr, "weight": float(self.model.reranker.weight)}

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
        """Report what re-ranking makes of the best hits."""
        assert result is not None
        top = min(settings.rerank, *(len(direction.gallery.rows) for direction in result.directions.values()))
        return [rerank(model, result, top=top, bootstrap=settings.bootstrap, progress=progress).section()]

    def _negatives(self, logits: Tensor, same: Tensor, rows: Tensor, rng: BatchRNG) -> Tensor:
        """Hard negatives of each of this rank's rows, drawn without replacement: int64 ``[B, K]``.

        Where there are not enough of them, the draw falls back on rows of the same product.
        """
        hardness = logits
        if self.config.temperature:  # the top K under Gumbel noise are a draw from the softmax
            hardness = logits / self.config.temperature + rng.gumbel(logits.shape[1])
        # Not `topk.largest`: what is wanted are places, on the device, and not scores.
        count = min(self.config.negatives, logits.shape[1] - 1)
        return hardness.masked_fill(same, -torch.inf)[rows].topk(count, dim=1).indices

    def _score(self, text: TokenStates, texts: Tensor, image: TokenStates, images: Tensor) -> Tensor:
        """Scores of pairs ``texts [B, K] x images [B, K]``."""
        assert self.model.reranker is not None
        scores: Tensor = self.model.reranker(text.take(texts.flatten()), image.take(images.flatten()))
        return scores.view_as(texts)


def _same_product(product_codes: Tensor) -> Tensor:
    return product_codes.unsqueeze(1) == product_codes


def _shared(states: TokenStates) -> TokenStates:
    """The states of all ranks, padded to the longest text of them all."""
    length = int(all_reduce_max(float(states.tokens.shape[1]), 0.0, states.tokens.device)[0])
    missing = length - states.tokens.shape[1]
    tokens, embedding = (
        all_gather_with_summed_grad(F.pad(states.tokens, (0, 0, 0, missing))),
        all_gather_with_summed_grad(states.embedding),
    )
    if states.mask is None:
        return TokenStates(tokens, None, embedding)
    mask = F.pad(states.mask, (0, missing))
    return TokenStates(tokens, all_gather_with_grad(mask)[0], embedding)
