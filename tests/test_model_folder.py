"""One folder holds the whole model: loaded strictly, written all or nothing, pushed to and pulled from the Hub."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from factories import TITLES, config, model, photo, tokenizer
from fake_hub import HubStandIn
from test_dual_tower import PAIRS

from dualtower import DualTower, ModelCard, TextTowerConfig
from dualtower.data.cards import CardSource, Columns, DataCard
from dualtower.errors import ConfigError, ModelFolderError, UnknownKey
from dualtower.files import write_text_atomically
from dualtower.hub import model_folder as folder_module

PARTS = {"README.md", "config.json", "model.safetensors", "tokenizer"}


def assert_equal_models(one: DualTower, other: DualTower) -> None:
    """Bit for bit, in weights and in what they compute."""
    assert one.config == other.config or one.fingerprint == other.fingerprint
    assert one.fingerprint == other.fingerprint
    assert np.array_equal(one.encode_text(TITLES[:5]), other.encode_text(TITLES[:5]))
    photos = [photo(i) for i in range(3)]
    assert np.array_equal(one.encode_image(photos), other.encode_image(photos))


def edit_weights(folder: Path, change: Any) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def edit_config(folder: Path, change: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# ---- save and load


@pytest.mark.parametrize(("text", "image"), PAIRS)
def test_a_loaded_model_equals_the_saved_one(tmp_path: Path, text: str, image: str) -> None:
    original = model(text, image, init_bias=-10.0)
    with torch.no_grad():
        for buffer in original.buffers():  # batch statistics travel too
            buffer += 0 if buffer.dtype == torch.int64 else torch.rand_like(buffer.float())
    original.save_pretrained(tmp_path / "model")
    loaded = DualTower.from_pretrained(tmp_path / "model")
    assert not loaded.training
    for (name, tensor), other in zip(original.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_a_loaded_model_computes_the_same(tmp_path: Path, similarity: Any) -> None:
    original = model("bert", "swin", similarity=similarity, head="mlp")
    original.save_pretrained(tmp_path / "model")
    assert_equal_models(original, DualTower.from_pretrained(str(tmp_path / "model")))


def test_what_lies_in_a_folder(tmp_path: Path) -> None:
    saved = model().save_pretrained(tmp_path / "runs" / "model")
    assert names(saved) == PARTS
    assert names(saved.parent) == {"model"}
    files = {p.name for p in saved.rglob("*") if p.is_file()}
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl", ".pth"))]
    assert (saved / "config.json").stat().st_mode & 0o444 == 0o444


def test_saving_over_a_model_replaces_it(tmp_path: Path) -> None:
    model("lstm").save_pretrained(tmp_path / "model")
    second = model("textcnn", seed=4)
    second.save_pretrained(tmp_path / "model")
    assert_equal_models(second, DualTower.from_pretrained(tmp_path / "model"))
    assert names(tmp_path) == {"model"}


def test_a_link_to_a_model_stays_a_link(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "first")
    (tmp_path / "latest").symlink_to("first")
    other = model(seed=3)
    other.save_pretrained(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert DualTower.from_pretrained(tmp_path / "first").fingerprint == other.fingerprint


@pytest.mark.parametrize("content", ["notes.txt", ".git", "pytorch_model.bin", "config.json"])
def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / content).write_text('{"model_type": "bert"}')
    with pytest.raises(ModelFolderError, match="choose another folder"):
        model().save_pretrained(tmp_path / "mine")
    assert names(tmp_path / "mine") == {content}


def test_a_model_without_tokenizer_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        DualTower(config()).save_pretrained(tmp_path / "model")


# ---- strict loading


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return model().save_pretrained(tmp_path / "model")


def test_missing_weight(saved: Path) -> None:
    edit_weights(saved, lambda w: w.pop("logit_scale"))
    with pytest.raises(ModelFolderError, match="missing: logit_scale"):
        DualTower.from_pretrained(saved)


def test_extra_weight(saved: Path) -> None:
    edit_weights(saved, lambda w: w.update(surplus=torch.ones(1)))
    with pytest.raises(ModelFolderError, match="extra: surplus"):
        DualTower.from_pretrained(saved)


def test_weight_of_another_shape(saved: Path) -> None:
    edit_weights(saved, lambda w: w.update({"text_head.layers.1.weight": torch.ones(12, 5)}))
    with pytest.raises(ModelFolderError, match=r"shape of text_head.layers.1.weight: \(12, 5\), not \(12, 16\)"):
        DualTower.from_pretrained(saved)


def test_truncated_weights(saved: Path) -> None:
    os.truncate(saved / "model.safetensors", 1000)
    with pytest.raises(ModelFolderError, match="broken"):
        DualTower.from_pretrained(saved)


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer"])
def test_missing_part(saved: Path, part: str) -> None:
    path = saved / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ModelFolderError, match=f"missing: {part}"):
        DualTower.from_pretrained(saved)


def test_empty_tokenizer(saved: Path) -> None:
    shutil.rmtree(saved / "tokenizer")
    (saved / "tokenizer").mkdir()
    with pytest.raises(ModelFolderError, match="no tokenizer"):
        DualTower.from_pretrained(saved)


def test_unknown_key_in_the_config(saved: Path) -> None:
    edit_config(saved, lambda c: c["model"]["text"].update(widht=3))
    with pytest.raises(UnknownKey, match="Did you mean 'width'"):
        DualTower.from_pretrained(saved)


def test_unknown_key_beside_the_model(saved: Path) -> None:
    edit_config(saved, lambda c: c.update(fingerprints=""))
    with pytest.raises(UnknownKey, match="Did you mean 'fingerprint'"):
        DualTower.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "bert"}'])
def test_config_of_something_else(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        DualTower.from_pretrained(saved)


def test_neither_folder_nor_name(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "nowhere", "./runs/a/b"):
        with pytest.raises(ModelFolderError, match=r"no model .*(nowhere|runs)"):
            DualTower.from_pretrained(name)


# ---- all or nothing


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_the_old_model(small_disk: Path) -> None:
    first = model()
    first.save_pretrained(small_disk / "model")
    for size in range(100, 0, -1):  # fill what is left, to the last page
        with (small_disk / f"ballast{size}").open("wb") as stream:
            try:
                stream.write(b"x" * 4096)
                stream.flush()
            except OSError:
                break
    before = {p: p.read_bytes() for p in (small_disk / "model").rglob("*") if p.is_file()}
    with pytest.raises(ModelFolderError, match=r"cannot write .*(No space left|os error 28).*make room"):
        model(seed=1).save_pretrained(small_disk / "model")
    assert {p: p.read_bytes() for p in (small_disk / "model").rglob("*") if p.is_file()} == before
    assert not [p for p in small_disk.iterdir() if p.name.startswith(".")]
    assert_equal_models(first, DualTower.from_pretrained(small_disk / "model"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), safetensors.SafetensorError("IoError 28")])
def test_failing_writer_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    before = DualTower.from_pretrained(saved).fingerprint
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(ModelFolderError, match="cannot write"):
        model(seed=1).save_pretrained(saved)
    assert DualTower.from_pretrained(saved).fingerprint == before
    assert names(saved.parent) == {"model"}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours may run after it."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_while_replacing(saved: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """Whenever the process dies, a whole model is found: the old one, and once it is in its place the new one."""
    old, new = DualTower.from_pretrained(saved), model(seed=1)
    real, done = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise Killed
        done.append(target)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(folder_module.shutil, "rmtree", lambda *_, **__: None)
        with contextlib.suppress(Killed):
            new.save_pretrained(saved)
    found = DualTower.from_pretrained(saved)
    assert found.fingerprint == (new if renames == 2 else old).fingerprint
    new.save_pretrained(saved)  # and the next save goes on as if nothing had been
    assert DualTower.from_pretrained(saved).fingerprint == new.fingerprint
    assert not (saved.parent / ".model.previous").exists()


def test_failing_rename_puts_the_old_model_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, real = DualTower.from_pretrained(saved).fingerprint, Path.rename

    def rename(self: Path, target: Path) -> Path:
        if "partial" in self.name:
            raise OSError("denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ModelFolderError, match="denied"):
        model(seed=1).save_pretrained(saved)
    assert DualTower.from_pretrained(saved).fingerprint == old
    assert names(saved.parent) == {"model"}


def test_text_files_are_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_atomically(tmp_path / "a" / "b.json", "old")
    write_text_atomically(tmp_path / "a" / "b.json", "new é")
    assert (tmp_path / "a" / "b.json").read_text(encoding="utf-8") == "new é"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_text_atomically(tmp_path / "a" / "b.json", "newer")
    assert names(tmp_path / "a") == {"b.json"} and (tmp_path / "a" / "b.json").read_text(encoding="utf-8") == "new é"


# ---- pretrained text encoders


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny BERT with its tokenizer, saved as Transformers does it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    words = tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=40, **sizes)).save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_pretrained_encoder_from_a_folder_is_not_needed_again(tmp_path: Path, encoder: Path) -> None:
    from transformers import BertModel

    text = TextTowerConfig(pretrained=str(encoder), max_length=20)
    original = DualTower.create(replace(config(), text=text), tokenizer()).eval()
    theirs = BertModel.from_pretrained(encoder).eval()
    tokens = original.collator().tokens(TITLES[:3])
    with torch.inference_mode():
        expected = theirs(**tokens).last_hidden_state
        assert torch.equal(original.text_tower(**tokens).tokens, expected)
    original.save_pretrained(tmp_path / "model")
    shutil.rmtree(encoder)
    loaded = DualTower.from_pretrained(tmp_path / "model")
    assert loaded.config.text.pretrained == str(encoder)  # where it came from
    assert_equal_models(original, loaded)


def test_pretrained_encoder_that_is_nowhere(tmp_path: Path) -> None:
    text = TextTowerConfig(pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"text\.pretrained = .*nowhere"):
        DualTower.create(replace(config(), text=text), tokenizer())


# ---- model card

DATA = DataCard(
    name="mugs",
    title="A shop of mugs",
    columns=Columns(text="title"),
    source=CardSource(hub="shop/mugs"),
    license="cc-by-4.0",
    languages=["en"],
    relevance="The same mug.",
    caveats=["Few mugs."],
)
CARD = ModelCard(
    data=DATA,
    metrics={"text_to_image": {"recall@10": {"value": 0.41234, "low": 0.38, "high": 0.44}}},
    table="| metric | text → image |",
    protocol={"split": "test", "gallery": 44072, "path": Path("x")},
    run={"train": {"lr": 0.001}, "model": {"never": "shown"}},
    license="apache-2.0",
)


def test_card_of_a_run(tmp_path: Path) -> None:
    saved = model().save_pretrained(tmp_path / "model", card=CARD)
    text = (saved / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    meta = yaml.safe_load(header)
    assert meta["library_name"] == "dualtower" and meta["license"] == "apache-2.0"
    assert meta["language"] == ["en"] and meta["datasets"] == ["shop/mugs"] and meta["metrics"] == ["recall@10"]
    result = meta["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "recall@10", "name": "recall@10", "value": 0.4123}]
    assert "| metric | text → image |" in body and "gallery: 44072" in body and "lr: 0.001" in body
    assert "cc-by-4.0" in body and "Few mugs." in body and "never" not in body
    assert DualTower.from_pretrained(saved).fingerprint in body
    assert f'DualTower.from_pretrained("{saved}")' in body


def test_card_made_from_config_and_report(tmp_path: Path) -> None:
    card = tmp_path / "mugs.md"
    card.write_text("---\nname: mugs\ntitle: Mugs\ncolumns: {text: title}\n---\nMugs.")
    figures = {"text_to_image": {"mrr": {"value": 0.5, "low": 0.4, "high": 0.6}}, "protocol": {"split": "test"}}
    report = SimpleNamespace(to_dict=lambda: figures, table=lambda: "the table")
    run = replace(_run_config(), data=replace(_run_config().data, card=card))
    made = ModelCard.of_run(run, report)
    assert made.data is not None and made.data.title == "Mugs"
    assert made.metrics == {"text_to_image": figures["text_to_image"]} and made.protocol == {"split": "test"}
    assert made.run["train"]["lr"] == run.train.lr and made.license is None
    assert "the table" in made.to_markdown(name="x", model=model().config, fingerprint="abc")


def _run_config() -> Any:
    from dualtower import RunConfig

    return RunConfig()


def test_the_card_stays_with_the_weights_that_it_speaks_of(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "a", card=CARD)
    loaded = DualTower.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    moved = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert "gallery: 44072" in moved and f'from_pretrained("{tmp_path / "b"}")' in moved
    with torch.no_grad():
        loaded.logit_scale += 0.1
    loaded.save_pretrained(tmp_path / "c")
    assert "gallery" not in (tmp_path / "c" / "README.md").read_text(encoding="utf-8")


# ---- the Hub: every process costs seconds of imports, so each does all that it can

ONLINE = """
import sys
from dualtower import DualTower
from dualtower.errors import ModelFolderError
print(DualTower.from_pretrained(sys.argv[1]).push_to_hub("user/mugs"))
tower = DualTower.from_pretrained("user/mugs")
print(tower.fingerprint, tower.encode_text(["red mug"]).tobytes().hex())
for name, revision in (("user/nothing", None), ("user/empty", None), ("user/empty", "no-such-branch")):
    try:
        DualTower.from_pretrained(name, revision=revision)
    except ModelFolderError as error:
        print(error)
