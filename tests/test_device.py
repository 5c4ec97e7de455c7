"""Where things compute: one rule, told in one line, and the same ranks everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import factories
import numpy as np
import pytest
import torch

from dualtower.cli import Command, main
from dualtower.data.cards import load_card
from dualtower.data.loading import load_items
from dualtower.device import describe_device, find_device, present_devices
from dualtower.errors import ConfigError
from dualtower.evaluation import Relevance, both_ways, counting, counting_on_device, evaluate, retrieval_ranks
from dualtower.models.precision import TowerPrecision, inference_precision
from dualtower.search.local.store import LocalStore

CARDS = Path(__file__).parent.parent / "data_cards"
TWO_GPUS = {"cuda": 2, "cpu": 1}


@pytest.mark.parametrize(
    ("name", "present", "found"),
    [
        ("auto", {"cpu": 1}, "cpu"),
        ("cpu", {"cpu": 1}, "cpu"),
        ("auto", TWO_GPUS, "cuda:0"),
        ("cuda", TWO_GPUS, "cuda:0"),
        ("cuda:1", TWO_GPUS, "cuda:1"),
        ("cpu", TWO_GPUS, "cpu"),
        ("auto", {"mps": 1, "cpu": 1}, "mps:0"),
    ],
)
def test_one_rule(name: str, present: dict[str, int], found: str) -> None:
    assert find_device(name, present=present) == torch.device(found)


def test_each_process_of_a_launcher_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("auto", present=TWO_GPUS) == torch.device("cuda:1")
    assert find_device("cuda:0", present=TWO_GPUS) == torch.device("cuda:0")
    assert find_device("auto", present={"cpu": 1}) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "present", "said"),
    [
        ("cuda", {"cpu": 1}, "device 'cuda' is not here; here are: cpu"),
        ("cuda:2", TWO_GPUS, "'cuda:2' is not here; here are: cuda:0 to cuda:1, cpu"),
        ("cuda:x", TWO_GPUS, "'cuda:x' is not here"),
        ("gpu", TWO_GPUS, "Type --device auto"),
        ("", {"cpu": 1}, "is not here"),
    ],
)
def test_what_is_missing_is_named(name: str, present: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_device(name, present=present)


def test_this_machine() -> None:
    assert present_devices()["cpu"] == 1
    assert describe_device(torch.device("cpu")) == "cpu"
    expected = TowerPrecision("fp32", "fp32")
    assert inference_precision(torch.device("cpu")) == expected, "figures are the same on every processor"
    assert inference_precision(torch.device("cpu"), "bf16") == TowerPrecision("bf16", "bf16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.spread_model().save_pretrained(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def catalog(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shop") / "c"
    index = ("index", model, "--data.card", CARDS / "synthetic.md", "--split", "validation", "--out", out)
    main([str(word) for word in (*index, "--device", "cpu", "--precision", "bf16")])
    return out


def command(*words: Any) -> None:
    main([str(word) for word in words])


def test_commands_say_where_they_compute(
    model: Path, catalog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    factories.photo().save(tmp_path / "mug.png")
    card = ("--data.card", CARDS / "synthetic.md")
    explain = ("explain", model, "--text", "mug", "--image", tmp_path / "mug.png", "--out", tmp_path / "why.png")
    rows = tmp_path / "rows.csv"
    rows.write_text("")
    for words in (
        ("evaluate", model, *card, "--bootstrap", 0, "--json", tmp_path / "m.json"),
        explain,
        ("search", catalog, "--text", "red mug", "--json"),
        ("classify", catalog, "--labels", "mug", "dress"),
    ):
        capfd.readouterr()
        command(*words, "--device", "cpu")
        printed = capfd.readouterr()
        assert printed.err.count("on cpu: text fp32, image fp32") == 1, words
        if words[0] == "search":
            assert json.loads(printed.out)["hits"]
    protocol = json.loads((tmp_path / "m.json").read_text())["protocol"]
    assert protocol["computed"] == {"device": "cpu", "text": "fp32", "image": "fp32"}
    command("evaluate", model, *card, "--bootstrap", 0, "--json", tmp_path / "m.json", "--precision", "bf16")
    assert "image bf16" in capfd.readouterr().err
    assert json.loads((tmp_path / "m.json").read_text())["protocol"]["computed"]["image"] == "bf16"


@pytest.mark.parametrize("name", ["evaluate", "explain", "index", "search", "upsert", "classify", "serve", "tune"])
def test_a_missing_device_is_one_line(
    name: str, model: Path, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factories.photo().save(tmp_path / "mug.png")
    (tmp_path / "words.txt").write_text("mug\n")
    card = ("--data.card", CARDS / "synthetic.md")
    words = {
        "evaluate": (model, *card),
        "explain": (model, "--text", "mug", "--image", tmp_path / "mug.png"),
        "index": (model, *card, "--out", tmp_path / "new"),
        "search": (catalog, "--text", "mug"),
        "upsert": (catalog, tmp_path),
        "classify": (catalog, "--labels", "a", "b"),
        "serve": (catalog, "--port", 0),
        "tune": (catalog, "--queries", tmp_path / "words.txt"),
    }[name]
    with pytest.raises(SystemExit) as end:
        command(name, *words, "--device", "cuda:99")
    assert "device 'cuda:99' is not here" in str(end.value.code)
    assert not (tmp_path / "new").exists()


def test_every_command_with_a_model_can_be_told_where() -> None:
    commands = [get_args(command)[0] for command in get_args(Command)]
    with_model = [c for c in commands if any(field.name == "model" for field in fields(c))]
    assert len(with_model) >= 9
    assert [c for c in with_model if not any(field.name == "device" for field in fields(c))] == []


def test_a_catalog_notes_its_precision_and_goes_on_in_it(
    model: Path, catalog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert LocalStore(catalog).info.precision == TowerPrecision("bf16", "bf16")
    again = ("index", model, "--data.card", CARDS / "synthetic.md", "--out", catalog)
    command(*again, "--split", "test", "--device", "cpu")
    assert "on cpu: text bf16, image bf16" in capfd.readouterr().err
    with pytest.raises(SystemExit) as end:
        command(*again, "--precision", "fp32")
    assert "embedded in another precision" in str(end.value.code)
    measured = tmp_path / "measured"
    command("index", model, "--data.card", CARDS / "synthetic.md", "--split", "validation", "--out", measured)
    noted = LocalStore(measured).info.precision
    assert noted is not None and f"text {noted.text}, image {noted.image}" in capfd.readouterr().err


def test_bf16_vectors_find_what_float32_ones_do(model: Path) -> None:
    from dualtower import DualTower

    items = load_items(load_card(CARDS / "synthetic.md"), "test")
    exact = DualTower.from_pretrained(model).placed("cpu")
    rounded = exact.for_inference(TowerPrecision("bf16", "bf16", channels_last=False))
    a, b = (evaluate(m, items, bootstrap=0).report for m in (exact, rounded))
    assert a.protocol["model_fingerprint"] == b.protocol["model_fingerprint"]
    assert b.protocol["computed"]["image"] == "bf16" and exact.precision == TowerPrecision("fp32", "fp32")
    for direction, figures in a.metrics.items():
        assert b.metrics[direction]["recall@10"].value == pytest.approx(figures["recall@10"].value, abs=0.03)


def vectors(rows: int, seed: int) -> np.ndarray:
    """With many equal rows, so that there are ties and near ties."""
    made = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    made[rows // 2 :] = made[: rows - rows // 2]
    made[1] = made[0] * np.float32(1 + 1e-6)
    return made


@pytest.fixture
def device_path(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The comparisons that an accelerator makes, made by the CPU."""
    monkeypatch.setattr(counting, "_on_cores", lambda device: device is None)
    return torch.device("cpu")


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("items", [5, 60])
@pytest.mark.parametrize("block", [None, (40, 1000)])
def test_ranks_are_the_same_on_every_device(
    similarity: Any, items: int, block: Any, device_path: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting_on_device, "_AT_ONCE", 30_000)  # several rounds of each kind
    queries, gallery = vectors(90, 1), vectors(1100, 2)
    gallery[:90] = queries
    rng = np.random.default_rng(3)
    relevance = Relevance.from_products(rng.integers(0, items, 90), rng.integers(0, items, 1100))
    for cores, device in zip(
        both_ways(queries, gallery, relevance, similarity=similarity),
        both_ways(queries, gallery, relevance, similarity=similarity, block=block, device=device_path),
        strict=True,
    ):
        assert np.array_equal(cores.above, device.above) and np.array_equal(cores.tied, device.tied)
    codes = rng.integers(0, items, 200)
    own = (gallery[:200], gallery[:200], Relevance.from_products(codes, codes))
    cores, device = (
        retrieval_ranks(*own, exclude=np.arange(200), similarity=similarity, block=shape, device=where)
        for shape, where in ((None, None), (block, device_path))
    )
    assert np.array_equal(cores.above, device.above) and np.array_equal(cores.tied, device.tied)
    assert cores.tied.any()


def test_serve_says_where(catalog: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dualtower", "serve", str(catalog), "--port", "0", "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = [next(process.stderr), next(process.stderr)]
    process.terminate()
    process.communicate()
    assert "on cpu: text fp32, image fp32" in "".join(lines)
