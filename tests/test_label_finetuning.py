"""Fine-tuning with labels: the objective's loss, what its budget trains, and the long tail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from processes import torchrun
from test_label_probe import items
from torch.nn import functional as F

from dualtower import DualTower, TrainConfig
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.errors import ConfigError
from dualtower.evaluation.label_probe import measure_labels
from dualtower.evaluation.label_splits import LabeledSplits, labeled_splits
from dualtower.models.whitening import image_features, image_tower_alone, whitened
from dualtower.objectives.classification import Classification
from dualtower.training import label_finetuning
from dualtower.training.label_finetuning import finetuned, image_model
from dualtower.training.signals import StopRequest
from dualtower.training.trainer import Trainer
from dualtower.types import Batch

SCRIPT = Path(__file__).with_name("distributed_classification.py")


@pytest.fixture(scope="module")
def splits() -> LabeledSplits:
    return labeled_splits(
        items({"red": 40, "green": 20, "blue": 6}),
        items({"red": 8, "green": 8, "blue": 8}, "test", start=1000),
        "color",
    )


def train_config(**more: Any) -> TrainConfig:
    options = {"steps": 6, "batch_size": 16, "precision": "fp32", "augmentation": "none", "lr": 3e-3}
    return TrainConfig(**{**options, **more})


def classification(model: DualTower | None = None, **more: Any) -> Classification:
    options = {"label": "color", "classes": ["blue", "green", "red"], "counts": np.array([6, 20, 40]), **more}
    return Classification(model or factories.model(), **options)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_equal_one_process_on_the_joined_batch(processes: int) -> None:
    report = json.loads(torchrun(SCRIPT, processes=processes).stdout.splitlines()[-1])
    assert report["world_size"] == processes and {"head.weight", "head.bias"} < report["errors"].keys()
    assert not {name: error for name, error in report["errors"].items() if not error <= 1e-9}


def test_the_loss_is_cross_entropy_with_adjusted_logits() -> None:
    torch.manual_seed(0)
    made = classification(logit_adjustment=0.5).eval()
    torch.nn.init.normal_(made.head.weight)
    pixels = torch.stack([torch.from_numpy(np.asarray(factories.photo(i)).transpose(2, 0, 1).copy()) for i in range(4)])
    labels = torch.tensor([[2], [-1], [0], [1]])
    batch = Batch(tuple("abcd"), torch.arange(4), pixels=pixels, labels=labels)
    outputs = made(batch, BatchRNG(0, size=4))
    features = made.model.image_features(pixels).pooled.double()
    features = (features - features.mean(1, keepdim=True)) / (features.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    logits = features @ made.head.weight.double().T + made.head.bias.double()
    torch.testing.assert_close(outputs.logits.double(), logits, rtol=1e-4, atol=1e-4)
    adjusted = logits + 0.5 * torch.tensor([6 / 66, 20 / 66, 40 / 66], dtype=torch.float64).log()
    wanted = F.cross_entropy(adjusted[[0, 2, 3]], torch.tensor([2, 0, 1]))
    assert made.loss(outputs, batch).item() == pytest.approx(wanted.item(), rel=1e-4)
    nothing = replace(batch, labels=torch.full((4, 1), -1))
    loss = made.loss(made(nothing, BatchRNG(0, size=4)), nothing)
    loss.backward()  # ranks wait for a gradient, also where no class is known
    assert loss.item() == 0 and made.head.weight.grad is not None and not made.head.weight.grad.any()


def test_what_it_predicts_is_the_largest_logit_without_adjustment() -> None:
    given = items({"red": 5, "green": 4, "blue": 3})
    torch.manual_seed(0)
    plain, adjusted = classification(), classification(logit_adjustment=9.0)
    adjusted.load_state_dict(plain.state_dict())
    predicted = plain.predict(given, batch_size=5)
    assert predicted.shape == (12,) and np.array_equal(predicted, adjusted.predict(given))
    figures = plain.validate(given, batch_size=12)
    truth = np.array([["blue", "green", "red"].index(color) for color in given.attributes["color"]])
    assert figures["accuracy"] == pytest.approx((predicted == truth).mean()) and figures["score"] == figures["macro_f1"]


@pytest.mark.parametrize(
    ("counts", "message"), [([1, 2], "3 classes with"), ([1, 0, 2], "each class needs one or more")]
)
def test_a_class_without_rows_cannot_be_learned(counts: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        classification(counts=np.array(counts))


def test_a_model_of_texts_alone_has_nothing_to_tune(splits: LabeledSplits) -> None:
    texts = DualTower.create(replace(factories.config("bow"), image=None), factories.tokenizer())
    for make in (lambda: classification(texts), lambda: finetuned(texts, splits, train_config())):
        with pytest.raises(ConfigError, match="no image tower"):
            make()


def test_a_budget_is_needed(splits: LabeledSplits) -> None:
    with pytest.raises(ConfigError, match="fine-tuning needs a budget"):
        finetuned(factories.model(), splits, TrainConfig())


def test_an_image_model_embeds_as_the_dual_tower_does() -> None:
    model = factories.spread_model()
    alone = image_model(model)
    photos = [factories.photo(i) for i in range(3)]
    assert alone.config.modalities == ("image",) and alone.text_tower is None
    np.testing.assert_array_equal(alone.eval().encode_image(photos), model.encode_image(photos))
    alone.image_tower.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Trainer, dict[str, torch.Tensor]]]:
    """Every trainer that is made, with the weights that it begins with."""
    made = []

    class Watched(Trainer):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append((self, {name: value.clone() for name, value in self.objective.state_dict().items()}))

    monkeypatch.setattr(label_finetuning, "Trainer", Watched)
    return made


def test_a_tower_that_embeds_by_an_earlier_stage_is_tuned_whole(splits: LabeledSplits, runs: list) -> None:
    tower = image_tower_alone(factories.model(), stage=-2, grid=2).eval()
    model = whitened(tower, image_features(tower, [factories.photo(i) for i in range(9)]))
    start = image_model(model)
    assert start.config.image.is_whole and start.config.head == "none"
    assert all(torch.equal(value, tower.state_dict()[name]) for name, value in start.state_dict().items())


def test_it_learns_from_the_model_and_leaves_it_as_it_is(splits: LabeledSplits, runs: list) -> None:
    model = factories.spread_model()
    before = model.fingerprint
    predict = finetuned(model, splits, train_config(steps=40), workers=0)
    probe = measure_labels({"tuned": predict}, splits, [1.0], method="finetune", bootstrap=20)
    assert probe.cells[0].metrics["accuracy"].value > 0.8 and model.fingerprint == before
    ((trainer, start),) = runs
    begun = {name.removeprefix("model."): value for name, value in start.items() if "image_tower" in name}
    assert begun and all(torch.equal(model.state_dict()[name], value) for name, value in begun.items())
    after = trainer.objective.state_dict()
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, start[name])}
    assert moved == {"image_tower", "weight", "bias"}  # and no head of the embedding
    assert not trainer.config.out.exists() and trainer.config.train.trackers == ()


def test_from_scratch_begins_with_fresh_weights_of_the_draw(splits: LabeledSplits, runs: list) -> None:
    model = factories.spread_model()
    predict = finetuned(model, splits, train_config(steps=1), scratch=True, workers=0)
    for draw in (0, 1, 1):
        predict(np.arange(len(splits.train)), draw)
    first, second, again = (start["model.image_tower.backbone.conv1.0.weight"] for _, start in runs)
    assert torch.equal(second, again) and not torch.equal(first, second)
    heads = [start["head.weight"] for _, start in runs]
    assert torch.equal(heads[1], heads[2]) and not torch.equal(heads[0], heads[1])


def test_the_same_draw_ends_alike_and_batches_shrink_to_the_rows(splits: LabeledSplits, runs: list) -> None:
    predict = finetuned(
        factories.spread_model(), splits, train_config(batch_size=64, augmentation="product"), workers=0
    )
    rows = np.array([0, 1, 2, 3, 41, 42, 61, 62])  # of all three classes
    assert np.array_equal(predict(rows, 3), predict(rows, 3))
    assert [trainer.config.train.batch_size for trainer, _ in runs] == [8, 8]
    ends = [trainer.objective.state_dict() for trainer, _ in runs]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_the_averaged_weights_are_what_predicts(splits: LabeledSplits, runs: list) -> None:
    predict = finetuned(factories.spread_model(), splits, train_config(ema=0.9), workers=0)
    found = predict(np.arange(len(splits.train)), 0)
    ((trainer, _),) = runs
    assert np.array_equal(found, trainer.ema.module.predict(splits.test))


def test_draws_are_balanced_and_shares_are_those_of_the_draw(splits: LabeledSplits, runs: list) -> None:
    rows = np.arange(len(splits.train))
    for balanced in (None, "color"):
        train = train_config(class_balanced_by=balanced, steps=1)
        finetuned(factories.spread_model(), splits, train, logit_adjustment=1.0, workers=0)(rows, 0)
    shares = []
    for trainer, _ in runs:
        torch.testing.assert_close(trainer.objective.adjustment.exp(), torch.tensor([6 / 66, 20 / 66, 40 / 66]))
        labels = []
        for epoch in range(30):
            trainer.loader.load_state_dict({"epoch": epoch, "batch": 0})
            labels += [batch.labels[:, 0] for batch in trainer.loader]
        shares.append(torch.bincount(torch.cat(labels), minlength=3) / sum(map(len, labels)))
    torch.testing.assert_close(shares[0], torch.tensor([6 / 66, 20 / 66, 40 / 66]), atol=0.02, rtol=0)
    torch.testing.assert_close(shares[1], torch.full((3,), 1 / 3), atol=0.04, rtol=0)


@pytest.mark.parametrize(("adjustment", "named"), [(0.0, "red"), (1.5, "blue")])
def test_logit_adjustment_finds_the_long_tail(adjustment: float, named: str, splits: LabeledSplits) -> None:
    """A tower that sees nothing knows the shares alone, and would call everything by the most frequent class."""
    model = factories.model()
    for parameter in model.image_tower.parameters():
        parameter.data.zero_()
    train = train_config(steps=30, lr=1e-2, lock_image=1.0)
    predict = finetuned(model, splits, train, logit_adjustment=adjustment, workers=0)
    predicted = predict(np.arange(len(splits.train)), 0)
    assert {splits.classes[number] for number in predicted} == {named}


def test_a_signal_stops_the_probe(splits: LabeledSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_to_stop(request: StopRequest) -> StopRequest:
        request.requested = True
        return request

    monkeypatch.setattr(StopRequest, "__enter__", asked_to_stop)
    with pytest.raises(KeyboardInterrupt):
        finetuned(factories.spread_model(), splits, train_config(), workers=0)(np.arange(len(splits.train)), 0)
