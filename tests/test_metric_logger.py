"""The progress bar: a total, a percentage and the time left, for every kind of budget."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_trainer import trainer

from dualtower.training.budget import Budget
from dualtower.training.checkpoint import Position
from dualtower.training.metric_logger import progress_bar, used

BAR = re.compile(r"(\d+)%\|.*?\| ([\d.]+)/([\d.]+) (steps|min) \[\d+:\d+<(\d+:\d+|\?) left(.*?)\]")


def bars(text: str) -> list[tuple[str, ...]]:
    return [found.groups() for found in BAR.finditer(text)]


@pytest.mark.parametrize(
    ("budget", "total", "unit"),
    [({"steps": 5}, "5", "steps"), ({"steps": None, "epochs": 2}, "6", "steps")],
    ids=["steps", "epochs"],
)
def test_steps_and_epochs_are_counted_in_steps(
    budget: dict[str, Any], total: str, unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, **budget).fit()
    shown = bars(capsys.readouterr().err)
    assert shown[0][:4] == ("0", "0", total, unit)
    assert shown[-1][:5] == ("100", total, total, unit, "00:00")
    assert "epoch 0.3, loss " in shown[-1][5] and "samples/s" in shown[-1][5]


def test_minutes_are_counted_in_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, steps=None, minutes=0.05).fit()
    shown = bars(capsys.readouterr().err)
    shares = [int(percent) for percent, *_ in shown]
    assert {(total, unit) for _, _, total, unit, *_ in shown} == {("0.05", "min")}
    assert shares == sorted(shares) and shares[0] < 20 and shares[-1] > 50
    assert re.fullmatch(r"00:0[0-3]", shown[-1][4])


def test_a_resumed_run_goes_on_where_it_stood() -> None:
    position = Position(step=30, seconds=90.0)
    steps, minutes = Budget(steps=120), Budget(seconds=600.0)
    for budget, share, count in ((steps, "25%", "30/120 steps"), (minutes, "15%", "1.5/10 min")):
        with progress_bar(budget, position) as bar:
            assert share in str(bar) and count in str(bar)
    with progress_bar(minutes, position) as bar:  # a tenth of the rest in 10 seconds leaves 90
        bar.start_t -= 10
        bar.n = used(minutes, replace(position, seconds=90 + 51))
        assert "<01:3" in str(bar)
    assert used(minutes, replace(position, seconds=601)) == 10