"""
OFFLINE = """
from dualtower import DualTower
from dualtower.errors import ModelFolderError
tower = DualTower.from_pretrained("user/mugs")
print(tower.fingerprint, tower.encode_text(["red mug"]).tobytes().hex())
try:
    DualTower.from_pretrained("user/other")
except ModelFolderError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.slow
def test_push_pull_and_offline_again(tmp_path: Path) -> None:
    original = model("lstm", "vit")
    original.save_pretrained(tmp_path / "model", card=CARD)
    expected = f"{original.fingerprint} {original.encode_text(['red mug']).tobytes().hex()}"
    with HubStandIn(tmp_path) as hub:
        hub.add_repo("model", "user/empty")
        url, pulled, nothing, empty, branch = hub.run(ONLINE, str(tmp_path / "model")).splitlines()
        assert "user/mugs" in url and pulled == expected
        assert "no model 'user/nothing'" in nothing
        assert "missing: config.json" in empty
        assert "no model 'user/empty'" in branch
        pushed = hub.folder("model", "user/mugs")
        assert names(pushed) >= PARTS
        readme = (pushed / "README.md").read_text(encoding="utf-8")
        assert 'DualTower.from_pretrained("user/mugs")' in readme and "gallery: 44072" in readme
    for environment in ({"HF_HUB_OFFLINE": "1"}, {}):  # said to be offline; or only found to be
        pulled, other = hub.run(OFFLINE, **environment).splitlines()
        assert pulled == expected and "no model 'user/other'" in other


