"""Attribute vectors: what an autoencoder of them minimizes, learns, saves and finds, and the fusion it starts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import catalogs
import factories
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from distributed_attributes import encoder_config, model, objective, rows, run_config
from processes import torchrun
from test_cli import command
from torch import Tensor

from dualtower import AttributeEncoderConfig, AttributesConfig, DualTower, FusionConfig, ModelConfig, RunConfig
from dualtower.config import to_dict
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import attribute_values, every_row, fit_attributes
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation import per_query, retrieval_ranks
from dualtower.evaluation.attributes import (
    METRICS,
    evaluate_attribute_retrieval,
    evaluate_hidden_attributes,
    hidden_reconstructions,
    item_attributes,
    one_hot,
    reconstructed,
    similar_rows,
)
from dualtower.evaluation.relevance import Relevance
from dualtower.launcher import parse_overrides
from dualtower.losses.attributes import attribute_losses
from dualtower.models.towers.attributes import AttributeTower
from dualtower.objectives.base import Views
from dualtower.objectives.config import ReconstructionConfig
from dualtower.objectives.self_supervised.attributes import attribute_uncertainty
from dualtower.training.building import build_objective, build_trainer, with_known_values
from dualtower.types import AttributeValues

SCRIPT = Path(__file__).with_name("distributed_attributes.py")
REPOSITORY = Path(__file__).parent.parent


def changed(items: ItemDataset, **values) -> ItemDataset:
    """The rows with these values of attributes."""
    return ItemDataset.from_rows([replace(item, attributes={**item.attributes, **values}) for item in items])


def reference(logits: list[Tensor], numbers: Tensor, values: AttributeValues) -> list[float]:
    """Mean loss of each attribute over the rows that have it, one value after the other, in float64."""
    means = []
    for i, found in enumerate(logits):
        shares = found.detach().double().softmax(1)
        losses = [-math.log(shares[row, code - 1]) for row, code in enumerate(values.codes[:, i].tolist()) if code]
        means.append(sum(losses) / len(losses))
    for i in range(numbers.shape[1]):
        off = [
            abs(float(a - b))
            for a, b in zip(numbers.detach()[:, i], values.numbers[:, i], strict=True)
            if not b.isnan()
        ]
        means.append(sum(x * x / 2 if x < 1 else x - 0.5 for x in off) / len(off))
    return means


def test_the_loss_is_that_of_the_known_values() -> None:
    torch.manual_seed(0)
    codes = torch.tensor([[1, 0], [2, 3], [0, 1], [2, 2]])
    numbers = torch.tensor([[0.5, math.nan], [math.nan, 3.0], [-4.0, math.nan], [0.1, math.nan]], dtype=torch.float64)
    logits = [torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)]
    found = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    sums, counts = attribute_losses(logits, found, AttributeValues(codes, numbers))
    assert counts.tolist() == [3, 3, 3, 1]
    wanted = reference(logits, found.detach(), AttributeValues(codes, numbers))
    torch.testing.assert_close(sums / counts, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    sums.sum().backward()
    assert torch.isfinite(found.grad).all() and (found.grad[numbers.isnan()] == 0).all(), "missing values teach nothing"


def test_the_objective_is_the_mean_share_of_what_stays_unknown() -> None:
    items = rows(missing=0.3)
    made = objective(model(items, dropout=0.0).double(), items)
    batch = made.model.collator()([items[i] for i in range(20)])
    values = batch.attributes._replace(numbers=batch.attributes.numbers.double())
    batch = replace(batch, attributes=values)
    outputs = made(batch, None)
    means = reference(list(outputs.logits), outputs.numbers, values)
    wanted = sum(mean / known for mean, known in zip(means, made.uncertainty.values(), strict=True)) / 4
    torch.testing.assert_close(made.loss(outputs, batch).item(), wanted, rtol=1e-9, atol=0)


def test_a_batch_without_any_value_has_a_loss_and_gradients_of_zero() -> None:
    items = rows()
    made = objective(model(items), items)
    empty = AttributeValues(torch.zeros(4, 3, dtype=torch.int64), torch.full((4, 1), math.nan))
    batch = replace(made.model.collator()([items[i] for i in range(4)]), attributes=empty)
    loss = made.loss(made(batch, None), batch)
    loss.backward()
    assert loss.item() == 0
    learning = [p for n, p in made.named_parameters() if not n.startswith("model.logit_")]
    assert all(p.grad is not None and (p.grad == 0).all() for p in learning)


def test_uncertainty_is_what_the_best_constant_answer_costs() -> None:
    train = {"color": ["red", "red", "navy", None], "price": [1.0, 3.0, None, 5.0]}
    config = fit_attributes(AttributesConfig(("color", "price")), train, ["price"])
    found = attribute_uncertainty(config, train)
    assert found["color"] == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    far = 2 / math.sqrt(8 / 3)  # deviations from the mean: -far, 0, far
    assert found["price"] == pytest.approx(2 * (far - 0.5) / 3)
    rare = {"color": ["red"] * 999 + ["navy"]}
    config = fit_attributes(AttributesConfig(("color",)), rare)
    assert attribute_uncertainty(config, rare) == {"color": 0.1}, "its one exception must not weigh a hundred times"


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.slow
def test_gradients_equal_one_process_on_the_joined_batch(processes: int) -> None:
    report = json.loads(torchrun(SCRIPT, processes=processes).stdout.splitlines()[-1])
    assert report["world_size"] == processes and len(report["errors"]) > 15
    assert not {name: error for name, error in report["errors"].items() if not error <= 1e-9}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_it_ends_where_the_uninterrupted_run_does(processes: int, tmp_path: Path) -> None:
    def trained(out: Path, *options: str) -> dict:
        torchrun(SCRIPT, "--out", out, *options, processes=processes)
        return torch.load(out / "end.pt", weights_only=True)

    whole = trained(tmp_path / "whole")
    with pytest.raises(AssertionError, match="SIGKILL"):
        trained(tmp_path / "part", "--kill-at", "5")
    assert [p.name for p in (tmp_path / "part" / "checkpoints").glob("step_*")] == ["step_00000003.pt"]
    resumed = trained(tmp_path / "part", "--resume")
    for part in ("now", "averaged"):
        assert not [name for name, value in whole[part].items() if not torch.equal(value, resumed[part][name])]
    first, second = (DualTower.from_pretrained(tmp_path / name / "model").fingerprint for name in ("whole", "part"))
    assert first == second


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DualTower:
    """An encoder that knows what follows from what."""
    items = rows(256)
    config = run_config(tmp_path_factory.mktemp("run"), items, steps=250, lr=3e-3, batch_size=64)
    return build_trainer(config, model(items), items, accelerator=Accelerator(cpu=True)).fit().model


def test_it_tells_what_follows_from_the_other_attributes(trained: DualTower) -> None:
    train, test = rows(256), rows(200, seed=7)
    told = objective(trained, train).validate(test, batch_size=64)
    assert told["told/room"] > 0.5 and told["told/kind"] > 0.4 and told["told/price"] > 0.2, told
    assert told["told/color"] < 0.05, "nothing says what color it is"
    assert told["score"] == pytest.approx(sum(v for n, v in told.items() if n != "score") / 4)
    section = evaluate_hidden_attributes(trained, test, train, bootstrap=50)
    figures = section.figures
    assert figures["room"]["accuracy"] > 0.85 > figures["room"]["most_frequent"]
    assert figures["price"]["mean_absolute_error"] < 0.6 * figures["price"]["median"]
    assert figures["kind"]["low"] <= figures["kind"]["accuracy"] <= figures["kind"]["high"]
    known = sum(value is not None for value in test.attributes["room"])
    assert figures["room"]["rows"] == known < len(test)
    assert "| room" in section.markdown and "mean error" in section.markdown


def test_a_value_that_is_hidden_changes_no_answer(trained: DualTower) -> None:
    """Else the question would hold its answer."""
    items, config = rows(30, missing=0.0), trained.attribute_encoder.tower.config
    asked = items, changed(items, kind="hat"), changed(items, room="wear")
    first, other_kind, other_room = (
        next(hidden_reconstructions(trained, item_attributes(config, some))).logits[0] for some in asked
    )
    torch.testing.assert_close(first, other_kind)
    assert not torch.allclose(first, other_room)


def test_missing_values_cost_the_code_less_than_one_hot(trained: DualTower) -> None:
    found = evaluate_attribute_retrieval(trained, rows(300, seed=3), relevance=["kind"], bootstrap=20)
    for share in (0.0, 0.2, 0.5):
        table = {kind: metrics["ndcg@10"].value for kind, metrics in found.metrics[share].items()}
        assert table["completed"] > table["one-hot"], table
        assert found.gains[share]["code"].value == pytest.approx(table["code"] - table["one-hot"])
    one_hot_alone = [found.metrics[share]["one-hot"]["map"].value for share in (0.0, 0.2, 0.5)]
    assert one_hot_alone == sorted(one_hot_alone, reverse=True), "fewer values find less"
    assert json.dumps(found.to_dict()) and "| 50%" in found.section().markdown


def test_what_is_asked_for_is_read_where_one_says_so(trained: DualTower) -> None:
    items = rows(100, seed=3, missing=0.0)
    hidden, read = (
        evaluate_attribute_retrieval(trained, items, relevance=["color"], missing=(0.0,), hide=hide, bootstrap=0)
        for hide in (True, False)
    )
    hidden_map, read_map = (found.metrics[0.0]["one-hot"]["map"].value for found in (hidden, read))
    assert read_map > hidden_map + 0.1
    assert "read like all others" in read.protocol["asked"]
    elsewhere = ItemDataset.from_rows(
        [replace(item, attributes={**item.attributes, "shelf": str(i % 3)}) for i, item in enumerate(items)]
    )
    other = evaluate_attribute_retrieval(trained, elsewhere, relevance=["shelf"], missing=(0.0,), bootstrap=0)
    assert "in none of the vectors" in other.protocol["asked"]


def test_one_row_of_each_product_is_searched(trained: DualTower) -> None:
    items = rows(40)
    twice = [replace(item, id=f"{item.id}{end}") for item in items for end in "ab"]
    found = evaluate_attribute_retrieval(trained, ItemDataset.from_rows(twice), missing=(0.0,), bootstrap=0)
    assert found.protocol["rows"] == 40 and found.protocol["relevance"] == "same kind", "the first category"


def test_figures_are_those_of_exact_ranks() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = (rng.integers(0, 2, (60, 5)).astype(np.float32) for _ in range(2))  # ties everywhere
    queries[3] = 0
    labels = rng.integers(0, 6, 60)
    labels[5] = 99
    found = similar_rows(queries, gallery, labels)
    ranks = retrieval_ranks(queries, gallery, Relevance.from_products(labels, labels), exclude=np.arange(60))
    wanted = per_query(ranks, ks=(1,))
    wanted["precision@1"] = wanted["recall@1"] * ranks.counts[ranks.judged]
    for name in METRICS:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-12, err_msg=name)


def test_equal_rows_have_equal_codes_and_one_hot_has_a_place_for_every_value(trained: DualTower) -> None:
    items = rows(200, seed=5)
    config = trained.attribute_encoder.tower.config
    values = item_attributes(config, items)
    codes = reconstructed(trained, values, batch_size=7).codes
    _, place = torch.cat([values.codes.double(), values.numbers.nan_to_num(nan=9).double()], 1).unique(
        dim=0, return_inverse=True
    )
    for group in place.unique():
        assert (codes[place == group] == codes[place == group][0]).all()
    np.testing.assert_allclose(codes, trained.encode_attributes(every_row(items.attributes, 200)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-6)
    row = one_hot(
        config, attribute_values(config, [{"kind": "pan", "color": "green", "price": config.numbers["price"][0]}])
    )
    assert row.tolist() == [[0, 0, 1, 0, 0, 0, 0, 0, 0, 0]], (
        "kinds, rooms, colors, of which green is none, and the price"
    )


def test_saved_and_loaded_it_is_the_same(trained: DualTower, tmp_path: Path) -> None:
    folder = trained.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = DualTower.from_pretrained(folder)
    asked = [{"kind": "mug", "price": 9}, {}, {"color": "never seen"}]
    np.testing.assert_array_equal(again.encode_attributes(asked), trained.encode_attributes(asked))
    assert again.fingerprint == trained.fingerprint
    np.testing.assert_array_equal(*again.encode_attributes(asked)[1:])
    readme = (folder / "README.md").read_text()
    assert "autoencoder of product attributes" in readme and "encode_attributes" in readme


def test_what_needs_a_tower_is_refused_in_one_line(
    trained: DualTower, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, card = trained.save_pretrained(tmp_path / "model"), REPOSITORY / "data_cards" / "synthetic.md"
    with pytest.raises(ConfigError, match="encode_text: this model has no text tower; it encodes attributes alone"):
        trained.encode_text(["mug"])
    with pytest.raises(ConfigError, match="this model has no attribute encoder; recipes/pretrain_attributes"):
        factories.model().encode_attributes([{}])
    with pytest.raises(DataError, match=r"type encode_attributes\(\[\{"):
        trained.encode_attributes({"kind": "mug"})
    for words in (
        ("evaluate", folder, "--data.card", card),
        ("evaluate", folder, "--data.card", card, "--task", "product-to-product"),
        ("index", folder, "--out", tmp_path / "catalog", "--data.card", card),
        ("explain", folder, "--text", "mug", "--image", "mug.png"),
    ):
        capsys.readouterr()
        assert command(*map(str, words)) == 1, words
        assert "encodes attributes alone" in "".join(capsys.readouterr()), words
    assert not (tmp_path / "catalog").exists()


def test_models_without_an_encoder_keep_their_fingerprints() -> None:
    assert "attribute_encoder" not in to_dict(ModelConfig())
    assert "pretrained" not in to_dict(AttributesConfig(("color",)))


# The fusion that starts from it


def tower_of(train: dict, *, numeric: tuple[str, ...] = (), seed: int = 0, width: int = 4) -> AttributeTower:
    torch.manual_seed(seed)
    tower = AttributeTower(fit_attributes(AttributesConfig(tuple(train), width=width), train, numeric)).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter)
    return tower


def test_a_tower_takes_over_the_values_that_both_know() -> None:
    earlier = tower_of({"color": ["red", "navy"], "thing": ["mug"], "price": [10.0, 30.0]}, numeric=("price",))
    later = tower_of(
        {"price": [5.0, 5.0, 8.0], "color": ["lime", "red", "navy"], "size": ["S"]}, numeric=("price",), seed=1
    )
    fresh = {name: value.clone() for name, value in later.state_dict().items()}
    assert later.start_from(earlier) == ["size"]

    def token(tower: AttributeTower, row: dict, name: str) -> Tensor:
        names = [*tower.config.categories, *tower.config.numbers]
        return tower(attribute_values(tower.config, [row]))[0, names.index(name)]

    for row in ({"color": "red"}, {"color": "navy"}, {}, {"price": 12.5}, {"price": -3}):
        for name in ("color", "price"):
            torch.testing.assert_close(token(later, row, name), token(earlier, row, name), atol=1e-5, rtol=1e-5)
    assert torch.equal(later.tables[0].weight[1], fresh["tables.0.weight"][1]), "lime is new"
    assert torch.equal(later.tables[1].weight, fresh["tables.1.weight"]), "and so is the size"


def test_towers_that_do_not_fit_are_refused() -> None:
    earlier = tower_of({"color": ["red"], "price": [1.0, 2.0]}, numeric=("price",))
    with pytest.raises(ConfigError, match=r"width 8 cannot start from one of width 4; set attributes\.width to 4"):
        tower_of({"color": ["red"]}, width=8).start_from(earlier)
    with pytest.raises(ConfigError, match=r"reads color, price, and none of size; leave it out"):
        tower_of({"size": ["S"]}).start_from(earlier)
    with pytest.raises(ConfigError, match=r"'price' is a category here and a number in attributes\.pretrained"):
        tower_of({"price": ["cheap"]}).start_from(earlier)


CARD = catalogs.card(attributes=["kind", "room", "color", "price"], numeric=["price"])


def test_the_fusion_starts_from_an_encoder(
    trained: DualTower, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(trained.save_pretrained(tmp_path / "model"))
    read = AttributesConfig(("color", "kind", "price"), width=8, pretrained=folder)
    few = rows(12, seed=2)
    config = RunConfig(objective="product", model=factories.config(fusion=FusionConfig(attributes=read, width=16)))
    known = with_known_values(config, CARD, few).model.fusion
    assert known.attributes.categories == {"color": ["navy", "red", "white"], "kind": ["hat", "mug", "pan", "shoe"]}
    with caplog.at_level("INFO"):
        fresh = DualTower.create(factories.config(fusion=known), factories.tokenizer())
        on_towers = factories.model().with_heads(fusion=known)
    assert caplog.text.count(f"the attribute tower starts from {folder}") == 2
    encoder = trained.attribute_encoder.tower
    asked = [{"kind": "mug", "color": "red", "price": 9.0}, {}]
    wanted = encoder(attribute_values(encoder.config, asked))[:, [2, 0, 3]]
    for made in (fresh, on_towers):
        tower = made.eval().fusion.attributes
        torch.testing.assert_close(tower(attribute_values(tower.config, asked)), wanted, atol=1e-5, rtol=1e-5)
    fresh.fusion.attributes.tables[0].weight.data.zero_()
    again = DualTower.from_pretrained(fresh.save_pretrained(tmp_path / "fused"))
    assert not again.fusion.attributes.tables[0].weight.any(), "a saved fusion does not start anew"


def test_values_that_only_the_encoder_knows_stay_known(trained: DualTower, tmp_path: Path) -> None:
    folder = str(trained.save_pretrained(tmp_path / "model"))
    mugs = ItemDataset.from_rows([item for item in rows(60, missing=0.0) if item.attributes["kind"] == "mug"])
    read = AttributesConfig(("kind",), width=8, pretrained=folder)
    config = RunConfig(objective="product", model=factories.config(fusion=FusionConfig(attributes=read)))
    known = with_known_values(config, CARD, mugs).model.fusion.attributes
    assert known.categories == {"kind": ["hat", "mug", "pan", "shoe"]}


def test_a_folder_without_attributes_is_refused(tmp_path: Path) -> None:
    folder = str(factories.model().save_pretrained(tmp_path / "model"))
    read = fit_attributes(AttributesConfig(("kind",), pretrained=folder), {"kind": ["mug", "pan"]})
    with pytest.raises(ConfigError, match=r"reads no attributes; recipes/pretrain_attributes\.py makes one"):
        factories.model().with_heads(fusion=FusionConfig(attributes=read))


def test_a_recipe_s_fusion_takes_attributes_from_the_command_line() -> None:
    base = RunConfig(objective="product", model=ModelConfig(fusion=FusionConfig(width=32)))
    words = ["--model.fusion.attributes.names", "pattern", "material", "--model.fusion.attributes.pretrained", "mine"]
    fusion = parse_overrides(base, words).model.fusion
    assert fusion.attributes == AttributesConfig(("pattern", "material"), pretrained="mine") and fusion.width == 32
    assert parse_overrides(base, []).model.fusion.attributes is None


def test_an_encoder_starts_from_another_one(trained: DualTower, tmp_path: Path) -> None:
    folder = str(trained.save_pretrained(tmp_path / "model"))
    items = rows(64)
    config = encoder_config(items)
    read = replace(config.attribute_encoder.attributes, pretrained=folder)
    made = DualTower.create(replace(config, attribute_encoder=replace(config.attribute_encoder, attributes=read)), None)
    torch.testing.assert_close(
        made.attribute_encoder.tower.mix[1].weight, trained.attribute_encoder.tower.mix[1].weight
    )


# Bad input


def test_bad_input_is_named(tmp_path: Path) -> None:
    items = rows()
    with pytest.raises(ConfigError, match=r"attributes\.names is empty"):
        DualTower.create(ModelConfig(text=None, image=None, attribute_encoder=AttributeEncoderConfig()), None)
    unread = AttributeEncoderConfig(AttributesConfig(("kind",)))
    with pytest.raises(ConfigError, match="does not know the values of its names yet"):
        DualTower.create(ModelConfig(text=None, image=None, attribute_encoder=unread), None)
    same = changed(items, room="wear")
    with pytest.raises(DataError, match="'room' is wear in all training rows that have it; there is nothing to"):
        objective(model(same), same)
    flat = changed(items, price=5)
    with pytest.raises(DataError, match="'price' is 5 in all training rows that have it"):
        objective(model(flat), flat)
    with pytest.raises(DataError, match="'price' holds 'cheap', which is no finite number"):
        model(changed(items, price="cheap"))
    with pytest.raises(DataError, match="'price' holds 'cheap'"):
        model(items).encode_attributes([{"price": "cheap"}])
    with pytest.raises(UnknownName, match=r"no attribute 'colour'.*Did you mean 'color'"):
        model(items, names=("colour",))
    empty = changed(items, **dict.fromkeys(items.attributes))
    with pytest.raises(DataError, match="no row has a value of kind, room, color, price"):
        objective(model(items), items).validate(empty, batch_size=16)
    with pytest.raises(ConfigError, match="objective 'attributes' trains an attribute encoder"):
        objective(factories.model(), items)


def test_bad_settings_are_named() -> None:
    encoder = AttributeEncoderConfig(AttributesConfig(("kind",)))
    with pytest.raises(ConfigError, match="an attribute encoder stands alone, and this model has a tower for images"):
        factories.config(attribute_encoder=encoder)
    with pytest.raises(ConfigError, match="a fusion looks at texts and images, and this model has no tower"):
        ModelConfig(text=None, image=None, attribute_encoder=encoder, fusion=FusionConfig())
    with pytest.raises(ConfigError, match=r"attribute_encoder\.hidden is 0"):
        AttributeEncoderConfig(hidden=0)
    with pytest.raises(ConfigError, match=r"reconstruction\.missing is \(1\.0,\)"):
        ReconstructionConfig(missing=(1.0,))
    with pytest.raises(ConfigError, match=r"objective 'attributes' with model\.attribute_encoder = None"):
        RunConfig(objective="attributes")
    with pytest.raises(ConfigError, match="an attribute encoder stands on no towers; leave out --base"):
        RunConfig(objective="attributes", base="runs/mine/model")
    with pytest.raises(ConfigError, match="at least one view"):
        Views(images=0, texts=0)


def test_other_objectives_refuse_an_attribute_encoder() -> None:
    with pytest.raises(ConfigError, match="objective 'contrastive': this model has no text and no image tower"):
        build_objective(RunConfig(), model(rows()), rows())


@pytest.mark.slow
def test_the_recipe_ends_with_both_tables_and_refuses_a_wrong_name(tmp_path: Path) -> None:
    (tmp_path / "data_cards").symlink_to(REPOSITORY / "data_cards")
    words = [sys.executable, str(REPOSITORY / "recipes" / "pretrain_attributes.py"), "--smoke"]

    def typed(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, *more], cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False)

    done = typed("--train.cpu-threads", "1")
    assert done.returncode == 0, done.stderr
    assert "Hidden attributes" in done.stderr and "Attributes to products: same object" in done.stderr
    out = tmp_path / "runs" / "smoke" / "attributes"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"hidden_attributes", "attribute_retrieval"}
    assert set(metrics["attribute_retrieval"]["metrics"]) == {"0", "0.2", "0.5"}
    assert "told from the others" in (out / "report.md").read_text()
    assert DualTower.from_pretrained(out / "model").encode_attributes([{"object": "mug"}]).shape == (1, 64)
    wrong = typed("--model.attribute-encoder.attributes.names", "object", "colour")
    assert wrong.returncode == 1
    assert re.search(r"no attribute 'colour'.*Did you mean 'color'", wrong.stderr), wrong.stderr[-1000:]
