"""What a training minimises: a module around the model, whose parts outside of it are pure functions.

`forward` runs inside DistributedDataParallel and autocast, on the rows of one rank; `loss` runs outside of both, in
float32, and joins the ranks. On any number of ranks the gradients are those of one process on the joined batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.data.attributes import class_labels, fit_classes
from dualtower.data.augment import Draw
from dualtower.data.products import Products
from dualtower.distributed import agree, gather, rank, share
from dualtower.errors import ConfigError
from dualtower.evaluation import (
    Evaluation,
    Section,
    choose_weight,
    evaluate,
    measure_heads,
    rerank,
    similar_products,
)
from dualtower.fusion.reranker import TokenStates
from dualtower.losses import Loss, build_loss
from dualtower.losses.similarity import similarities
from dualtower.losses.supervised import supervised_contrastive
from dualtower.model import DualTower
from dualtower.reranking import features_to_rerank
from dualtower.training.config import MatchingConfig, RunConfig, TaskConfig
from dualtower.training.objective import Objective, Views
from dualtower.types import Batch, Embeddings

__all__ = ["Contrastive", "Matching", "ProductFused", "TwoViews", "build_objective"]


TOWERS = ("text_tower", "image_tower", "text_head", "image_head", "logit_scale", "logit_bias")


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
        return _joined(self._loss, outputs, batch)

    def validate(self, products: Products, *, batch_size: int) -> dict[str, float]:
        """Mean recall@10 of both directions."""
        return _mean_recall(self.model, products, ("text_to_image", "image_to_text"), batch_size)


class TwoViews(Objective):
    """A contrastive loss between two views of the same rows, for a model that has one tower.

    Of images the views are two augmentations, as in SimCLR (https://arxiv.org/abs/2002.05709); of texts they are two
    captions of a row, or the same caption with other tokens and units dropped, as in SimCSE
    (https://arxiv.org/abs/2104.08821). Rows of one product are positives of each other here too.
    """

    def __init__(self, model: DualTower, loss: Loss) -> None:
        super().__init__(model)
        self._loss = loss
        (self.modality,) = model.config.modalities
        self.views = Views(images=2, texts=0) if self.modality == "image" else Views(images=0, texts=2)

    def forward(self, batch: Batch, draw: Draw) -> Embeddings:
        """Embed the first view, and the second one in the place of the other side."""
        if self.modality == "image":
            first, second = self.model(batch), self.model(replace(batch, pixels=batch.more_views[0]))
            return replace(first, text=second.image)
        first, second = self.model(batch), self.model(replace(batch, tokens=batch.more_tokens[0]))
        return replace(first, image=second.text)

    def loss(self, outputs: Embeddings, batch: Batch) -> Tensor:
        """The loss of all ranks' embeddings; every rank computes it in full."""
        return _joined(self._loss, outputs, batch)

    def validate(self, products: Products, *, batch_size: int) -> dict[str, float]:
        """recall@10 of rows among the others of their product."""
        return _mean_recall(self.model, products, (f"{self.modality}_to_{self.modality}",), batch_size)


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
    texts and pictures into shape.

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

    def forward(self, batch: Batch, draw: Draw) -> MatchingLogits:
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
            all_images, all_texts, products = gather(towers.image, towers.text, batch.products)
            kind = self.model.config.similarity
            logits = towers.scale * similarities(all_texts, all_images, kind)
            same = _same_product(products)
        first = rank() * len(batch.products)
        rows = torch.arange(first, first + len(batch.products), device=logits.device)
        right = self.model.reranker(text.take(rows), image.take(rows)).unsqueeze(1)
        images, texts = (self._negatives(given, same, rows, draw) for given in (logits, logits.T))
        beside = rows.unsqueeze(1).expand_as(images)
        forward = self._score(text, beside, image, images).masked_fill(same[beside, images], -torch.inf)
        backward = self._score(text, texts, image, beside).masked_fill(same[beside, texts], -torch.inf)
        return MatchingLogits(torch.cat([right, forward], 1), torch.cat([right, backward], 1), own, towers)

    def loss(self, outputs: MatchingLogits, batch: Batch) -> Tensor:
        """Cross-entropy of the right partner in both directions; a row without any negative adds nothing."""
        right = torch.zeros(len(outputs.text_to_image), dtype=torch.int64, device=outputs.text_to_image.device)
        total = _joined(self._contrast, outputs.own, batch)
        total = total + sum(F.cross_entropy(_precise(logits), right) for logits in outputs[:2]) / 2
        return total if self._contrastive is None else total + _joined(self._contrastive, outputs.towers, batch)

    def validate(self, products: Products, *, batch_size: int) -> dict[str, float]:
        """Mean reciprocal rank of both directions after re-ranking; sets the re-ranker's weight."""
        assert self.model.reranker is not None
        result = evaluate(self.model, products, ks=(10,), bootstrap=0, batch_size=batch_size)
        top = min(20, *(len(direction.gallery.rows) for direction in result.directions.values()))
        after = choose_weight(self.model, result, top=top)
        mrr = {f"{name}/mrr": result.report.metrics[name]["mrr"].value for name in after}
        mrr |= {f"{name}/mrr_reranked": value for name, value in after.items()}
        return {"score": sum(after.values()) / len(after), **mrr, "weight": float(self.model.reranker.weight)}

    def sections(self, result: Evaluation, train: Products, config: RunConfig, *, progress: bool) -> list[Section]:
        """Report what re-ranking makes of the best hits."""
        settings = config.evaluation
        top = min(settings.rerank, *(len(direction.gallery.rows) for direction in result.directions.values()))
        return [rerank(self.model, result, top=top, bootstrap=settings.bootstrap, progress=progress).section()]

    def _negatives(self, logits: Tensor, same: Tensor, rows: Tensor, draw: Draw) -> Tensor:
        """Hard negatives of each of this rank's rows, drawn without replacement: int64 ``[B, K]``.

        Where there are not enough of them, the draw falls back on rows of the same product.
        """
        hardness = logits
        if self.config.temperature:  # the top K under Gumbel noise are a draw from the softmax
            hardness = logits / self.config.temperature + draw.gumbel(logits.shape[1])
        # Not `topk.largest`: what is wanted are places, on the device, and not scores.
        count = min(self.config.negatives, logits.shape[1] - 1)
        return hardness.masked_fill(same, -torch.inf)[rows].topk(count, dim=1).indices

    def _score(self, text: TokenStates, texts: Tensor, image: TokenStates, images: Tensor) -> Tensor:
        """Scores of pairs ``texts [B, K] x images [B, K]``."""
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
        contrastive: Between the towers' embeddings; keeps them in shape where they are trained too; None where both are
            locked for good.

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
        contrastive: Loss | None,
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
        weights = self.config.head_weights
        halves = [half for name in weights for half in _precise(outputs.tasks[name]).chunk(2)]
        known = batch.products.new_zeros(len(batch.products), 0) if batch.labels is None else batch.labels
        first, second, products, labels, *halves = gather(outputs.first, outputs.second, batch.products, known, *halves)
        scale = first.new_tensor(1 / self.config.temperature)
        bias = scale.new_zeros(())
        total = self.config.identity * self._pair_loss(first, second, scale=scale, bias=bias, products=products)
        same = products if not self.config.labels else self._joint_label(labels)
        both = torch.cat([first, second])
        total = total + self.config.supervised * supervised_contrastive(both, torch.cat([same, same]), scale=scale)
        for number, (name, weight) in enumerate(weights.items()):
            logits = torch.cat(halves[2 * number : 2 * number + 2]) + self.log_shares[name].to(first.device)
            target = labels[:, number].repeat(2)
            # A batch in which no class is known has a gradient too, of zero: the ranks wait for one of every head.
            known_rows = (target >= 0).sum().clamp(min=1)
            total = total + weight * F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / known_rows
        if self._contrastive is not None:
            total = total + _joined(self._contrastive, outputs.embeddings, batch)
        return total

    def validate(self, products: Products, *, batch_size: int) -> dict[str, float]:
        """nDCG@10 of the fused vectors, and of the towers' own beside it."""
        similar = similar_products(
            self.model, products, relevance=self.config.labels, ks=(10,), bootstrap=0, batch_size=batch_size
        )
        ndcg = {kind: table["ndcg@10"].value for kind, table in similar.metrics.items()}
        return {"score": ndcg["fused"], **{f"{kind}/ndcg@10": value for kind, value in ndcg.items()}}

    def sections(self, result: Evaluation, train: Products, config: RunConfig, *, progress: bool) -> list[Section]:
        """Report which products the fused vectors find, and what the heads predict."""
        settings = config.evaluation
        similar = similar_products(
            self.model,
            result.products,
            relevance=self.config.labels,
            ks=settings.ks,
            bootstrap=settings.bootstrap,
            batch_size=settings.batch_size,
        )
        heads = [measure_heads(self.model, result.products, train.attributes)] if self.config.heads else []
        return [similar.section(), *heads]

    def _joint_label(self, labels: Tensor) -> Tensor:
        """One number for the values of all label attributes; -1 where one of them is unknown."""
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
    contrastive = build_loss(config.loss, similarity=model.config.similarity)
    if len(model.config.modalities) == 1:
        return TwoViews(model, contrastive)
    kept = None if min(config.train.lock_text, config.train.lock_image) >= 1 else contrastive
    if config.objective == "matching":
        return Matching(model, config.matching, contrast=build_loss(config.loss), contrastive=kept)
    if config.objective == "product":
        heads = model.config.fusion.tasks if model.config.fusion else {}
        classes = {**heads, **fit_classes(config.task.labels, products.attributes)}
        shares = {name: _log_shares(known, products.attributes[name]) for name, known in heads.items()}
        pair_loss = build_loss(config.loss)
        return ProductFused(
            model, config.task, classes=classes, log_shares=shares, pair_loss=pair_loss, contrastive=kept
        )
    return Contrastive(model, contrastive)


def _mean_recall(model: DualTower, products: Products, directions: Sequence[str], batch_size: int) -> dict[str, float]:
    metrics = evaluate(model, products, ks=(10,), bootstrap=0, batch_size=batch_size).report.metrics
    recall = {name: metrics[name]["recall@10"].value for name in directions}
    mean = sum(recall.values()) / len(recall)
    return {"score": mean, **{f"{name}/recall@10": value for name, value in recall.items()}}


def _joined(loss: Loss, embeddings: Embeddings, batch: Batch) -> Tensor:
    """A contrastive loss of all ranks' embeddings; every rank computes it in full."""
    assert embeddings.image is not None and embeddings.text is not None
    image, text, products = gather(embeddings.image, embeddings.text, batch.products)
    return loss(image, text, scale=embeddings.scale, bias=embeddings.bias, products=products)


def _log_shares(classes: Sequence[str], values: Sequence[Any]) -> Tensor:
    labels = class_labels({"": classes}, [{"": value} for value in values])[:, 0]
    counts = torch.bincount(labels[labels >= 0], minlength=len(classes)).float()
    return (counts / counts.sum()).clamp(min=1e-12).log()


def _precise(values: Tensor) -> Tensor:
    """At least float32: autocast computes in less."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _same_product(products: Tensor) -> Tensor:
    return products.unsqueeze(1) == products


def _shared(states: TokenStates) -> TokenStates:
    """The states of all ranks, padded to the longest text of them all."""
    length = int(agree(float(states.tokens.shape[1]), 0.0, states.tokens.device)[0])
    missing = length - states.tokens.shape[1]
    tokens, embedding = share(F.pad(states.tokens, (0, 0, 0, missing))), share(states.embedding)
    if states.mask is None:
        return TokenStates(tokens, None, embedding)
    mask = F.pad(states.mask, (0, missing))
    return TokenStates(tokens, gather(mask)[0], embedding)
