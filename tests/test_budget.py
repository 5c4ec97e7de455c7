"""The budget in any unit becomes one number from 0 to 1, and the schedule follows it."""

from __future__ import annotations

import pytest

from dualtower.errors import ConfigError
from dualtower.training.budget import Budget, Clock, learning_rate_factor
from dualtower.training.config import TrainConfig


def test_each_unit() -> None:
    assert Budget.of(TrainConfig(epochs=2.5), 10) == Budget(steps=25)
    assert Budget.of(TrainConfig(steps=7), 10) == Budget(steps=7)
    assert Budget.of(TrainConfig(minutes=2), 10) == Budget(seconds=120)
    assert Budget(steps=8).progress(2, 1e9) == 0.25
    assert Budget(seconds=100).progress(10**9, 25) == 0.25
    assert Budget(steps=8).progress(9, 0) == 1


def test_no_budget_names_the_options() -> None:
    with pytest.raises(ConfigError, match=r"--train\.epochs, --train\.steps and --train\.minutes"):
        Budget.of(TrainConfig(), 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 1, "steps": 2}, "2 times"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"warmup": 1.5}, "between 0 and 1"),
        ({"lr": -1.0}, "above 0"),
        ({"minutes": 0.0}, "above 0"),
    ],
)
def test_impossible_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


def test_schedule_warms_up_peaks_and_decays() -> None:
    rate = lambda p: learning_rate_factor(p, warmup=0.1, final=0.05)  # noqa: E731
    assert rate(0.05) == pytest.approx(0.5)
    assert rate(0.1) == pytest.approx(1)
    assert rate(0.55) == pytest.approx((1 + 0.05) / 2)
    assert rate(1.0) == pytest.approx(0.05)
    assert 0 < rate(0) < 0.01
    assert learning_rate_factor(0, warmup=0, final=0) == 1


def test_clock_counts_the_time_before_a_stop() -> None:
    assert 100 <= Clock(100).seconds() < 101
