"""What a training sees of an image: some of its augmented views, for the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image
from torch import Tensor

from dualtower.data.batches import TrainingCollator
from dualtower.data.items import ItemDataset
from dualtower.data.partners import Partners
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.evaluation import Section
from dualtower.evaluation.reports.figures import Framed, draw_strip
from dualtower.objectives.base import Objective
from dualtower.training.batches import augmented, training_collator
from dualtower.training.config import RunConfig

__all__ = ["view_samples"]

SHOWN, DRAWS = 6, 4


def view_samples(
    config: RunConfig, objective: Objective, items: ItemDataset, partners: Partners | None
) -> list[Section]:
    """Draw images of the training split and several visits of each; nothing where the objective takes no second view.

    Args:
        config: The run.
        objective: What it trains, with the views that it wants.
        items: Training split.
        partners: What finds a row's second image.
    """
    if objective.views.images < 2:
        return []
    rows = np.random.default_rng(config.train.seed).permutation(len(items))[:SHOWN].tolist()
    few = replace(config, data=replace(config.data, cache_mb=0))  # a cache holds all images of the split
    collator, settings = TrainingCollator(training_collator(few, objective, items)), config.model.image_settings
    visited = [items.visit(row, 0) for row in rows]
    if partners is not None:
        visited = [partners.joined(item, row, 0) for item, row in zip(visited, rows, strict=True)]
    batch, seen = collator(visited), []
    for draw in range(DRAWS):
        rng = BatchRNG(config.train.seed, draw, size=len(rows))
        found = augmented(
            batch,
            config.train,
            None,
            rng,
            size=(settings.height, settings.width),
            views=objective.views,
            progress=draw / max(1, DRAWS - 1),
        )
        assert found.pixels is not None
        seen += [found.pixels, *found.more_views]
    lines, images = [], {}
    for place, row in enumerate(rows):
        name = f"views_{place + 1}.png"
        views = [Framed(_image(view[place]), False, "") for view in seen]
        images[name] = draw_strip([views], query=items.images[row])
        lines.append(f"![views](report/{name})")
    said = f"At the left an image of the training split, behind it {len(seen)} views of it as training draws them."
    return [Section("views", "Views", "\n\n".join([said, *lines]), {}, images)]


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.clamp(0, 255).round().byte().permute(1, 2, 0).numpy())
