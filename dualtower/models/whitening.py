"""A head in closed form: features are centered and whitened, so that no direction of them drowns the others.

Jégou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and whitening" (ECCV
2012). The features of a self-supervised tower lie along a few strong directions that say little of what is shown; a
cosine sees hardly anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dualtower.errors import ConfigError
from dualtower.models.dual_tower import DualTower
from dualtower.models.heads import DecoderConfig
from dualtower.models.heads.projection import ProjectionHead

__all__ = ["RIDGE", "image_features", "image_tower_alone", "whitened", "whitening"]

RIDGE = 0.01
"""Share of the mean variance that is added to every direction, so that noise is not magnified without end."""


def image_tower_alone(
    model: DualTower, *, decoder: DecoderConfig | None = None, stage: int | None = None, grid: int | None = None
) -> DualTower:
    """The image tower of a model without a head on it: its embeddings are the tower's features.

    The weights are copies.

    Args:
        model: Any with an image tower.
        decoder: What draws images of its features; that of the model keeps its weights, another begins anew.
        stage: Of which stage the features are; default the model's.
        grid: By how many cells per side they are pooled; default the model's.

    Raises:
        ConfigError: The model has no image tower.
    """
    model.config.require("image", "an image tower alone")
    image = model.config.image
    assert image is not None
    config = replace(
        model.config,
        text=None,
        image=replace(image, stage=stage or image.stage, grid=grid or image.grid),
        reranker=None,
        fusion=None,
        decoder=decoder,
        head="none",
        head_norm="none",
        head_dropout=0.0,
    )
    alone = DualTower(config)
    stays = ("image_tower.", "decoder.") if decoder == model.config.decoder else ("image_tower.",)
    kept = {name: value for name, value in model.state_dict().items() if name.startswith(stays)}
    alone.load_state_dict(alone.state_dict() | kept)
    return alone.to(model.device).train(model.training)


def image_features(
    model: DualTower, images: Sequence[Any], *, batch_size: int = 256, progress: bool = False
) -> np.ndarray:
    """What the image tower of a model without a head makes of images, ``[N, W]``, of no particular length.

    Raises:
        BrokenImage: An image cannot be decoded.
    """
    bare = copy.copy(model)
    bare.config = replace(model.config, similarity="dot")  # under which embeddings keep their length
    return bare.encode_image(images, batch_size=batch_size, progress=progress)


def whitened(model: DualTower, features: np.ndarray) -> DualTower:
    """The image tower of a model under a head that whitens its features.

    Args:
        model: Without a head (`image_tower_alone`).
        features: What its tower makes of images like those that are to be embedded, ``[N, W]``, N > 1; no label of them
            is needed.

    Raises:
        ConfigError: There are fewer than two images.
    """
    mean, deviation, directions = whitening(features)
    config = replace(model.config, head="linear", head_norm="batch", embed_dim=features.shape[1])
    made = DualTower(config)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("image_head")}
    made.load_state_dict(made.state_dict() | own)
    head = made.image_head
    assert isinstance(head, ProjectionHead)
    norm, matrix = head.layers[0], head.layers[-1]
    assert isinstance(norm, torch.nn.BatchNorm1d) and isinstance(matrix, torch.nn.Linear)
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(torch.from_numpy(mean))
        norm.running_var.copy_(torch.from_numpy(deviation**2 - norm.eps))
        matrix.weight.copy_(torch.from_numpy(directions.T))
    return made.to(model.device).eval()


def whitening(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How to whiten vectors: ``(x - mean) / deviation @ directions`` has (nearly) the identity for its covariance.

    Args:
        vectors: float ``[N, W]``, N > 1.

    Returns:
        Mean ``[W]``, deviation ``[W]`` (with a floor under it) and directions ``[W, W]``, float64.

    Raises:
        ConfigError: There are fewer than two vectors.
    """
    if len(vectors) < 2:
        raise ConfigError(f"{len(vectors)} images do not say in which directions features differ; give two or more")
    wide = vectors.astype(np.float64)
    mean, variance = wide.mean(0), wide.var(0)
    deviation = np.sqrt(variance + max(1e-4, 1e-3 * variance.mean()))
    standard = (wide - mean) / deviation
    variances, directions = np.linalg.eigh(standard.T @ standard / len(standard))
    floor = RIDGE * max(float(variances.mean()), 1e-6)
    return mean, deviation, directions / np.sqrt(variances.clip(min=0) + floor)
