"""Images are checked once, by all processes together; a changed one is looked at again, a broken one survived."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from accelerate import Accelerator
from processes import torchrun
from test_trainer import run_config

from dualtower import Item
from dualtower.data import image_columns
from dualtower.data.batches import TrainingCollator
from dualtower.data.image_check import broken_images
from dualtower.data.items import ItemDataset
from dualtower.errors import BrokenImage, DataError
from dualtower.training.building import build_trainer
from dualtower.training.trainer import Trainer

ROWS = 48
SCRIPT = Path(__file__).with_name("distributed_image_check.py")


def catalog(folder: Path) -> ItemDataset:
    """Rows over image files, the last of them with a second image."""
    folder.mkdir(exist_ok=True)
    for i in range(ROWS + 1):
        (folder / f"{i}.png").write_bytes(factories.png(factories.photo(i)))
    rows = [Item(str(i), str(i % 24), (factories.TITLES[i % 24],), folder / f"{i}.png") for i in range(ROWS)]
    rows[-1] = replace(rows[-1], more_images=(folder / f"{ROWS}.png",))
    return ItemDataset.from_rows(rows, split="train")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Rows that the check has decoded, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: list[str] = []
    real = image_columns.open_image

    def noted(photo: Any, **named: Any) -> Any:
        seen.append(str(named["row"]))
        return real(photo, **named)

    monkeypatch.setattr(image_columns, "open_image", noted)
    yield seen


def test_the_second_check_decodes_nothing(decoded: list[str], tmp_path: Path) -> None:
    assert broken_images(catalog(tmp_path / "shop"), "shop", remember=True) == []
    assert len(decoded) == ROWS + 1
    decoded.clear()
    again = ItemDataset.from_rows(list(catalog_as_it_is(tmp_path / "shop")), split="train")
    assert broken_images(again, "shop", remember=True) == [] and decoded == []
    assert broken_images(again, "shop") == [] and len(decoded) == ROWS + 1, "without remember it looks"


def catalog_as_it_is(folder: Path) -> ItemDataset:
    times = {path: path.stat() for path in folder.iterdir()}
    made = catalog(folder)
    for path, state in times.items():
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return made


def test_a_changed_image_is_looked_at_again(decoded: list[str], tmp_path: Path) -> None:
    items = catalog(tmp_path / "shop")
    broken_images(items, "shop", remember=True)
    path = tmp_path / "shop" / f"{ROWS}.png"
    path.write_bytes(path.read_bytes()[:50])
    (found,) = broken_images(items, "shop", remember=True)
    assert found[0] == ROWS - 1 and found[1].row == f"{ROWS - 1}, image 2"
    decoded.clear()
    ((row, error),) = broken_images(items, "shop", remember=True)
    assert row == ROWS - 1 and "cannot be decoded" in error.reason
    assert len(decoded) == 1, "a broken one is remembered, and looked at for its reason"


def test_an_image_that_was_broken_and_can_be_read_now_is_taken_back(decoded: list[str], tmp_path: Path) -> None:
    """As after an update of Pillow, which changes no file."""
    items = catalog(tmp_path / "shop")
    broken_images(items, "shop", remember=True)
    (stamp,) = (tmp_path / "cache" / "dualtower" / "checked").iterdir()
    stamp.write_text(json.dumps({"images": ROWS + 1, "broken": [5, 7]}))
    (tmp_path / "shop" / "7.png").rename(tmp_path / "7.png")
    state = (tmp_path / "7.png").stat()
    (tmp_path / "shop" / "7.png").write_bytes(b" " * state.st_size)
    os.utime(tmp_path / "shop" / "7.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    decoded.clear()
    assert [row for row, _ in broken_images(items, "shop", remember=True)] == [7] and decoded == ["5", "7"]


def test_training_names_which_of_the_images_is_broken(tmp_path: Path) -> None:
    items = catalog(tmp_path / "shop")
    (tmp_path / "shop" / f"{ROWS}.png").write_bytes(b"no image")
    rows = [items[0], next(p for p in (items.visit(ROWS - 1, draw) for draw in range(50)) if p.image_number)]
    (error,) = TrainingCollator(factories.model().collator())(rows).broken
    assert error.row == f"{ROWS - 1}, image 2"


def test_stopping_early_is_not_remembered_as_a_check(decoded: list[str], tmp_path: Path) -> None:
    items = catalog(tmp_path / "shop")
    for i in (3, 40):
        (tmp_path / "shop" / f"{i}.png").unlink()
    assert [row for row, _ in broken_images(items, "shop", stop_early=True, remember=True)] == [3]
    assert [row for row, _ in broken_images(items, "shop", remember=True)] == [3, 40]


@pytest.mark.parametrize("damage", ["", "[]", '{"images": 3, "broken": []}', '{"images": 49, "broken": "x"}'])
def test_a_damaged_stamp_is_no_stamp(damage: str, decoded: list[str], tmp_path: Path) -> None:
    items = catalog(tmp_path / "shop")
    broken_images(items, "shop", remember=True)
    (stamp,) = (tmp_path / "cache" / "dualtower" / "checked").iterdir()
    stamp.write_text(damage)
    decoded.clear()
    assert broken_images(items, "shop", remember=True) == [] and len(decoded) == ROWS + 1


def test_two_processes_check_half_each(tmp_path: Path) -> None:
    torchrun(SCRIPT, tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    first, second = (json.loads((tmp_path / f"rank{number}.json").read_text()) for number in range(2))
    assert first["broken"] == second["broken"] == [10, 700]
    assert 0 < first["decoded"] < 700 and 0 < second["decoded"] < 700
    assert first["again"] == second["again"] == 2, "only the broken ones, for their reasons"


def batch_of(broken: set[int], count: int = 6) -> list[Item]:
    return [
        Item(str(i), str(i), (factories.TITLES[i],), b"no image" if i in broken else factories.png(factories.photo(i)))
        for i in range(count)
    ]


def test_the_next_good_row_stands_in_for_a_broken_one() -> None:
    collate = TrainingCollator(factories.model().collator())
    batch = collate(batch_of({1, 2, 5}))
    assert batch.ids == ("0", "3", "3", "3", "4", "0")
    assert [str(error.row) for error in batch.broken] == ["1", "2", "5"]
    assert batch.product_codes[1] == batch.product_codes[3], "copies are positives of each other"
    assert torch.equal(batch.pixels, collate(batch_of({1, 2, 5})).pixels)
    whole = collate(batch_of(set()))
    assert whole.broken == () and whole.ids == tuple("012345")


def test_a_batch_without_any_image_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the 6 images of a batch can be decoded; the first: "):
        TrainingCollator(factories.model().collator())(batch_of(set(range(6))))


def trainer(out: Path, items: ItemDataset, on_error: str, workers: int) -> Trainer:
    model = factories.model()
    config = run_config(out, model, steps=6)
    data = replace(config.data, on_error=on_error, workers=workers, cache_mb=0)
    return build_trainer(replace(config, data=data), model, items, accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_left_out_and_listed(workers: int, tmp_path: Path) -> None:
    items = catalog(tmp_path / "shop")
    made = trainer(tmp_path / "run", items, "skip", workers)
    (tmp_path / "shop" / "7.png").write_bytes(b"")
    outcome = made.fit()  # two epochs
    assert outcome.ended == "budget" and outcome.position.step == 6
    (error,) = outcome.skipped_rows
    assert error.row == "7" and "not an image" in error.reason and "left out of 2 batch(es)" in error.reason

    resumed = replace(made.config, resume=True, train=replace(made.config.train, steps=9))
    again = build_trainer(resumed, factories.model(), items, accelerator=Accelerator(cpu=True)).fit()
    assert "left out of 3 batch(es)" in again.skipped_rows[0].reason, "the count goes on"


@pytest.mark.parametrize("workers", [0, 1])
def test_or_it_is_an_error_that_says_what_to_type(workers: int, tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", catalog(tmp_path / "shop"), "raise", workers)
    (tmp_path / "shop" / "7.png").write_bytes(b"")
    with pytest.raises(BrokenImage, match=r"row 7: not an image.*; --data\.on_error skip leaves"):
        made.fit()
