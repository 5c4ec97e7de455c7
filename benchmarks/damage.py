"""Damage each file of a catalog: is it found, is anything wrong answered, and is it healed?

    python benchmarks/damage.py --damages 300

A catalog of synthetic products is copied; one file of the copy gets a flipped bit, is cut, deleted, or replaced by what
it was some changes before. Then it is opened, searched and verified, each hit is compared with what was written, and it
is repaired and its cache built anew.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import save_results

from dualtower import DualTower, ModelConfig
from dualtower.data.synthetic.catalog import synthesize_catalog
from dualtower.data.transforms.images import ImageSettings
from dualtower.data.transforms.tokenizer import train_tokenizer
from dualtower.errors import DualTowerError
from dualtower.models.towers import ImageTowerConfig, TextTowerConfig
from dualtower.search.ingest.embed import index_products, open_or_create
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.repair import repair
from dualtower.search.local.store import LocalStore
from dualtower.search.queries import Query
from dualtower.types import Hit

DAMAGES = ("flip", "cut", "delete", "restore")
QUERIES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a damaged cache is logged, three hundred times
    dice, counts = random.Random(args.seed), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = make_model()
        older, whole, truths = make_catalog(folder, model)
        for number in range(args.damages):
            copy = Path(shutil.copytree(whole, folder / "copy"))
            name, vector_name = damage(copy, older, dice)
            found = judge(copy, truths, model)
            counts[kind_of_file(name), "damages"] += 1
            for what in found:
                counts[kind_of_file(name), what] += 1
            print(f"{number + 1} of {args.damages}: {vector_name} {name}: {', '.join(found)}", flush=True)
            shutil.rmtree(copy)
    columns = ("damages", "found", "inert", "missed", "wrong answers", "healed", "healed without some rows", "refused")
    files = sorted({file for file, _ in counts})
    rows = [[file, *(str(counts[file, what]) for what in columns)] for file in files]
    totals = {what: sum(counts[file, what] for file in files) for what in columns}
    save_results(
        "damage",
        title=f"{args.damages} damages of the files of a catalog",
        tables=[(["file", *columns], [*rows, ["all", *(str(totals[what]) for what in columns)]])],
        values=totals,
    )


def make_model() -> DualTower:
    """A small model, untrained: vectors must be the same when they are made again, not good."""
    titles = [title for texts in synthesize_catalog(split="test").texts for title in texts]
    config = ModelConfig(
        text=TextTowerConfig(name="textcnn", width=16),
        image=ImageTowerConfig(name="resnet10t", options={"channels": (8, 8, 16, 16), "stem_width": 8}),
        image_settings=ImageSettings(height=32, width=24),
        embed_dim=16,
    )
    return DualTower.create(config, train_tokenizer(titles, vocab_size=300)).eval()


def make_catalog(folder: Path, model: DualTower) -> tuple[Path, Path, list[dict[str, Any]]]:
    """An older state of a catalog, the newest one, and what each of them holds."""
    items = synthesize_catalog(split="test")
    kinds = dict.fromkeys(items.attributes, "text")
    store = open_or_create(folder / "whole", model, name="model", attributes=kinds)
    assert isinstance(store, LocalStore)
    index_products(store, model, items[: len(items) // 2])
    store.rebuild()
    store.close()
    older = Path(shutil.copytree(folder / "whole", folder / "older"))
    truths = [truth_of(store)]
    index_products(store, model, items)
    store.delete(items.ids[:5])
    store.update_attributes({row_id: {"color": "mauve"} for row_id in items.ids[5:15]})
    store.rebuild()
    truths.append(truth_of(store))
    store.close()
    return older, folder / "whole", truths


def truth_of(store: LocalStore) -> dict[str, Any]:
    """Id -> all that there is of a row."""
    held = {}
    for row in store.get(sorted(store.digests())):
        vectors = {vector_name: store.vector(row.id, vector_name) for vector_name in row.vector_names}
        held[row.id] = (row.product_id, row.title, row.attributes, store.image(row.id), vectors)
    return held


def damage(copy: Path, older: Path, dice: random.Random) -> tuple[str, str]:
    """Damage one file; its name, and what has been done."""
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    path, vector_name = dice.choice(files), dice.choice(DAMAGES)
    before = older / path.relative_to(copy)
    content = bytearray(path.read_bytes())
    if vector_name == "restore" and (not before.exists() or before.read_bytes() == bytes(content)):
        vector_name = "flip"
    if vector_name == "flip":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
    elif vector_name == "cut":
        path.write_bytes(content[: dice.randrange(len(content))])
    elif vector_name == "delete":
        path.unlink()
    else:
        shutil.copy(before, path)
    return str(path.relative_to(copy)), vector_name


def judge(copy: Path, truths: list[dict[str, Any]], model: DualTower) -> list[str]:
    """What became of a damaged catalog."""
    said: list[str] = []
    try:
        store = LocalStore(copy)
        if not answers_right(store, truths):
            said.append("wrong answers")
        if store.catalog.verify() or store.cache_problems():
            said.append("found")
    except DualTowerError:
        said.append("found")
    if "found" not in said:
        said.append("inert" if holds(copy, truths) else "missed")
    try:
        Catalog.mend_info(copy)
        store = LocalStore(copy)
        repaired = repair(store, lambda: model)
        store.rebuild()
        clean = store.catalog.verify() == [] and not store.cache_problems() and answers_right(store, truths)
        lost = bool(repaired.lost or repaired.without_thumbnail)
        said.append(("healed without some rows" if lost else "healed") if clean else "not healed")
    except DualTowerError:
        said.append("refused")
    return said


def answers_right(store: LocalStore, truths: list[dict[str, Any]]) -> bool:
    """Whether every hit of some searches is a row as it was written, with its score; an error is no wrong answer."""
    vectors = np.random.default_rng(0).normal(size=(QUERIES, store.info.dim)).astype(np.float32)
    for vector_name in store.info.vector_names:
        for vector in vectors:
            try:
                hits = store.search(Query(vector, vector_name, limit=50, group_by_product=False)).hits
                if not all(any(is_true(hit, vector_name, vector, truth) for truth in truths) for hit in hits):
                    return False
            except DualTowerError:
                continue
    return True


def is_true(hit: Hit, vector_name: str, vector: np.ndarray, truth: dict[str, Any]) -> bool:
    """Whether a hit is what a state of the catalog says of that row."""
    if hit.id not in truth:
        return False
    product, title, attributes, _, vectors = truth[hit.id]
    shown = (hit.product_id, hit.row["title"], hit.row["attributes"]) == (product, title, attributes)
    return shown and vector_name in vectors and abs(hit.score - float(vectors[vector_name] @ vector)) < 1e-3


def holds(copy: Path, truths: list[dict[str, Any]]) -> bool:
    """Whether all rows are as one of the states has them."""
    held = truth_of(LocalStore(copy))
    return any(same(held, truth) for truth in truths)


def same(held: dict[str, Any], truth: dict[str, Any]) -> bool:
    """Whether two states are one."""
    return held.keys() == truth.keys() and all(
        held[i][:4] == truth[i][:4] and all(np.array_equal(held[i][4].get(k), v) for k, v in truth[i][4].items())
        for i in held
    )


def kind_of_file(name: str) -> str:
    """Without what differs between catalogs."""
    return Path(name).parts[0] if "/" in name else name


if __name__ == "__main__":
    main()
