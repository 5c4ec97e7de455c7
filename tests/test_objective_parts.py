"""An objective owns what it trains, and the trainer takes any loader: both are trained, saved and resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from accelerate import Accelerator
from momentum import QUEUE, MomentumContrast, Pair, ShardStream, write_shards
from processes import torchrun
from safetensors.torch import load_file
from test_finite import poison_gradient
from test_trainer import ROWS, contrastive, items, run_config
from torch import Tensor
from torch.nn import functional as F

from dualtower import Batch, DualTower, Item
from dualtower.data.batches import Collator
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.errors import CheckpointError, ConfigError, NonFiniteLoss
from dualtower.objectives.base import Objective, Views
from dualtower.training.batches import training_collator
from dualtower.training.building import build_loader
from dualtower.training.loader import ItemLoader
from dualtower.training.optim import parameter_groups
from dualtower.training.trainer import Trainer

SCRIPT = Path(__file__).with_name("distributed_momentum.py")


def trained(out: Path, processes: int, *options: str) -> dict[str, Any]:
    torchrun(SCRIPT, out, "--processes", str(processes), *options, processes=processes)
    return torch.load(out / "end.pt", weights_only=True)


def trainer(objective: Objective, out: Path, rows: ItemDataset | None = None, **train: Any) -> Trainer:
    config, accelerator = run_config(out, objective.model, **train), Accelerator(cpu=True)
    loader = build_loader(config, objective, items() if rows is None else rows, accelerator)
    return Trainer(config, objective, loader, accelerator=accelerator)


def copied(objective: Objective) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in objective.state_dict().items()}


@pytest.mark.slow
def test_two_ranks_train_like_one_on_the_joined_batch(tmp_path: Path) -> None:
    """Also the predictor, the momentum copy, the queue and their averages: all that the objective owns."""
    one, two = (trained(tmp_path / str(n), n, "--augmentation", "none") for n in (1, 2))
    for part in ("objective", "averaged"):
        for name, expected in one[part].items():
            torch.testing.assert_close(two[part][name], expected, rtol=1e-7, atol=1e-9, msg=f"{part}: {name}")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "loader"), [(1, "items"), (2, "stream")])
def test_killed_and_resumed_it_ends_where_the_uninterrupted_run_does(
    processes: int, loader: str, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", processes, "--loader", loader)
    out = tmp_path / "part"
    with pytest.raises(AssertionError, match="SIGKILL"):
        trained(out, processes, "--loader", loader, "--kill-at", "5")
    assert sorted(p.name for p in (out / "checkpoints").glob("step_*")) == ["step_00000003.pt"]
    resumed = trained(out, processes, "--loader", loader, "--resume")
    for part in ("objective", "averaged"):
        assert whole[part].keys() == resumed[part].keys()
        different = [name for name, value in whole[part].items() if not torch.equal(value, resumed[part][name])]
        assert not different
    states = whole["optimizer"]["state"], resumed["optimizer"]["state"]
    assert all(torch.equal(value, states[1][n][k]) for n, kept in states[0].items() for k, value in kept.items())

    saved = load_file(out / "model" / "model.safetensors")
    assert (
        saved.keys()
        == DualTower.from_pretrained(out / "model").state_dict().keys()
        == factories.model("bow", "vit").state_dict().keys()
    ), "the folder holds the dual tower alone"
    best = torch.load(out / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[name], value.float()) for name, value in best.items())


def test_a_step_trains_the_predictor_and_then_moves_copy_and_queue(tmp_path: Path) -> None:
    objective = MomentumContrast(factories.model("bow", "gernet"))
    made = trainer(objective, tmp_path, steps=4, warmup=0.0, accumulate=2)
    outputs: list[Pair] = []
    objective.register_forward_hook(lambda module, given, found: outputs.append(found))
    before, batch = copied(objective), next(made._groups())
    made._step(batch, 0.0)
    after = objective.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model", "predictor", "momentum_tower", "momentum_head", "queue", "place"}
    kept = [name for name in before if name.startswith(("model.text_", "model.logit_"))]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept), "no text was read"
    for part in ("tower", "head"):
        for name, parameter in objective.get_submodule(f"momentum_{part}").named_parameters():
            wanted = before[f"momentum_{part}.{name}"].lerp(after[f"model.image_{part}.{name}"], 0.1)
            torch.testing.assert_close(parameter, wanted)
    keys = torch.cat([pair.key for pair in outputs])
    assert len(outputs) == 2 and int(objective.place) == len(keys) == 32 < QUEUE
    assert torch.equal(objective.queue[:32], keys), "the keys of both batches of the step"


def test_the_views_of_a_row_differ_and_come_from_one_draw(tmp_path: Path) -> None:
    objective = MomentumContrast(factories.model("bow", "vit"))
    made = trainer(objective, tmp_path, random_erasing_prob=1.0)
    seen: list[Batch] = []
    objective.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    batch = next(made._groups()).batches[0]
    assert batch.tokens is None and batch.more_views == ()
    for _ in range(2):
        made._forward(batch, 0, progress=0.0)
    first, again = seen
    assert not torch.equal(first.pixels, first.more_views[0])
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.more_views[0], again.more_views[0])


def test_own_parts_have_groups_of_their_own() -> None:
    objective = MomentumContrast(factories.model("bow", "vit"))
    model_alone = parameter_groups(contrastive(objective.model), run_config(Path()).train)
    groups = parameter_groups(objective, run_config(Path(), lr=0.5).train)
    assert len(groups) == len(model_alone) + 2, "the momentum copy is in none"
    matrices, biases = groups[-2:]
    assert [group["part"] for group in (matrices, biases)] == ["predictor"] * 2
    assert (matrices["peak_lr"], biases["peak_lr"]) == (1.0, 1.0), "its factor is 2"
    assert matrices["weight_decay"] > 0 == biases["weight_decay"]


def test_a_skipped_step_leaves_copy_and_queue_alone(tmp_path: Path) -> None:
    config, accelerator = run_config(tmp_path, factories.model("bow", "vit"), steps=4), Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    objective = MomentumContrast(factories.model("bow", "vit"))
    loader = build_loader(config, objective, items(), accelerator)
    made = Trainer(config, objective, loader, accelerator=accelerator)
    poison_gradient(made, torch.inf, at_step=0)
    before = copied(objective)
    made._step(next(made._groups()), 0.5)
    assert made.position.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_what_is_not_finite_in_an_own_part_is_not_saved(tmp_path: Path) -> None:
    objective = MomentumContrast(factories.model("bow", "vit"))
    made = trainer(objective, tmp_path, steps=1)
    objective.queue[20] = torch.nan
    objective.loss = lambda outputs, batch: outputs.query.square().sum()  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLoss, match=r"infinite or NaN \(queue\)"):
        made.fit()
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_of_another_objective_is_refused_in_one_line(tmp_path: Path) -> None:
    plain = trainer(contrastive(factories.model("bow", "vit")), tmp_path, steps=2)
    plain.fit()
    objective = MomentumContrast(factories.model("bow", "vit"))
    config = replace(run_config(tmp_path, objective.model, steps=2), resume=True)
    loader = build_loader(config, objective, items(), plain.accelerator)
    with pytest.raises(
        CheckpointError, match=r"other parts than MomentumContrast \(momentum_head.*absent there"
    ) as told:
        Trainer(config, objective, loader, accelerator=plain.accelerator)
    assert "\n" not in str(told.value)


def test_a_checkpoint_of_another_loader_is_refused_in_one_line() -> None:
    loader = ItemLoader.__new__(ItemLoader)
    loader._epoch = loader._batch = 0
    with pytest.raises(CheckpointError, match=r"stands at \['epoch', 'offset', 'shard'\], this one counts") as told:
        loader.load_state_dict({"epoch": 0, "shard": 1, "offset": 2})
    assert "\n" not in str(told.value)


def test_a_model_held_twice_is_refused(tmp_path: Path) -> None:
    objective = MomentumContrast(factories.model("bow", "vit"))
    objective.again = objective.model.image_head
    with pytest.raises(ConfigError, match=r"holds a tensor of its model again as again\."):
        trainer(objective, tmp_path, steps=1).fit()


class TwoReadings(Objective):
    """Two readings of one title, with other units dropped, are alike (Gao et al. 2021, arXiv:2104.08821)."""

    views = Views(images=0)

    def __init__(self, model: DualTower) -> None:
        super().__init__(model, idle=("image_tower", "image_head", "logit_scale", "logit_bias", "reranker", "fusion"))

    def forward(self, batch: Batch, draw: BatchRNG) -> tuple[Tensor, Tensor]:
        assert batch.pixels is None and batch.more_views == ()
        first, second = (self.model(batch).text for _ in range(2))
        return first, second

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        first, second = outputs
        return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        return {"score": 0.0}


def test_an_objective_that_wants_no_images_reads_none(tmp_path: Path) -> None:
    rows = ItemDataset.from_rows([Item(str(i), str(i), (factories.TITLES[i % 24],)) for i in range(ROWS)])
    objective = TwoReadings(factories.model("bert", "vit"))
    before = copied(objective)
    trainer(objective, tmp_path, rows, steps=3).fit()
    after = objective.state_dict()
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"text_tower", "text_head"}


def test_views_must_want_something() -> None:
    with pytest.raises(ConfigError, match="at least one view of the image or of the text"):
        Views(images=0, texts=0)


def streamed(out: Path, *, resume: bool = False, accumulate: int = 1) -> Trainer:
    objective = contrastive(factories.model("bow", "vit"))
    config = run_config(
        out, objective.model, steps=6, batch_size=5, checkpoint_steps=1, max_checkpoints=9, accumulate=accumulate
    )
    config = replace(config, resume=resume)
    shards = write_shards(items(), out / "shards", count=3)  # 16 rows each: three batches, and one row is dropped
    collator = training_collator(config, objective, items())
    stream = ShardStream(shards, collator, batch_size=5, rank=0, world_size=1)
    return Trainer(config, objective, stream, accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stream_goes_on_behind_the_last_step_and_not_behind_what_was_read(accumulate: int, tmp_path: Path) -> None:
    whole = streamed(tmp_path / "whole", accumulate=accumulate)
    whole.fit()
    states = {}
    for path in sorted((tmp_path / "whole" / "checkpoints").glob("step_*.pt")):
        states[path.name] = torch.load(path, weights_only=True)["loader"]
    assert states["step_00000001.pt"][0]["offset"] > 0 and len({str(state) for state in states.values()}) == 6
    for stopped_at in (1, 4, 5):
        out = tmp_path / str(stopped_at)
        (out / "checkpoints").mkdir(parents=True)
        name = f"step_{stopped_at:08d}.pt"
        (out / "checkpoints" / name).write_bytes((tmp_path / "whole" / "checkpoints" / name).read_bytes())
        resumed = streamed(out, resume=True, accumulate=accumulate)
        assert resumed.position.step == stopped_at
        resumed.fit()
        state = resumed.unwrapped.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in whole.unwrapped.state_dict().items())


def test_a_loader_without_enough_batches_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    class Empty(ShardStream):
        def __iter__(self):
            yield from ()

    objective = contrastive(factories.model("bow", "vit"))
    config, accelerator = run_config(tmp_path, objective.model), Accelerator(cpu=True)
    stream = Empty([], Collator(None, None), batch_size=5, rank=0, world_size=1)
    made = Trainer(config, objective, stream, accelerator=accelerator)
    with pytest.raises(ConfigError, match=r"a whole epoch of the loader has fewer batches than train\.accumulate = 1"):
        made.fit()


def test_remembering_is_for_those_who_ask(tmp_path: Path) -> None:
    """An objective that keeps nothing lets the outputs of a batch be freed before the next one."""
    objective = contrastive(factories.model("bow", "vit"))
    kept: list[Sequence[Any]] = []
    objective.after_step = lambda remembered, progress: kept.append(remembered)  # type: ignore[method-assign]
    made = trainer(objective, tmp_path, accumulate=2)
    made._step(next(made._groups()), 0.0)
    assert kept == [[None, None]]
