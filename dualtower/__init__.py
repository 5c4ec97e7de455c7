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
    from dualtower.data.cards import load_card as load_card
    from dualtower.data.loading import load_items as load_items
    from dualtower.data.transforms.attributes import AttributesConfig as AttributesConfig
    from dualtower.data.transforms.images import ImageSettings as ImageSettings
    from dualtower.evaluation.config import EvaluationConfig as EvaluationConfig
    from dualtower.evaluation.evaluator import evaluate as evaluate
    from dualtower.hub.model_card import ModelCard as ModelCard
    from dualtower.launcher import launch as launch
    from dualtower.losses import LossConfig as LossConfig
    from dualtower.models.config import ModelConfig as ModelConfig
    from dualtower.models.dual_tower import DualTower as DualTower
    from dualtower.models.heads import AttributeEncoderConfig as AttributeEncoderConfig
    from dualtower.models.heads import DecoderConfig as DecoderConfig
    from dualtower.models.heads import FusionConfig as FusionConfig
    from dualtower.models.heads import RerankerConfig as RerankerConfig
    from dualtower.models.towers import ImageTowerConfig as ImageTowerConfig
    from dualtower.models.towers import TextTowerConfig as TextTowerConfig
    from dualtower.objectives.config import MatchingConfig as MatchingConfig
    from dualtower.objectives.config import ReconstructionConfig as ReconstructionConfig
    from dualtower.objectives.config import SelfSupervisedConfig as SelfSupervisedConfig
    from dualtower.objectives.config import TaskConfig as TaskConfig
    from dualtower.training.config import DataConfig as DataConfig
    from dualtower.training.config import RunConfig as RunConfig
    from dualtower.training.config import TrainConfig as TrainConfig
    from dualtower.training.run import run as run
    from dualtower.types import Batch as Batch
    from dualtower.types import Embeddings as Embeddings
    from dualtower.types import Item as Item

_HOMES = {
    "AttributeEncoderConfig": "models.heads",
    "AttributesConfig": "data.transforms.attributes",
    "Batch": "types",
    "DataConfig": "training.config",
    "DecoderConfig": "models.heads",
    "DualTower": "models.dual_tower",
    "Embeddings": "types",
    "EvaluationConfig": "evaluation.config",
    "FusionConfig": "models.heads",
    "ImageSettings": "data.transforms.images",
    "ImageTowerConfig": "models.towers",
    "LossConfig": "losses",
    "MatchingConfig": "objectives.config",
    "ModelCard": "hub.model_card",
    "ModelConfig": "models.config",
    "Item": "types",
    "ReconstructionConfig": "objectives.config",
    "RerankerConfig": "models.heads",
    "RunConfig": "training.config",
    "SelfSupervisedConfig": "objectives.config",
    "TaskConfig": "objectives.config",
    "TextTowerConfig": "models.towers",
    "TrainConfig": "training.config",
    "evaluate": "evaluation",
    "launch": "launcher",
    "load_card": "data.cards",
    "load_items": "data.loading",
    "run": "training.run",
}

__all__ = [
    "AttributeEncoderConfig",
    "AttributesConfig",
    "Batch",
    "DataConfig",
    "DecoderConfig",
    "DualTower",
    "Embeddings",
    "EvaluationConfig",
    "FusionConfig",
    "ImageSettings",
    "ImageTowerConfig",
    "Item",
    "LossConfig",
    "MatchingConfig",
    "ModelCard",
    "ModelConfig",
    "ReconstructionConfig",
    "RerankerConfig",
    "RunConfig",
    "SelfSupervisedConfig",
    "TaskConfig",
    "TextTowerConfig",
    "TrainConfig",
    "__version__",
    "evaluate",
    "launch",
    "load_card",
    "load_items",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dualtower' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dualtower.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
