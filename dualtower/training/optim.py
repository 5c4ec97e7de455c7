"""Parameter groups, the optimizer, and what happens to the learning rates while a run goes on."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import timm.optim
import torch
from torch import nn

from dualtower.errors import UnknownName
from dualtower.objectives.base import Objective
from dualtower.training.budget import learning_rate_factor
from dualtower.training.config import TrainConfig

__all__ = [
    "create_optimizer",
    "freeze_locked",
    "parameter_groups",
    "resting_parts",
    "set_learning_rates",
    "set_modes",
]

MATRICES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)
"""Layers whose weights are linear maps, which is what Muon makes orthogonal steps for."""


def parameter_groups(objective: Objective, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by part, depth and whether they decay: the model's, then the objective's own.

    Matrices and kernels decay; norms, biases, the scale and the bias of the similarity do not. Each group remembers
    its `part` (image_tower, text_head, logit_scale ... or an own part's name) and its `peak_lr`, from which every
    step's rate is computed. A Muon optimizer is told which groups are not its own: embeddings and whatever is no linear
    map go to AdamW.
    """
    muon, model = "muon" in config.optimizer, objective.model
    rates = {"image_tower": config.image_lr, "text_tower": config.text_lr}
    maps = {id(p) for m in objective.modules() if isinstance(m, MATRICES) for p in m.parameters(recurse=False)}
    of_model = ((name, p, config.layer_decay ** model.layers_above(name)) for name, p in model.named_parameters())
    own = ((name, p, objective.lr_factors.get(name.split(".")[0], 1.0)) for name, p in objective.own_parameters())
    groups: dict[tuple[str, float, bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter, factor in itertools.chain(of_model, own):
        if parameter.requires_grad:
            part = name.split(".")[0]
            fallback = muon and (parameter.ndim < 2 or id(parameter) not in maps)
            peak = config.adamw_lr if fallback else rates.get(part)
            lr = (config.lr if peak is None else peak) * factor
            groups[part, lr, parameter.ndim > 1, fallback].append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr,
            "peak_lr": lr,
            "part": part,
            "weight_decay": config.weight_decay if decays else 0.0,
            **({"use_fallback": fallback} if muon else {}),
        }
        for (part, lr, decays, fallback), parameters in groups.items()
    ]


def create_optimizer(objective: Objective, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer named in the config.

    Raises:
        UnknownName: timm has no optimizer of that name.
    """
    known = timm.optim.list_optimizers()
    if config.optimizer not in known:
        raise UnknownName("optimizer", config.optimizer, known)
    groups = parameter_groups(objective, config)
    extra = {"betas": (0.9, config.beta2)} if "adam" in config.optimizer or "muon" in config.optimizer else {}
    return timm.optim.create_optimizer_v2(
        groups, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, **extra
    )


def freeze_locked(objective: Objective, config: TrainConfig) -> None:
    """Take what is locked for the whole run out of the graph; the optimizer never hears of it.

    Args:
        objective: Its model has parts that it gives no gradient.
        config: Which towers are locked.
    """
    frozen = resting_parts(config, 1.0, objective.idle)
    for name, parameter in objective.model.named_parameters():
        if name.split(".")[0] in frozen:
            parameter.requires_grad_(False)


def resting_parts(config: TrainConfig, progress: float, idle: Collection[str] = ()) -> frozenset[str]:
    """Parts of the model that do not learn at this point of the budget: locked towers, and what the objective idles."""
    locks = {"image_tower": config.lock_image, "text_tower": config.lock_text}
    return frozenset(name for name, share in locks.items() if progress < share or share >= 1) | frozenset(idle)


def set_modes(objective: Objective, resting: Collection[str]) -> None:
    """Put all into training mode but what rests of the model: dropout and batch statistics must not move that."""
    objective.train()
    for name, part in objective.model.named_children():
        if name in resting:
            part.eval()


def set_learning_rates(optimizer: torch.optim.Optimizer, config: TrainConfig, progress: float) -> float:
    """Set every group's rate for this point of the budget.

    Returns:
        The rate of a group whose peak rate is `lr`, for the log.
    """
    factor = learning_rate_factor(progress, warmup=config.warmup, final=config.final_lr)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return config.lr * factor
