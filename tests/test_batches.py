"""Batches are a pure function of seed and epoch, equal in length on all ranks, distinct where asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualtower.data.batches import Collator, PixelCache, training_loader
from dualtower.data.items import ItemDataset
from dualtower.data.sampling import BatchSampler
from dualtower.data.transforms.images import ImageSettings
from dualtower.data.transforms.tokenizer import train_tokenizer
from dualtower.errors import BrokenImage, ConfigError
from dualtower.types import Item, product_code

SETTINGS = ImageSettings(height=12, width=8)


def png(shade: int) -> bytes:
    import io

    stream = io.BytesIO()
    Image.new("RGB", (8, 12), (shade % 256, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def catalog(counts: list[int]) -> ItemDataset:
    """Product n has ``counts[n]`` rows."""
    rows = [
        Item(f"{p}-{i}", f"product {p}", (f"title of {p}", f"also {p}"), png(p))
        for p, count in enumerate(counts)
        for i in range(count)
    ]
    return ItemDataset.from_rows(rows)


def addresses(plan: BatchSampler, epoch: int, start: int = 0) -> list[list[tuple[int, int]]]:
    plan.set_epoch(epoch, start)
    return list(plan)


@pytest.mark.parametrize("sampling", ["rows", "no_duplicate_products"])
def test_pure_function_of_seed_and_epoch(sampling: str) -> None:
    items = catalog([3] * 20)
    make = lambda seed: BatchSampler(items, batch_size=8, sampling=sampling, seed=seed)  # noqa: E731
    assert addresses(make(1), 4) == addresses(make(1), 4)
    assert addresses(make(1), 4) != addresses(make(1), 5)
    assert addresses(make(1), 4) != addresses(make(2), 4)
    assert addresses(make(1), 4, start=3) == addresses(make(1), 4)[3:]


@pytest.mark.parametrize("sampling", ["rows", "no_duplicate_products"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_one_joined_batch(sampling: str, world: int) -> None:
    items = catalog([1, 2, 3, 4] * 8)
    ranks = [
        BatchSampler(items, batch_size=16 // world, sampling=sampling, rank=r, world_size=world) for r in range(world)
    ]
    whole = addresses(BatchSampler(items, batch_size=16, sampling=sampling), 2)
    parts = [addresses(plan, 2) for plan in ranks]
    assert {len(p) for p in parts} == {len(ranks[0])} == {len(whole)}
    assert [[*chain(*step)] for step in zip(*parts, strict=True)] == whole


def test_rows_visits_each_row_at_most_once() -> None:
    plan = BatchSampler(catalog([2] * 25), batch_size=8)
    seen = Counter(row for batch in addresses(plan, 0) for row, _ in batch)
    assert len(plan) == 6 and len(seen) == 48 and set(seen.values()) == {1}


@pytest.mark.parametrize("counts", [[1] * 40, [3] * 20, [30, 1, 1, 2, 2] + [1] * 20, [50] * 9])
def test_distinct_never_repeats_a_product_in_a_batch(counts: list[int]) -> None:
    items = catalog(counts)
    plan = BatchSampler(items, batch_size=8, sampling="no_duplicate_products")
    for epoch in range(3):
        batches = addresses(plan, epoch)
        assert len(batches) == len(plan)
        rows = [row for batch in batches for row, _ in batch]
        assert len(set(rows)) == len(rows)
        for batch in batches:
            assert len({items.product_ids[row] for row, _ in batch}) == 8


def test_distinct_reaches_all_rows_over_epochs() -> None:
    plan = BatchSampler(catalog([30, 1, 1, 2, 2] + [1] * 20), batch_size=8, sampling="no_duplicate_products")
    seen = {row for epoch in range(60) for batch in addresses(plan, epoch) for row, _ in batch}
    assert seen == set(range(56))


@pytest.mark.parametrize(
    ("sampling", "have"),
    [("rows", "10 rows"), ("no_duplicate_products", "2 products")],
    ids=["rows", "no_duplicate_products"],
)
def test_too_small_a_split_is_named(sampling: str, have: str) -> None:
    with pytest.raises(ConfigError, match=have):
        BatchSampler(catalog([5, 5]), batch_size=16, sampling=sampling)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_gives_the_same_batches_with_and_without_workers_and_cache(workers: int) -> None:
    items = catalog([2] * 16)
    tokenizer = train_tokenizer([t for texts in items.texts for t in texts], vocab_size=60)
    plain = Collator(tokenizer, SETTINGS)
    cached = Collator(tokenizer, SETTINGS, cache=PixelCache(items, SETTINGS))
    plan = BatchSampler(items, batch_size=8)
    plan.set_epoch(1)
    expected = list(training_loader(items, plan, plain))
    for _ in range(2):  # the second pass reads what the first one stored
        got = list(training_loader(items, plan, cached, workers=workers))
        for a, b in zip(expected, got, strict=True):
            assert a.ids == b.ids
            assert torch.equal(a.pixels, b.pixels)
            assert torch.equal(a.tokens["input_ids"], b.tokens["input_ids"])


def test_captions_are_sampled_per_epoch() -> None:
    items = catalog([1] * 8)
    tokenizer = train_tokenizer([t for texts in items.texts for t in texts], vocab_size=60)
    plan = BatchSampler(items, batch_size=8)
    loader = training_loader(items, plan, Collator(tokenizer, None))
    heard: dict[str, set] = {row_id: set() for row_id in items.ids}
    for epoch in range(20):
        plan.set_epoch(epoch)
        for batch in loader:
            for row_id, tokens in zip(batch.ids, batch.tokens["input_ids"], strict=True):
                heard[row_id].add(tokenizer.decode(tokens, skip_special_tokens=True))
    assert all(len(captions) == 2 for captions in heard.values())


def test_batch_is_padded_to_its_own_longest_text() -> None:
    tokenizer = train_tokenizer(["red shoe", "blue cotton shirt with stripes"] * 20, vocab_size=60)
    collate = Collator(tokenizer, None, max_length=64)
    short, long = collate.tokens(["red"]), collate.tokens(["red", "blue cotton shirt with stripes"])
    assert short["input_ids"].shape[1] < long["input_ids"].shape[1] < 64
    assert Collator(tokenizer, None, max_length=4).tokens(["blue cotton shirt"])["input_ids"].shape[1] == 4


def test_broken_image_names_its_row() -> None:
    collate = Collator(None, SETTINGS)
    with pytest.raises(BrokenImage, match="row 7"):
        collate([Item("7", "p", ("a",), b"no image")])
    with pytest.raises(BrokenImage, match=r"row 8.*no image"):
        collate([Item("8", "p", ("a",), None)])


def test_codes_are_those_of_the_products() -> None:
    batch = Collator(None, None)([Item("1", "x", ("a",)), Item("2", "y", ("b",))])
    assert batch.product_codes.tolist() == [product_code("x"), product_code("y")]
    assert batch.product_codes.dtype == torch.int64 and batch.product_codes.numpy().dtype == np.int64


@pytest.mark.parametrize(("rows", "in_transit"), [(25_000, 0), (20_000, 4_000_000), (10, 4_000_000)])
def test_full_shared_memory_costs_the_cache_and_not_the_run(rows: int, in_transit: int) -> None:
    """In a /dev/shm of 6 MB: a cache of 7.2 MB, and one of 5.8 MB or next to nothing beside 4 MB of batches."""
    script = Path(__file__).with_name("small_shared_memory.py")
    command = f"mount -t tmpfs -o size=6m tmpfs /dev/shm && exec {sys.executable} {script} {rows} {in_transit}"
    mount = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=6m tmpfs /dev/shm"]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small /dev/shm, and only in a mount namespace of its own")
    path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kept = rows == 10
    assert done.stdout.split() == ["cache" if kept else "none", "8"]
    lines = [line for line in done.stderr.splitlines() if "no room to keep decoded images" in line]
    assert len(lines) == (not kept) and len("".join(lines)) < 400, done.stderr
