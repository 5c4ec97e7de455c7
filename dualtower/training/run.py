"""One run from card to report: read, train, measure, save. Recipes call this; so can you."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from dualtower.config import to_dict
from dualtower.data.cards import DataCard, load_card
from dualtower.data.items import ItemDataset
from dualtower.data.loading import load_items, without_broken_images
from dualtower.distributed import from_main
from dualtower.errors import CollapsedRun, ConfigError, MissingExtra, RowError, SourceError
from dualtower.evaluation import Evaluation, Section, check_measurable, evaluate, load_qrels, write_report
from dualtower.evaluation.config import EvaluationConfig
from dualtower.files import write_text_atomically
from dualtower.hub.model_card import ModelCard
from dualtower.hub.model_folder import README
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Objective
from dualtower.sharding import sharded
from dualtower.threads import advised_threads, busy_cores
from dualtower.training.building import (
    build_model,
    build_objective,
    build_partners,
    build_trainer,
    with_known_values,
)
from dualtower.training.config import RunConfig
from dualtower.training.metric_logger import read_history
from dualtower.training.pool import Pool, pretraining_pool
from dualtower.training.precision import autocast_precision, with_tower_precision
from dualtower.training.trainer import Outcome
from dualtower.training.view_samples import view_samples

__all__ = ["run"]

logger = logging.getLogger(__name__)

GROUP_TIMEOUT = timedelta(hours=3)
"""How long a process waits for the others before it gives them up for dead.

