"""The synthetic catalog is the same every time; its held-out combinations are new, their parts known."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtower.data.cards import load_card
from dualtower.data.items import ItemDataset
from dualtower.data.synthetic.catalog import MIN, SPLITS, _choose_products, _drawn, synthesize_catalog
from dualtower.data.synthetic.kept import kept_rows
from dualtower.data.synthetic.rendering import (
    COLORS,
    MATERIALS,
    OBJECTS,
    PATTERNS,
    ProductSpec,
    encode_png,
    render_view,
)
from dualtower.data.synthetic.titles import PATTERNED, PLAIN, WORDS, title
from dualtower.errors import ConfigError, UnknownName, UnknownSplit
from dualtower.types import Item

LOOK = ProductSpec(object="mug", color="blue", pattern="striped", accent="white", material="ceramic")


def pixels(image: object) -> np.ndarray:
    assert isinstance(image, bytes)
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), dtype=int)


@pytest.fixture(scope="module")
def catalog() -> dict[str, ItemDataset]:
    return {split: synthesize_catalog(products=240, views=2, split=split) for split in SPLITS}


def test_sizes_and_rows(catalog: dict[str, ItemDataset]) -> None:
    assert {split: len(rows) for split, rows in catalog.items()} == {
        "train": 2 * 144,
        "validation": 2 * 24,
        "test": 2 * 72,
    }
    ids = [row.id for rows in catalog.values() for row in rows]
    assert len(set(ids)) == len(ids)
    row = catalog["train"][0]
    assert pixels(row.image).shape == (64, 64, 3)
    assert set(row.attributes) == {"object", "color", "pattern", "accent", "material"}


def test_the_same_arguments_give_the_same_bytes(catalog: dict[str, ItemDataset]) -> None:
    again = list(_drawn(240, 0, "validation", "en", 2))
    assert [asdict(row) for row in again] == [asdict(row) for row in catalog["validation"]]
    other = synthesize_catalog(products=240, views=2, split="validation", seed=1)
    assert {row.product_id for row in other} != {row.product_id for row in again}


def test_images_are_pinned() -> None:
    """Results stay comparable between versions and machines: change the number only on purpose."""
    photo = render_view(LOOK, np.random.default_rng(1), np.random.default_rng(2))
    assert hashlib.sha256(photo.tobytes()).hexdigest()[:16] == "4ce8a7fcd9027968"


def test_held_out_combinations_are_new_and_made_of_known_parts(catalog: dict[str, ItemDataset]) -> None:
    combinations = {split: {tuple(sorted(row.attributes.items())) for row in rows} for split, rows in catalog.items()}
    items = {split: {row.product_id for row in rows} for split, rows in catalog.items()}
    for one, other in [("train", "validation"), ("train", "test"), ("validation", "test")]:
        assert not combinations[one] & combinations[other]
        assert not items[one] & items[other]
    known = {pair for combination in combinations["train"] for pair in combination}
    for split in ("validation", "test"):
        assert {pair for combination in combinations[split] for pair in combination} <= known


@pytest.mark.parametrize("seed", range(20))
def test_every_seed_of_the_smallest_catalog_has_every_value_in_training(seed: int) -> None:
    splits = _choose_products(MIN, seed)
    assert sum(len(looks) for looks in splits.values()) == MIN
    known = {value for look in splits["train"] for value in asdict(look).values()}
    assert {value for looks in splits.values() for look in looks for value in asdict(look).values()} <= known


def test_products_have_near_misses_beside_them(catalog: dict[str, ItemDataset]) -> None:
    looks = sorted({tuple(row.attributes.values()) for row in catalog["test"]})
    near = [any(0 < sum(a != b for a, b in zip(one, other, strict=True)) <= 2 for other in looks) for one in looks]
    assert np.mean(near) > 0.9


@pytest.mark.parametrize("language", ["en", "zh"])
def test_titles_name_every_attribute(language: str) -> None:
    rows = synthesize_catalog(language=language, products=200, views=1, split="all")
    assert len(rows) == 200
    words = WORDS[language]
    for row in rows:
        for text in row.texts:
            for value in row.attributes.values():
                if value != "none":
                    assert any(word.lower() in text.lower() for word in words[value]), (text, value)
    assert len({text for row in rows for text in row.texts}) > 380  # varied
    if language == "zh":
        assert all(any("\u4e00" <= c <= "\u9fff" for c in text) for row in rows for text in row.texts)


def test_both_languages_name_the_same_images() -> None:
    english, chinese = (synthesize_catalog(language=name, products=200, split="validation") for name in ("en", "zh"))
    assert [(row.id, row.image, row.attributes) for row in english] == [
        (row.id, row.image, row.attributes) for row in chinese
    ]


def test_example_titles() -> None:
    titles = {title(LOOK, "en", np.random.default_rng(i)) for i in range(400)}
    assert "Blue ceramic mug with white stripes" in titles
    assert "蓝色底白色条纹陶瓷马克杯" in {title(LOOK, "zh", np.random.default_rng(i)) for i in range(4000)}
    for text in titles:
        assert "  " not in text and not text.endswith((",", " ")) and " ," not in text


def test_every_value_has_words() -> None:
    values = {*OBJECTS, *COLORS, *PATTERNS, *MATERIALS["soft"], *MATERIALS["hard"]}
    assert set(WORDS["en"]) == set(WORDS["zh"]) == values
    assert set(PLAIN) == set(PATTERNED) == set(WORDS)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_fits_into_its_image_and_shows_its_attributes(name: str) -> None:
    material, *others = MATERIALS[OBJECTS[name]]

    def draw(**changes: str) -> np.ndarray:
        look = ProductSpec(**{**asdict(LOOK), "object": name, "material": material, **changes})
        return render_view(look, np.random.default_rng(3), np.random.default_rng(4)).astype(int)

    photo = draw()
    for changes in [
        {"color": "red"},
        {"accent": "black"},
        {"pattern": "dotted"},
        *({"material": m} for m in others),
    ]:
        changed = (np.abs(draw(**changes) - photo).max(axis=2) > 12).mean()
        assert 0.01 < changed < 0.6, changes  # the product changes, the background does not


@pytest.mark.parametrize("language", ["en", "zh"])
def test_card(language: str) -> None:
    card = load_card({"en": "synthetic", "zh": "synthetic_zh"}[language])
    assert (card.source.synthetic, card.languages, card.verified) == (language, [language], True)
    assert tuple(card.splits.named) == SPLITS
    row = synthesize_catalog(language=language, products=200, views=1, split="validation")[0]
    assert set(card.columns.attributes) == set(row.attributes)


def test_png_is_read_back_exactly() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(pixels(encode_png(photo)), photo)


def test_drawing_is_fast() -> None:
    start = time.process_time()
    assert len(list(_drawn(200, 0, "all", "en", 1))) == 200
    assert time.process_time() - start < 5  # a tenth of that on a quiet machine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dualtower" / "drawn"


def rows_drawn(drawings: list[str], color: str = "blue") -> list[Item]:
    """A row that is noted when it is drawn."""

    def draw() -> Iterator[Item]:
        drawings.append(color)
        yield Item(f"{color}-mug", "mug", ("a mug", "Mug"), b"\x89PNG", {"color": color})

    return kept_rows({"color": color}, draw)


def test_what_was_drawn_is_kept(cache: Path) -> None:
    drawings: list[str] = []
    first, again, other = (rows_drawn(drawings, color) for color in ("blue", "blue", "red"))
    assert drawings == ["blue", "red"] and first == again != other
    assert len(list(cache.glob("*.parquet"))) == 2
    fresh = synthesize_catalog(products=200, views=1, split="validation")
    kept = synthesize_catalog(products=200, views=1, split="validation")
    assert fresh.fingerprint == kept.fingerprint and fresh.rows_fingerprint == kept.rows_fingerprint


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: data.replace(b"PNG", b"PNX")]
)
def test_a_damaged_file_is_drawn_anew(damage: Callable[[bytes], bytes], cache: Path) -> None:
    drawings: list[str] = []
    first = rows_drawn(drawings)
    (file,) = cache.glob("*.parquet")
    file.write_bytes(damage(file.read_bytes()))
    assert rows_drawn(drawings) == first and drawings == ["blue", "blue"]
    assert rows_drawn(drawings) == first and drawings == ["blue", "blue"], "it is whole again"


def test_other_code_draws_anew_and_nothing_is_kept_where_nothing_can_be_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawings: list[str] = []
    rows_drawn(drawings)
    monkeypatch.setattr("dualtower.data.synthetic.kept._code", lambda: "another")
    rows_drawn(drawings)
    cache.parent.joinpath("file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "file"))
    assert rows_drawn(drawings) == rows_drawn(drawings) and drawings == ["blue"] * 4


def test_bad_arguments_say_what_is_possible() -> None:
    with pytest.raises(UnknownSplit, match="validation"):
        synthesize_catalog(split="valid")
    with pytest.raises(UnknownName, match="en, zh"):
        synthesize_catalog(language="de")
    with pytest.raises(ConfigError, match="200 to"):
        synthesize_catalog(products=10)
    with pytest.raises(ConfigError, match="1 or more"):
        synthesize_catalog(views=0)
