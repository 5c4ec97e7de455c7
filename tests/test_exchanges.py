"""What ranks and devices exchange in a step: little, and nothing unequal."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import factories
import pytest
import torch
from processes import torchrun

from dualtower.data.transforms.attributes import AttributesConfig, attribute_values, fit_attributes
from dualtower.training.prefetch import on_device
from dualtower.types import Batch


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("exchanges")
    script = Path(__file__).parent / "distributed_collectives.py"
    torchrun(script, out)
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    return ranks


def test_three_exchanges_per_step(told: list[dict]) -> None:
    """The decision about the step, the joined rows, and the gradients (in one bucket, the network is small)."""
    for rank in told:
        assert rank["exchanges"] == pytest.approx({"gloo:all_reduce": 2, "gloo:all_gather": 1}, abs=0.3)


def test_unequal_batches_are_an_error_on_all_ranks(told: list[dict]) -> None:
    for rank in told:
        assert "different sizes (from 7 to 8 rows)" in rank["unequal"]


def whole_batch() -> Batch:
    rows = [{"color": "red", "price": 1.0}, {"color": "blue", "price": 2.0}]
    read = fit_attributes(AttributesConfig(("color", "price")), {n: [r[n] for r in rows] for n in rows[0]}, ("price",))
    return Batch(
        ("a", "b"),
        torch.arange(2),
        pixels=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        tokens=factories.model().collator().tokens(["red mug", "blue mug"]),
        attributes=attribute_values(read, rows),
        labels=torch.zeros(2, 1, dtype=torch.int64),
        present=torch.ones(2, 2, dtype=torch.bool),
    )


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.each(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def test_all_tensors_of_a_batch_move() -> None:
    batch = whole_batch()
    held = [getattr(batch, f.name) for f in fields(batch) if getattr(batch, f.name) is not None]
    single = [value for value in held if isinstance(value, torch.Tensor)]
    assert len(tensors(batch)) == len(single) + len(batch.tokens) + len(batch.attributes) == 8
    assert all(tensor.device.type == "meta" for tensor in tensors(batch.to("meta")))
    assert [b.ids for b in on_device([batch, batch], torch.device("cpu"))] == [batch.ids] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory and streams need a GPU")
def test_batches_are_pinned_and_copied_ahead() -> None:
    pinned = [whole_batch().pin_memory() for _ in range(3)]
    assert all(tensor.is_pinned() for batch in pinned for tensor in tensors(batch))
    for batch, wanted in zip(on_device(pinned, torch.device("cuda")), pinned, strict=True):
        for mine, original in zip(tensors(batch), tensors(wanted), strict=True):
            assert mine.device.type == "cuda" and torch.equal(mine.cpu(), original)