No process works alone for long, but for the main one's download of a source. A process that dies is noticed at once, by
the launcher; what this limit ends is a process that hangs.
"""


def run(config: RunConfig) -> bool:
    """Train and measure what `config` describes.

    The folder ``config.out`` then holds ``model/ checkpoints/ config.json history.jsonl metrics.json queries.parquet
    report.md``.

    Returns:
        True when the run is complete; False when a signal stopped it after saving a checkpoint.

    Raises:
        ConfigError: The folder already holds a run, or a setting does not fit.
        DataError: The catalog cannot be read.
        NonFiniteLoss: Training diverged.
    """
    accelerator = _accelerator(config)
    _claim_folder(config, accelerator)
    card = load_card(config.data.card)
    train, validation = (_load(card, split, config, accelerator) for split in _splits(config))
    pool = _pool(card, train, validation, config, accelerator)
    train = pool.items if pool else train
    config = with_known_values(config, card, train)
    model = build_model(config, train)
    if not config.is_self_supervised:
        check_measurable(model, validation)
    config = with_tower_precision(replace(config, model=model.config), model, train, accelerator)
    _log_start(config, train, model, accelerator)

    trainer = build_trainer(
        config,
        model,
        train,
        accelerator=accelerator,
        validate=lambda objective: _validated(objective, validation, config),
        validation=validation,
    )
    if accelerator.is_main_process:  # not before: the config of a refused resumption is not the run's
        write_text_atomically(config.out / "config.json", json.dumps(to_dict(config), indent=2))
    outcome = trainer.fit()
    del trainer
    if outcome.ended == "stopped":
        logger.info("stopped at step %d, saved. To go on, type the same command with --resume", outcome.position.step)
    else:
        skipped = [*train.skipped, *validation.skipped, *outcome.skipped_rows]
        _save_and_measure(outcome, card, config, accelerator, train=train, pool=pool, skipped=skipped)
    accelerator.free_memory()  # DDP must let go of the process group before it ends, or the exit may abort
    accelerator.end_training()
    return outcome.ended != "stopped"


def _accelerator(config: RunConfig) -> Accelerator:
    for tracker in config.train.trackers:
        if tracker == "wandb":
            try:
                import wandb  # noqa: F401
            except ImportError:
                raise MissingExtra("wandb", "wandb") from None
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without this word, Accelerate overlooks torchrun's CPU ranks
        mixed_precision=autocast_precision(config.train),
        log_with=list(config.train.trackers) or None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=GROUP_TIMEOUT)],
        project_config=ProjectConfiguration(project_dir=str(config.out), logging_dir=str(config.out / "logs")),
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, but they train as {accelerator.num_processes}; "
            "on CPUs type: torchrun --nproc_per_node 2 RECIPE"
        )
    if accelerator.device.type == "cpu":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        # Accelerate's launcher and torchrun leave every process one thread: half of the speed on two cores.
        torch.set_num_threads(config.train.cpu_threads or max(1, (os.cpu_count() or 1) // processes))
        if accelerator.is_main_process:
            _warn_of_a_busy_machine(torch.get_num_threads())
    return accelerator


def _warn_of_a_busy_machine(threads: int) -> None:
    if threads == 1:
        return
    taken, cores = busy_cores(), os.cpu_count() or 1
    advised = advised_threads(threads, taken, cores)
    if advised < threads:
        logger.warning(
            "other programs take %.1f of %d cores; %d threads that wait for each other may be many times slower there "
            "than fewer of them: try --train.cpu-threads %d",
            taken,
            cores,
            threads,
            advised,
        )


def _claim_folder(config: RunConfig, accelerator: Accelerator) -> None:
    """Refuse to write over another run, and to resume where there is none: the main process says for all."""
    from_main(lambda: _claim(config))
    accelerator.wait_for_everyone()


def _claim(config: RunConfig) -> bytes:
    taken = (config.out / "config.json").exists()
    if config.resume and not taken:
        raise ConfigError(f"nothing to resume: {config.out} holds no run; leave out --resume to begin one")
    if taken and not config.resume and not config.overwrite:
        raise ConfigError(
            f"{config.out} already holds a run; type --resume to go on with it, --overwrite to replace it, "
            "or choose another --out"
        )
    if taken and config.overwrite and not config.resume:
        _remove_run(config.out)
    return b""


def _remove_run(folder: Path) -> None:
    """Remove what a run wrote, and nothing that somebody else may keep in the same folder."""
    for name in ("config.json", "history.jsonl", "metrics.json", "queries.parquet", "report.md"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "logs", "model", "report", "tokenizer"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _splits(config: RunConfig) -> tuple[str, str]:
    return config.data.train_split, config.data.validation_split


def _load(card: DataCard, split: str, config: RunConfig, accelerator: Accelerator) -> ItemDataset:
    """The rows of one split; all processes check its images together."""
    data = config.data
    with accelerator.main_process_first():  # it fetches and converts for those of its machine
        items = load_items(card, split, source=data.source, on_error=data.on_error, check_images=False)
    if data.max_rows and len(items) > data.max_rows and not _searches_all(config, split):
        whole, items = len(items), items.sample(data.max_rows)
        logger.info(
            "%s, split %s: %d of %d rows (--data.max-rows %d)", card.name, split, len(items), whole, data.max_rows
        )
    read = config.model.image is not None and bool(card.columns.image_columns)
    if not read or data.check_images == "never" or (card.source.synthetic is not None and data.source is None):
        return items
    with sharded():
        return _checked(items, config, remember=data.check_images == "once")


def _searches_all(config: RunConfig, split: str) -> bool:
    """Whether the rows are those that the queries of a file search, none of which may be missing."""
    return split == "all" and config.evaluation.qrels is not None


def _pool(
    card: DataCard, train: ItemDataset, validation: ItemDataset, config: RunConfig, accelerator: Accelerator
) -> Pool | None:
    """The rows of a self-supervised training, which must not see what it is measured on; None of any other."""
    if not config.is_self_supervised:
        return None
    test = _load(card, config.evaluation.split, config, accelerator)
    held_out = [validation] if test.split == validation.split else [validation, test]
    return pretraining_pool(train, held_out, transductive=config.ssl.transductive)


def _checked(items: ItemDataset, config: RunConfig, *, remember: bool) -> ItemDataset:
    """The rows whose images can be decoded; called by all processes, under `sharded`."""
    where = f"{config.data.source or items.card} ({items.split})"
    checked = without_broken_images(items, where, on_error=config.data.on_error, remember=remember)
    if len(checked) < len(items):
        logger.warning("%s: left out %d rows with broken images", where, len(items) - len(checked))
    if not len(checked):
        raise SourceError(f"{where}: no image can be decoded; the first: {checked.skipped[-len(items)]}")
    return checked


def _log_start(config: RunConfig, train: ItemDataset, model: DualTower, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        logger.info(
            "%s: %d rows of %d products; %.1f M parameters; %d process(es) on %s, %s",
            train.card,
            len(train),
            len(np.unique(train.codes)),
            sum(p.numel() for p in model.parameters()) / 1e6,
            accelerator.num_processes,
            accelerator.device,
            config.train.tower_precision or accelerator.mixed_precision.replace("no", "fp32"),
        )


def _validated(objective: Objective, items: ItemDataset, config: RunConfig) -> dict[str, float]:
    """What picks the best checkpoint; where bad rows are skipped, so are those that have broken since the start."""
    if config.data.on_error == "skip" and objective.model.image_tower is not None:
        items = _checked(items, config, remember=True)  # a look at what has changed
    return objective.validate(items, batch_size=config.evaluation.batch_size)


def _save_and_measure(
    outcome: Outcome,
    card: DataCard,
    config: RunConfig,
    accelerator: Accelerator,
    *,
    train: ItemDataset,
    pool: Pool | None,
    skipped: list[RowError],
) -> None:
    """Save first: what took hours must not hang on the minutes of the measurement, which all processes share.

    Only the main process writes.

    Raises:
        CollapsedRun: A self-supervised training has ended with embeddings that are all alike; all is written.
    """
    settings, main, folder = config.evaluation, accelerator.is_main_process, config.out / "model"
    precision: Any = "auto" if config.train.precision == "fp16" else config.train.precision
    objective = build_objective(config, outcome.model.placed(accelerator.device, precision), train)
    trained = objective.model
    trained.record_tower_fingerprint()
    if main:
        trained.save_pretrained(folder, card=ModelCard.of_run(config))
    train = _without(train, outcome.skipped_rows)
    with sharded():
        model = objective.finished(trained, train, settings)
    if main and model is not trained:
        model.save_pretrained(folder, card=ModelCard.of_run(config))
    if main:
        logger.info("saved %s; measuring it", folder)
    model = model.placed(accelerator.device, precision)
    gallery = _load(card, "all" if settings.qrels else settings.split, config, accelerator)
    with sharded():
        result = _retrieval(model, gallery, settings, progress=main) if objective.measured_by_retrieval else None
        sections = objective.sections(model, gallery, train, settings, result=result, progress=main)
    if main:
        seen = view_samples(config, objective, train, build_partners(objective, train))
        _write(config, model, result, [*sections, *([pool.section()] if pool else []), *seen], gallery, skipped)
    for section in sections:
        if section.failure:
            raise CollapsedRun(f"{config.out}: {section.failure}")


def _without(items: ItemDataset, broken: list[RowError]) -> ItemDataset:
    """The rows but those whose images broke while they were trained on."""
    ids = {str(error.row) for error in broken}
    return items if not ids else items.select(i for i, row_id in enumerate(items.columns.ids) if row_id not in ids)


def _retrieval(model: DualTower, items: ItemDataset, settings: EvaluationConfig, *, progress: bool) -> Evaluation:
    return evaluate(
        model,
        items,
        queries=load_qrels(settings.qrels) if settings.qrels else None,
        ks=settings.ks,
        bootstrap=settings.bootstrap,
        batch_size=settings.batch_size,
        breakdown=settings.breakdown,
        progress=progress,
    )


def _write(
    config: RunConfig,
    model: DualTower,
    result: Evaluation | None,
    sections: list[Section],
    gallery: ItemDataset,
    skipped: list[RowError],
) -> None:
    """The report, its figures in the model's README, and its tables in the log."""
    most = None if _searches_all(config, gallery.split) else config.data.max_rows
    sampled = f", {len(gallery):,} rows of it (at most {most:,})" if most else ""
    folder, report = config.out / "model", None if result is None else result.report
    card = ModelCard.of_run(config, report, table="" if report else sections[0].markdown)
    readme = card.to_markdown(name=str(folder), model=model.config, fingerprint=model.fingerprint)
    write_text_atomically(folder / README, readme)
    write_report(
        config.out,
        result,
        title=f"{gallery.card}, split {gallery.split}" + sampled,
        sections=sections,
        history=read_history(config.out / "history.jsonl"),
        skipped=skipped + gallery.skipped,
    )
    tables = [] if report is None else [report.table()]
    tables += [f"{section.title}\n\n{section.markdown}" for section in sections if not section.images]
    logger.info("\n%s\nmodel: %s\nreport: %s", "\n\n".join(tables), folder, config.out / "report.md")
