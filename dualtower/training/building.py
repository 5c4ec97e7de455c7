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
from dualtower.data.partners import Partners
from dualtower.data.sampling import BatchSampler
from dualtower.data.transforms.attributes import (
    AttributesConfig,
    column_labels,
    fit_attributes,
    fit_classes,
    with_values_of,
)
from dualtower.data.transforms.presets import PresetRule
from dualtower.distributed import world_size
from dualtower.errors import ConfigError, UnknownName
from dualtower.losses import build_loss
from dualtower.models.config import ModelConfig
from dualtower.models.dual_tower import DualTower, pretrained_attributes
from dualtower.models.whitening import image_tower_alone
from dualtower.objectives.base import Objective
from dualtower.objectives.contrastive import Contrastive
from dualtower.objectives.matching import Matching
from dualtower.objectives.product import ProductFused, log_shares
from dualtower.objectives.self_supervised.attributes import AttributeReconstruction
from dualtower.objectives.self_supervised.autoencoder import Autoencoder
from dualtower.objectives.self_supervised.base import SelfSupervised
from dualtower.objectives.self_supervised.byol import BYOL
from dualtower.objectives.self_supervised.masked import MaskedAutoencoder
from dualtower.objectives.self_supervised.moco import MoCo, MoCoV3
from dualtower.objectives.self_supervised.simclr import SimCLR
from dualtower.objectives.two_views import TwoViews
from dualtower.training.batches import training_collator
from dualtower.training.config import RunConfig
from dualtower.training.loader import ItemLoader
from dualtower.training.trainer import Trainer, Validate
from dualtower.training.vocabulary import shared_tokenizer

__all__ = ["build_loader", "build_model", "build_objective", "build_partners", "build_trainer", "with_known_values"]

logger = logging.getLogger(__name__)


def with_known_values(config: RunConfig, card: DataCard, train: ItemDataset) -> RunConfig:
    """The run's config, whose model knows the attribute values and classes of the training split.

    Raises:
        ConfigError: It wants the card's augmentation, of which the card says nothing.
    """
    if config.train.augmentation == "card":
        if not card.augmentation:
            raise ConfigError(
                f"train.augmentation is card, and data card {card.name!r} has none; write one into it, such as "
                "augmentation: {by: category, Shoes: apparel, default: product}, or name a preset"
            )
        if PresetRule.of(card.augmentation).by not in train.columns.attributes:
            raise UnknownName("attribute", PresetRule.of(card.augmentation).by, train.columns.attributes)
        config = replace(config, train=replace(config.train, augmentation_rule=dict(card.augmentation)))
    fusion, encoder = config.model.fusion, config.model.attribute_encoder
    if encoder is not None:
        encoder = replace(encoder, attributes=_known_attributes(encoder.attributes, card, train))
    if fusion is not None:
        if fusion.attributes is not None:
            fusion = replace(fusion, attributes=_known_attributes(fusion.attributes, card, train))
        tasks = fit_classes(config.task.heads, train.columns.attributes, card.columns.numeric)
        fusion = replace(fusion, tasks=tasks)
    return replace(config, model=replace(config.model, fusion=fusion, attribute_encoder=encoder))


def _known_attributes(config: AttributesConfig, card: DataCard, train: ItemDataset) -> AttributesConfig:
    """What the training split knows, and the model that the attribute tower starts from."""
    fitted = fit_attributes(config, train.columns.attributes, card.columns.numeric)
    return with_values_of(fitted, pretrained_attributes(config.pretrained).config) if config.pretrained else fitted


def build_model(config: RunConfig, train: ItemDataset) -> DualTower:
    """The base's towers under the heads that the config asks for, or a model with fresh weights.

    Raises:
        ConfigError: The config sets towers beside those of its base, or the rows lack what a tower embeds.
    """
    torch.manual_seed(config.train.seed)
    if config.base is not None:
        based = _based(config, config.base)
        _check_whole(based.config)
        _check_sides(based.config, train)
        return based
    _check_whole(config.model)
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
    if config.objective == "attributes":
        return AttributeReconstruction(model, config.reconstruction, items.columns.attributes)
    model.config.require_tower(f"objective {config.objective!r}")
    if config.is_self_supervised:
        return _self_supervised(config, model)
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


def _self_supervised(config: RunConfig, model: DualTower) -> Objective:
    train, ssl = config.train, config.ssl
    if train.batch_size * world_size() < 2:
        raise ConfigError(
            "a batch of one image has no other to be told from; type --train.batch-size 256, or 2 at least"
        )
    if config.objective == "moco":
        return MoCo(model, ssl, batch_size=train.batch_size, accumulate=train.accumulate)
    made: dict[str, type[SelfSupervised]] = {
        "simclr": SimCLR,
        "moco_v3": MoCoV3,
        "byol": BYOL,
        "autoencoder": Autoencoder,
        "masked": MaskedAutoencoder,
    }
    objective: Objective = made[config.objective](model, ssl)
    return objective


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
    return ItemLoader(
        train,
        plan,
        training_collator(config, objective, train),
        workers=config.data.workers,
        partners=build_partners(objective, train),
    )


def build_partners(objective: Objective, train: ItemDataset) -> Partners | None:
    """What finds the second image of a row, where an objective wants another one that shows the same."""
    shown, columns = objective.views.second_image, train.columns.attributes
    if shown is None:
        return None
    if shown == "product":
        return Partners(train, train.codes)
    return Partners(train, column_labels(shown, fit_classes([shown], columns)[shown], columns[shown]))


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


def _check_whole(model: ModelConfig) -> None:
    """Refuse to train a tower by the vector of an earlier stage: those behind it would never learn."""
    if model.image is not None and model.image.stage != -1:
        raise ConfigError(
            f"image.stage is {model.image.stage}: stages behind it would learn nothing. Train with --model.image.stage "
            "-1; what a pretraining has made is the start of a tower with --model.image.pretrained FOLDER"
        )


def _based(config: RunConfig, base: str) -> DualTower:
    reranker, fusion, decoder = config.model.reranker, config.model.fusion, config.model.decoder
    given = differences(config.model, ModelConfig(reranker=reranker, fusion=fusion, decoder=decoder))
    if given:
        raise ConfigError(
            f"with base = {base!r} the towers are the base's, but model sets others ({'; '.join(given[:3])}); "
            "leave them out, or leave out --base"
        )
    model = DualTower.from_pretrained(base)
    logger.info("towers, vocabulary and image size come from %s, not from the recipe's model settings", base)
    if config.is_self_supervised:
        return image_tower_alone(model, decoder=decoder, stage=-1, grid=1)
    dropped = [n for n in ("reranker", "fusion") if getattr(model, n) is not None and getattr(config.model, n) is None]
    if dropped:
        logger.info("the %s of %s is left out: it would not fit towers that learn on", " and ".join(dropped), base)
    return model.with_heads(reranker=reranker, fusion=fusion)
