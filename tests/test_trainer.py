"""The training loop: it learns, obeys its config, and N processes do what one does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from accelerate import Accelerator
from processes import torchrun

from dualtower import DualTower, Item, LossConfig, RunConfig, TrainConfig
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.errors import ConfigError, NonFiniteLoss, UnknownName
from dualtower.losses import build_loss
from dualtower.objectives.contrastive import Contrastive
from dualtower.training.batches import augmented
from dualtower.training.building import build_trainer
from dualtower.training.config import DataConfig
from dualtower.training.metric_logger import read_history
from dualtower.training.optim import parameter_groups
from dualtower.training.run import _remove_run
from dualtower.training.trainer import Trainer

ROWS = 48


def items() -> ItemDataset:
    """Every title twice, with images of its own."""
    rows = [
        Item(str(i), factories.TITLES[i % 24], (factories.TITLES[i % 24],), factories.png(factories.photo(i % 24)))
        for i in range(ROWS)
    ]
    return ItemDataset.from_rows(rows)


def run_config(out: Path, model: DualTower | None = None, **train: Any) -> RunConfig:
    options = {"steps": 4, "batch_size": 16, "precision": "fp32", "trackers": (), "checkpoint_minutes": None}
    return RunConfig(
        model=(model or factories.model()).config,
        data=DataConfig(workers=0),
        train=TrainConfig(**{**options, **train}),
        out=out,
    )


def trainer(out: Path, model: DualTower | None = None, *, validate: Any = None, **train: Any) -> Trainer:
    model = model or factories.model()
    config = run_config(out, model, **train)
    return build_trainer(config, model, items(), accelerator=Accelerator(cpu=True), validate=validate)


def contrastive(model: DualTower) -> Contrastive:
    return Contrastive(model, build_loss(LossConfig()))


def test_it_learns(tmp_path: Path) -> None:
    made = trainer(tmp_path, factories.model("textcnn", "resnet"), steps=250, lr=3e-3, augmentation="none")
    assert made.fit().ended == "budget"
    losses = [line["loss"] for line in read_history(tmp_path / "history.jsonl")]
    # 16 rows of 24 products: log 16 at chance
    last = float(made._forward(next(made._groups()).batches[0], 0, (40, 30))[0].detach())
    assert losses[0] > 2.4 and last < 1.0


@pytest.mark.parametrize("text", ["bert", "lstm", "textcnn"])
@pytest.mark.parametrize("image", ["resnet", "vit", "swin"])
def test_every_pair_of_towers_trains(text: str, image: str, tmp_path: Path) -> None:
    model = factories.model(text, image)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer(tmp_path, model, steps=2, image_size_schedule=(0.8, 1.0)).fit()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"image_tower", "text_tower", "image_head", "text_head", "logit_scale"} <= moved


@pytest.mark.parametrize("loss", ["infonce", "siglip", "triplet", "hinge"])
def test_every_loss_trains(loss: str, tmp_path: Path) -> None:
    model = factories.model(init_bias=-5.0)
    config = replace(run_config(tmp_path, model), loss=LossConfig(name=loss))
    build_trainer(config, model, items(), accelerator=Accelerator(cpu=True)).fit()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "nmuon"])
def test_optimizers_by_name(optimizer: str, tmp_path: Path) -> None:
    assert trainer(tmp_path, optimizer=optimizer, steps=2).fit().position.step == 2


def test_muon_leaves_embeddings_norms_and_biases_to_adamw(tmp_path: Path) -> None:
    train = TrainConfig(steps=1, optimizer="nmuon", lr=5e-3, adamw_lr=1e-3)
    model = factories.model("bert", "vit")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(contrastive(model), train):
        rate = 1e-3 if group["use_fallback"] else 5e-3
        assert group["peak_lr"] == rate
        for parameter in group["params"]:
            name = names[id(parameter)]
            is_matrix = parameter.ndim > 1 and "embedding" not in name and not name.endswith(("_embed", "_token"))
            assert group["use_fallback"] != is_matrix, name
    with pytest.raises(ConfigError, match="adamw_lr is for a Muon optimizer"):
        TrainConfig(steps=1, adamw_lr=1e-3)


def test_unknown_optimizer_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'adamw'"):
        trainer(tmp_path, optimizer="admw")


def test_locked_tower_keeps_weights_and_statistics(tmp_path: Path) -> None:
    model = factories.model()
    before = {k: v.clone() for k, v in model.image_tower.state_dict().items()}
    trainer(tmp_path, model, lock_image=1.0).fit()
    assert all(torch.equal(v, before[k]) for k, v in model.image_tower.state_dict().items())
    assert not any(p.requires_grad for p in model.image_tower.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "nmuon"])
def test_warm_up_lock_ends(optimizer: str, tmp_path: Path) -> None:
    model = factories.model()
    before = {k: v.clone() for k, v in model.image_tower.named_parameters()}
    made = trainer(tmp_path, model, lock_image=0.5, steps=4, warmup=0.0, optimizer=optimizer)
    groups = made._groups()
    for step in range(3):
        made._step(next(groups), step / 4)
        still = all(torch.equal(p, before[k]) for k, p in model.image_tower.named_parameters())
        assert still == (step < 2), f"after step {step}"


def test_a_locked_tower_costs_no_backward_pass_and_is_in_no_norm(tmp_path: Path) -> None:
    made = trainer(tmp_path, lock_image=0.5, steps=4)
    tower, norms = made.unwrapped.image_tower, []
    graphs: list[bool] = []
    tower.register_forward_hook(lambda module, given, features: graphs.append(features.pooled.requires_grad))
    step = made.optimizer.step

    def note(*given: Any) -> None:
        norms.append([p.grad is not None for p in tower.parameters()])
        step(*given)

    made.optimizer.step = note
    made.fit()
    assert graphs == [False, False, True, True]
    assert not any(norms[0] + norms[1]) and all(norms[2] + norms[3])


@pytest.mark.parametrize("stopped_at", [1, 2, 3, 4])
def test_resume_in_and_after_a_lock_is_bit_exact(stopped_at: int, tmp_path: Path) -> None:
    options = {
        "steps": 5,
        "lock_image": 0.5,
        "ema": 0.5,
        "optimizer": "nmuon",
        "checkpoint_steps": 1,
        "max_checkpoints": 9,
    }
    whole = trainer(tmp_path / "whole", **options)
    whole.fit()
    saved = f"step_{stopped_at:08d}.pt"
    (tmp_path / "part" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "checkpoints" / saved, tmp_path / "part" / "checkpoints" / saved)
    model = factories.model(seed=1)
    config = replace(run_config(tmp_path / "part", model, **options), resume=True)
    resumed = build_trainer(config, model, items(), accelerator=Accelerator(cpu=True))
    assert resumed.position.step == stopped_at
    resumed.fit()
    for mine, wanted in ((resumed.unwrapped, whole.unwrapped), (resumed.ema.module, whole.ema.module)):
        assert all(torch.equal(mine.state_dict()[name], value) for name, value in wanted.state_dict().items())


def test_groups_have_their_own_rates_and_decay() -> None:
    model = factories.model("bert", "vit")
    config = TrainConfig(steps=1, lr=1.0, text_lr=0.1, image_lr=0.01, layer_decay=0.5, weight_decay=0.3)
    groups = parameter_groups(contrastive(model), config)
    names = {id(p): n for n, p in model.named_parameters()}
    rate = {names[id(p)]: (g["peak_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rate) == len(list(model.parameters()))
    assert rate["logit_scale"] == (1.0, 0.0)
    assert all(rate[n] == (1.0, 0.3) for n in rate if n.startswith("image_head.") and n.endswith("weight"))
    text = [n for n in rate if n.startswith("text_tower.encoder.encoder.layer.1.") and n.endswith("dense.weight")]
    assert text and all(rate[n][0] == pytest.approx(0.05) for n in text)
    deeper = [n for n in rate if n.startswith("text_tower.encoder.encoder.layer.0.")]
    assert deeper and all(rate[n][0] == pytest.approx(0.025) for n in deeper)
    assert all(decay == 0 for n, (_, decay) in rate.items() if n.endswith("bias"))


def test_average_of_weights_is_what_is_kept(tmp_path: Path) -> None:
    made = trainer(tmp_path, ema=0.5, steps=3)
    kept = made.fit().model.state_dict()
    assert made.ema is not None
    average, last = made.ema.module.model.state_dict(), made.unwrapped.state_dict()
    assert all(torch.equal(kept[k], average[k]) for k in kept)
    assert not torch.equal(kept["logit_scale"], last["logit_scale"])


def test_patience_stops_and_the_best_weights_come_back(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    made = trainer(tmp_path, steps=100, patience=2, validate=lambda m: {"score": next(scores)})
    outcome = made.fit()
    assert (outcome.ended, outcome.position.best, outcome.position.step) == ("patience", 0.5, 12)
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == 6
    assert all(torch.equal(v, best["model"][k]) for k, v in outcome.model.state_dict().items())
    lines = [line["validation"] for line in read_history(tmp_path / "history.jsonl") if "validation" in line]
    assert [line["score"] for line in lines] == [0.1, 0.5, 0.4, 0.3]


def test_not_a_number_stops_with_step_and_last_good_checkpoint(tmp_path: Path) -> None:
    model = factories.model()
    made = trainer(tmp_path, model, steps=10, checkpoint_steps=2)
    step = made._step

    def poisoned(group: Any, progress: float) -> None:
        if made.position.step == 5:
            with torch.no_grad():
                model.logit_scale.fill_(torch.nan)
        step(group, progress)

    made._step = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLoss, match=r"nan at step 5; the last good checkpoint is .*step_00000004\.pt"):
        made.fit()
    good = torch.load(tmp_path / "checkpoints" / "step_00000004.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in good["model"].values())


def test_accumulation_is_the_mean_of_the_parts(tmp_path: Path) -> None:
    """One step over two batches moves the weights by the mean of their gradients."""
    made, other = (
        trainer(
            tmp_path,
            without_dropout(),
            accumulate=accumulate,
            optimizer="sgd",
            lr=0.1,
            augmentation="none",
            clip_norm=None,
            warmup=0.0,
        )
        for accumulate in (2, 1)
    )
    group = next(made._groups())
    made._step(group, 0.0)
    assert (len(group.batches), made.loader_state["batch"], made.position.step) == (2, 2, 1)
    other.unwrapped.train()
    sum(other._forward(batch, 0, progress=0.0)[0] for batch in group.batches).div(2).backward()
    other.optimizer.step()
    for (name, a), b in zip(made.unwrapped.named_parameters(), other.unwrapped.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def without_dropout() -> DualTower:
    config = factories.config("textcnn", "vit")
    torch.manual_seed(0)
    return DualTower.create(replace(config, text=replace(config.text, dropout=0.0)), factories.tokenizer())


def test_batch_larger_than_the_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--train\.batch-size 48 or less"):
        trainer(tmp_path, batch_size=64)


def test_token_dropout_hides_words_but_no_special_tokens(tmp_path: Path) -> None:
    made = trainer(tmp_path, token_dropout=0.5)
    batch = next(made._groups()).batches[0]

    seen = augmented(batch, made.config.train, made.unwrapped.tokenizer, BatchRNG(1, size=16), size=(40, 30))
    hidden = seen.tokens["input_ids"]
    ids, special = batch.tokens["input_ids"], torch.tensor(made.unwrapped.tokenizer.all_special_ids)
    assert torch.equal(hidden[torch.isin(ids, special)], ids[torch.isin(ids, special)])
    words = ~torch.isin(ids, special)
    share = (hidden != ids)[words].float().mean()
    assert 0.3 < share < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("lock", [0.0, 0.5])
def test_two_processes_train_like_one_on_the_joined_batch(lock: float, tmp_path: Path) -> None:
    """Two real gloo ranks of 8 rows end with the weights of one process of 16 rows, also where a lock ends midway."""
    from distributed_training import main  # which trains what this file holds

    script = Path(__file__).parent / "distributed_training.py"
    main(tmp_path, "vit", sync_batchnorm=False, lock_image=lock)
    torchrun(script, tmp_path / "2", "--lock-image", str(lock))
    told = [json.loads((out / "result.json").read_text())["world_size"] for out in (tmp_path, tmp_path / "2")]
    assert told == [1, 2]
    one, two = (torch.load(out / "model.pt", weights_only=True) for out in (tmp_path, tmp_path / "2"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-7, atol=1e-9, msg=name)


def test_overwriting_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    for name in ("config.json", "metrics.json", "model/model.safetensors", "notes.txt", "images/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    _remove_run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "notes.txt"]
