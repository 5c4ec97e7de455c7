"""Matching and fused products: which negatives are drawn, what the losses are, and that ranks do not matter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import factories
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from processes import torchrun
from test_trainer import items, run_config
from torch.nn import functional as F

from dualtower import DualTower, FusionConfig, LossConfig, MatchingConfig, RerankerConfig, TaskConfig
from dualtower.config import to_dict
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.errors import ConfigError
from dualtower.losses import build_loss
from dualtower.objectives.contrastive import joined_loss
from dualtower.objectives.matching import Matching
from dualtower.objectives.product import ProductFused
from dualtower.training.building import build_objective, build_trainer
from dualtower.types import Batch

SCRIPT = Path(__file__).with_name("distributed_objectives.py")
RERANKER = RerankerConfig(layers=1, width=16, heads=2, dropout=0.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_gradients_equal_one_process_on_the_joined_batch(processes: int) -> None:
    report = json.loads(torchrun(SCRIPT, processes=processes).stdout.splitlines()[-1])
    assert report["world_size"] == processes and len(report["errors"]) > 80
    assert not {name: error for name, error in report["errors"].items() if not error <= 1e-9}


def batch(model: DualTower, codes: list[int]) -> Batch:
    texts = factories.TITLES[: len(codes)]
    pixels = torch.stack([torch.from_numpy(tiny_pixels(i)) for i in range(len(codes))])
    return Batch(tuple(texts), torch.tensor(codes), pixels=pixels, tokens=model.collator().tokens(texts))


def tiny_pixels(seed: int) -> np.ndarray:
    return np.asarray(factories.photo(seed)).transpose(2, 0, 1).copy()


def matching(negatives: int = 3, temperature: float = 1.0) -> Matching:
    model = factories.model(reranker=RERANKER)
    torch.nn.init.normal_(model.reranker.score[-1].weight)
    return Matching(model, MatchingConfig(negatives, temperature), contrast=build_loss(LossConfig()), contrastive=None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_negatives_are_never_of_the_same_product(temperature: float) -> None:
    objective = matching(4, temperature)
    codes = torch.tensor([1, 1, 1, 1, 2, 3, 4, 5])
    same, own = codes.unsqueeze(1) == codes, torch.arange(8)
    for seed in range(20):
        logits = 10 * same.float() + torch.randn(8, 8)  # the towers rate the own product highest
        drawn = objective._negatives(logits, same, own, BatchRNG(seed, size=8))
        assert drawn.shape == (8, 4)
        assert not same[own.unsqueeze(1), drawn].any()
        assert all(len(set(row.tolist())) == 4 for row in drawn)


def test_hard_negatives_are_drawn_like_the_softmax_of_the_scores() -> None:
    objective = matching(1)
    logits = torch.tensor([[0.0, 2.0, 1.0, 0.0]]).expand(4, 4)
    same = torch.eye(4, dtype=torch.bool)
    draws = [objective._negatives(logits, same, torch.arange(1), BatchRNG(s, size=4)).item() for s in range(3000)]
    shares = torch.bincount(torch.tensor(draws), minlength=4) / 3000
    torch.testing.assert_close(shares[1:], logits[0, 1:].softmax(0), atol=0.03, rtol=0)


def test_the_loss_is_matching_and_contrast() -> None:
    objective = matching(2, temperature=0)
    rows = batch(objective.model, [1, 2, 3, 4])
    outputs = objective(rows, BatchRNG(0, size=4))
    seen, reranker = objective.model(rows), objective.model.reranker
    text, image = reranker.text_states(seen.text_features), reranker.image_states(seen.image_features)
    towers = seen.scale * seen.text @ seen.image.T
    hardest = towers.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf).topk(2).indices
    wanted = torch.stack([reranker(text, image), *(reranker(text, image.take(hardest[:, k])) for k in range(2))], 1)
    torch.testing.assert_close(outputs.text_to_image, wanted)
    right, scale = torch.arange(4), reranker.logit_scale.exp()
    whole = scale * text.embedding @ image.embedding.T
    contrast = (F.cross_entropy(whole, right) + F.cross_entropy(whole.T, right)) / 2
    first = torch.zeros(4, dtype=torch.int64)
    match = (F.cross_entropy(outputs.text_to_image, first) + F.cross_entropy(outputs.image_to_text, first)) / 2
    torch.testing.assert_close(objective.loss(outputs, rows), match + contrast)


@pytest.mark.parametrize("codes", [[1, 1, 1], [7]])
def test_a_batch_without_negatives_adds_nothing(codes: list[int]) -> None:
    objective = matching()
    rows = batch(objective.model, codes)
    outputs = objective(rows, BatchRNG(0, size=len(codes)))
    loss = objective.loss(outputs, rows) - joined_loss(objective._contrast, outputs.own, rows)
    loss.backward()
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    assert loss.item() == 0 and all(torch.isfinite(g).all() and (g == 0).all() for g in gradients)


def test_objectives_ask_for_their_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="matching trains a re-ranker"):
        Matching(factories.model(), MatchingConfig(), contrast=build_loss(LossConfig()), contrastive=None)
    with pytest.raises(ConfigError, match="trains a fusion"):
        ProductFused(
            factories.model(),
            TaskConfig(),
            classes={},
            log_shares={},
            pair_loss=build_loss(LossConfig()),
            contrastive=None,
        )
    with pytest.raises(ConfigError, match=r"objective 'matching' with model\.reranker = None"):
        replace(run_config(tmp_path), objective="matching")
    with pytest.raises(ConfigError, match=r"task\.weights has 1 numbers for 2"):
        TaskConfig(heads=("a", "b"), weights=(1.0,))


def test_names_may_be_given_with_commas() -> None:
    config = TaskConfig(heads=("articleType,baseColour", "usage"))
    assert config.heads == ("articleType", "baseColour", "usage")
    assert to_dict(config)["heads"] == ["articleType", "baseColour", "usage"]


def test_labels_join_their_attributes() -> None:
    model = factories.model(fusion=FusionConfig(width=8))
    config = TaskConfig(labels=("a", "b"))
    classes = {"head": ["x", "y"], "a": ["0", "1"], "b": ["0", "1", "2"]}
    objective = ProductFused(
        model, config, classes=classes, log_shares={}, pair_loss=build_loss(LossConfig()), contrastive=None
    )
    labels = torch.tensor([[0, 0, 2], [1, 1, 0], [0, -1, 0], [1, 0, 2], [0, 1, -1]])
    assert objective._joint_label(labels).tolist() == [2, 3, -1, 2, -1]


def test_the_weights_of_a_task_weigh_its_losses() -> None:
    model = factories.model(fusion=FusionConfig(width=8))
    rows = batch(model, [0, 0, 1, 1, 2, 2, 3, 3])

    def loss(**weights: float) -> torch.Tensor:
        settings = TaskConfig(temperature=0.1, **weights)
        made = ProductFused(
            model, settings, classes={}, log_shares={}, pair_loss=build_loss(LossConfig()), contrastive=None
        ).eval()
        return made.loss(made(rows, BatchRNG(0, size=8)), rows)

    own, alike = loss(identity=1.0, supervised=0.0), loss(identity=0.0, supervised=1.0)
    assert own > 0.1 and alike > 0.1 and abs(own - alike) > 1e-3
    torch.testing.assert_close(loss(identity=0.5, supervised=2.0), 0.5 * own + 2 * alike)


def test_a_batch_without_a_known_class_still_has_a_gradient_for_every_head() -> None:
    """The ranks of a training wait for a gradient of every parameter; the head of a rare attribute must give one."""
    model = factories.model(fusion=FusionConfig(width=8, tasks={"rare": ["x", "y"]}))
    objective = ProductFused(
        model,
        TaskConfig(heads=("rare",)),
        classes={"rare": ["x", "y"]},
        log_shares={"rare": torch.zeros(2)},
        pair_loss=build_loss(LossConfig()),
        contrastive=None,
    )
    for known in ([-1] * 8, [0, 1, -1, 1, -1, -1, 0, 0]):
        rows = replace(batch(model, list(range(8))), labels=torch.tensor(known).unsqueeze(1))
        objective.zero_grad()
        outputs = objective(rows, BatchRNG(0, size=8))
        loss = objective.loss(outputs, rows)
        loss.backward()
        gradients = [parameter.grad for name, parameter in model.fusion.named_parameters() if "task" in name]
        assert gradients and all(g is not None and g.isfinite().all() for g in gradients)
        assert any(g.any() for g in gradients) == (max(known) >= 0)
    target = torch.tensor(known).repeat(2)
    head = F.cross_entropy(outputs.tasks["rare"], target, ignore_index=-1)
    rest = objective.loss(outputs, replace(rows, labels=torch.full((8, 1), -1)))
    torch.testing.assert_close(loss - rest, head)


def test_locked_towers_leave_nothing_but_the_head_to_train(tmp_path: Path) -> None:
    model = factories.model(reranker=RERANKER, head_norm="batch")
    config = run_config(tmp_path, steps=3, lock_text=1, lock_image=1)
    config = replace(config, objective="matching", model=model.config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_trainer(config, model, items(), accelerator=Accelerator(cpu=True)).fit()
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"reranker"}


def test_build_objective_keeps_trained_towers_in_shape(tmp_path: Path) -> None:
    model = factories.model(reranker=RERANKER)
    config = replace(run_config(tmp_path), objective="matching", model=model.config)
    free = build_objective(config, model, items())
    locked = build_objective(replace(config, train=replace(config.train, lock_text=1, lock_image=1)), model, items())
    assert free._contrastive is not None and locked._contrastive is None
    assert "text_tower" in locked.idle and "text_tower" not in free.idle
