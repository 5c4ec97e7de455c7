"""dualtower trains, measures and serves dual-tower text-image product retrieval.

The names below are loaded when they are first used, so ``import dualtower`` is quick::

    from dualtower import DualTower

    model = DualTower.from_pretrained("runs/fashion/model")
    scores = model.similarity(model.encode_image(["mug.jpg"]), model.encode_text(["blue striped mug"]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dualtower.version import __version__

if TYPE_CHECKING:
    from dualtower.data.attributes import AttributesConfig as AttributesConfig
    from dualtower.data.cards import load_card as load_card
    from dualtower.data.images import ImageSettings as ImageSettings
    from dualtower.data.loading import load_products as load_products
    from dualtower.evaluation.measure import evaluate as evaluate
    from dualtower.fusion import FusionConfig as FusionConfig
    from dualtower.fusion import RerankerConfig as RerankerConfig
    from dualtower.launcher import launch as launch
    from dualtower.losses import LossConfig as LossConfig
    from dualtower.model import DualTower as DualTower
    from dualtower.model_card import ModelCard as ModelCard
    from dualtower.model_config import ModelConfig as ModelConfig
    from dualtower.towers import ImageTowerConfig as ImageTowerConfig
    from dualtower.towers import TextTowerConfig as TextTowerConfig
    from dualtower.training.config import DataConfig as DataConfig
    from dualtower.training.config import EvaluationConfig as EvaluationConfig
    from dualtower.training.config import MatchingConfig as MatchingConfig
    from dualtower.training.config import RunConfig as RunConfig
    from dualtower.training.config import TaskConfig as TaskConfig
    from dualtower.training.config import TrainConfig as TrainConfig
    from dualtower.training.run import run as run
    from dualtower.types import Batch as Batch
    from dualtower.types import Embeddings as Embeddings
    from dualtower.types import Product as Product

_HOMES = {
    "AttributesConfig": "data.attributes",
    "Batch": "types",
    "DataConfig": "training.config",
    "DualTower": "model",
    "Embeddings": "types",
    "EvaluationConfig": "training.config",
    "FusionConfig": "fusion",
    "ImageSettings": "data.images",
    "ImageTowerConfig": "towers",
    "LossConfig": "losses",
    "MatchingConfig": "training.config",
    "ModelCard": "model_card",
    "ModelConfig": "model_config",
    "Product": "types",
    "RerankerConfig": "fusion",
    "RunConfig": "training.config",
    "TaskConfig": "training.config",
    "TextTowerConfig": "towers",
    "TrainConfig": "training.config",
    "evaluate": "evaluation",
    "launch": "launcher",
    "load_card": "data.cards",
    "load_products": "data.loading",
    "run": "training.run",
}

__all__ = [
    "AttributesConfig",
    "Batch",
    "DataConfig",
    "DualTower",
    "Embeddings",
    "EvaluationConfig",
    "FusionConfig",
    "ImageSettings",
    "ImageTowerConfig",
    "LossConfig",
    "MatchingConfig",
    "ModelCard",
    "ModelConfig",
    "Product",
    "RerankerConfig",
    "RunConfig",
    "TaskConfig",
    "TextTowerConfig",
    "TrainConfig",
    "__version__",
    "evaluate",
    "launch",
    "load_card",
    "load_products",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dualtower' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dualtower.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