CREATE = """
import sys
from dataclasses import replace
from dualtower import DualTower, TextTowerConfig
from dualtower.data.transforms.tokenizer import load_tokenizer
sys.path.insert(0, sys.argv[1])
from factories import config
name = "user/encoder"
tower = DualTower.create(
    replace(config(), text=TextTowerConfig(pretrained=name, max_length=20)), load_tokenizer(name)
)
tower.save_pretrained(sys.argv[2])
print(tower.fingerprint)
"""


@pytest.mark.slow
def test_pretrained_encoder_from_the_hub_is_not_needed_again(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubStandIn(tmp_path) as hub:
        hub.add_repo("model", "user/encoder", encoder)
        fingerprint = hub.run(CREATE, str(Path(__file__).parent), str(tmp_path / "model")).strip()

    def refuse(*_: object) -> None:
        raise AssertionError("loading a folder must not ask any network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert DualTower.from_pretrained(tmp_path / "model").fingerprint == fingerprint


def test_a_folder_with_the_names_of_an_earlier_version_is_loaded(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    told = json.loads(path.read_text())
    del told["model"]["flip_tta"]
    told["model"]["mirror"] = True
    path.write_text(json.dumps(told))
    assert DualTower.from_pretrained(tmp_path / "model").config.flip_tta
