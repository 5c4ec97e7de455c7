"""Compiled towers learn the same, and are not compiled anew for every length of text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import factories
import pytest
import torch
from test_trainer import trainer
from torch._dynamo.utils import counters

from dualtower import DualTower
from dualtower.training.trainer import Trainer

LENGTHS = (5, 6, 4, 7, 3, 8)


def without_dropout(text: str) -> DualTower:
    plain = factories.config(text, "gernet")
    torch.manual_seed(0)
    return DualTower.create(replace(plain, text=replace(plain.text, dropout=0.0)), factories.tokenizer())


def graphs_after_steps(made: Trainer) -> list[int]:
    """Programs that the compiler has made after each step, of batches with texts of another length each."""
    groups, told = made._groups(), []
    for number, length in enumerate(LENGTHS):
        group = next(groups)
        batch = group.batches[0]
        tokens = {
            name: torch.nn.functional.pad(values[:, :3], (0, length - 3)) for name, values in batch.tokens.items()
        }
        tokens["input_ids"][:, -1], tokens["attention_mask"][:] = number, 1
        made._step(replace(group, batches=[replace(batch, tokens=tokens)]), number / len(LENGTHS))
        told.append(counters["stats"]["unique_graphs"])
    return told


@pytest.mark.slow
@pytest.mark.parametrize("text", ["bow", "bert", "lstm", "textcnn"])
def test_texts_of_many_lengths_compile_once(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    counters.clear()
    options = {"steps": len(LENGTHS), "augmentation": "none", "optimizer": "sgd"}
    compiled = trainer(tmp_path / "compiled", without_dropout(text), compile=True, **options)
    plain = trainer(tmp_path / "plain", without_dropout(text), **options)
    with compiled.metric_logger, plain.metric_logger:
        told = graphs_after_steps(compiled)
        assert told[0] >= 1, "nothing was compiled"
        assert told[-1] == told[0], f"compiled anew: {told} programs after each step"
        graphs_after_steps(plain)
    assert counters["stats"]["unique_graphs"] == told[-1]
    assert ("is not compiled" in caplog.text) == (text == "textcnn")
    for (name, mine), wanted in zip(compiled.unwrapped.named_parameters(), plain.unwrapped.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-4, msg=name)
