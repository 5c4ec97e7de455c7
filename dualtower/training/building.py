"""What a run trains, made from its config: the model, and the trainer around it."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice

import torch
from accelerate import Accelerator

from dualtower.config import differences
from dualtower.data.cards import DataCard
from dualtower.data.items import ItemDataset
from dualtower.data.sampling import BatchSampler
from dualtower.data.transforms.attributes import fit_attributes, fit_classes
from dualtower.errors import ConfigError
from dualtower.losses import build_loss
from dualtower.models.config import ModelConfig
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Objective
from dualtower.objectives.contrastive import Contrastive
from dualtower.objectives.matching import Matching
from dualtower.objectives.product import ProductFused, log_shares
from dualtower.objectives.two_views import TwoViews
from dualtower.training.batches import training_collator
from dualtower.training.config import RunConfig
from dualtower.training.loader import ItemLoader
from dualtower.training.trainer import Trainer, Validate
from dualtower.training.vocabulary import shared_tokenizer

__all__ = ["build_loader", "build_model", "build_objective", "build_trainer", "with_known_values"]

logger = logging.getLogger(__name__)


def with_known_values(config: RunConfig, card: DataCard, train: ItemDataset) -> RunConfig:
    """The run's config, whose model knows the attribute values and classes of the training split."""
    fusion = config.model.fusion
    if fusion is None:
        return config
    numeric = card.columns.numeric
    if fusion.attributes is not None:
        fusion = replace(fusion, attributes=fit_attributes(fusion.attributes, train.columns.attributes, numeric))
    fusion = replace(fusion, tasks=fit_classes(config.task.heads, train.columns.attributes, numeric))
    return replace(config, model=replace(config.model, fusion=fusion))


def build_model(config: RunConfig, train: ItemDataset) -> DualTower:
    """The base's towers under the heads that the config asks for, or a model with fresh weights.

    Raises:
        ConfigError: The config sets towers beside those of its base, or the rows lack what a tower embeds.
    """
    torch.manual_seed(config.train.seed)
    if config.base is not None:
        based = _based(config, config.base)
        _check_sides(based.config, train)
        return based
    _check_sides(config.model, train)
    tokenizer = None if config.model.text is None else shared_tokenizer(config, train.columns.texts)
    torch.manual_seed(config.train.seed)
    return DualTower.create(config.model, tokenizer)


def build_objective(config: RunConfig, model: DualTower, items: ItemDataset) -> Objective:
    """The objective that a run asks for.

    Args:
        config: The run.
        model: What is trained.
        items: Training split, which knows the classes and how frequent they are.
    """
    contrastive = build_loss(config.loss, similarity=model.config.similarity)
    if len(model.config.modalities) == 1:
        return TwoViews(model, contrastive)
    kept = None if min(config.train.lock_text, config.train.lock_image) >= 1 else contrastive
    if config.objective == "matching":
        return Matching(model, config.matching, contrast=build_loss(config.loss), contrastive=kept)
    if config.objective == "product":
        heads = model.config.fusion.tasks if model.config.fusion else {}
        classes = {**heads, **fit_classes(config.task.labels, items.columns.attributes)}
        shares = {name: log_shares(known, items.columns.attributes[name]) for name, known in heads.items()}
        pair_loss = build_loss(config.loss)
        return ProductFused(
            model, config.task, classes=classes, log_shares=shares, pair_loss=pair_loss, contrastive=kept
        )
    return Contrastive(model, contrastive)


def build_loader(config: RunConfig, objective: Objective, train: ItemDataset, accelerator: Accelerator) -> ItemLoader:
    """This process's share of the batches of the training split, with what the objective wants of every row.

    Raises:
        ConfigError: The split does not fill one batch, or the sampling does not fit the balance.
    """
    plan = BatchSampler(
        train,
        batch_size=config.train.batch_size,
        sampling=config.train.sampling,
        balance=config.train.class_balanced_by,
        seed=config.train.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    return ItemLoader(train, plan, training_collator(config, objective, train), workers=config.data.workers)


def build_trainer(
    config: RunConfig,
    model: DualTower,
    train: ItemDataset,
    *,
    accelerator: Accelerator,
    validate: Validate | None = None,
    validation: ItemDataset | None = None,
) -> Trainer:
    """The trainer of a run.

    Args:
        config: The run.
        model: Freshly built.
        train: Training split.
        accelerator: Device, precision and processes.
        validate: As in `Trainer`.
        validation: What it measures on; a resumed run must find the same rows.

    Raises:
        ConfigError: The budget or the batch does not fit the data, or the processes see different data.
        CheckpointError: There is a checkpoint to resume from, but it does not fit.
    """
    torch.manual_seed(config.train.seed)  # the objective's own parts begin alike on all ranks
    objective = build_objective(config, model, train)
    loader = build_loader(config, objective, train, accelerator)
    splits = {"train": train} if validation is None else {"train": train, "validation": validation}
    return Trainer(config, objective, loader, accelerator=accelerator, validate=validate, splits=splits)


def _check_sides(model: ModelConfig, train: ItemDataset) -> None:
    """Refuse rows that lack what a tower embeds, all of them, as those of a card that names no such column do."""
    first = list(islice(train, 100))
    has = {"image": any(row.image is not None for row in first), "text": any(row.texts for row in first)}
    if lacking := next((modality for modality in model.modalities if not has[modality]), None):
        raise ConfigError(
            f"the model has a tower for {lacking}s, and the rows of {train.card} have none; type "
            f"--model.{lacking} None to train without it, or name the column of the {lacking}s in the data card"
        )


def _based(config: RunConfig, base: str) -> DualTower:
    reranker, fusion = config.model.reranker, config.model.fusion
    given = differences(config.model, ModelConfig(reranker=reranker, fusion=fusion))
    if given:
        raise ConfigError(
            f"with base = {base!r} the towers are the base's, but model sets others ({'; '.join(given[:3])}); "
            "leave them out, or leave out --base"
        )
    model = DualTower.from_pretrained(base)
    logger.info("towers, vocabulary and image size come from %s, not from the recipe's model settings", base)
    dropped = [n for n in ("reranker", "fusion") if getattr(model, n) is not None and getattr(config.model, n) is None]
    if dropped:
        logger.info("the %s of %s is left out: it would not fit towers that learn on", " and ".join(dropped), base)
    return model.with_heads(reranker=reranker, fusion=fusion)
