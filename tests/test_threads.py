"""How many threads a training takes beside other programs, and what it says of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from dualtower import threads
from dualtower.threads import advised_threads, busy_cores
from dualtower.training import run


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how long its cores were idle")
def test_a_busy_core_is_seen() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        try:
            busy.stdout.readline()
            taken = busy_cores(0.5)
        finally:
            busy.kill()
    assert 0.6 < taken <= (os.cpu_count() or 1) + 0.1


def test_where_nothing_is_said_no_core_is_busy(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(threads, "_STAT", tmp_path / "stat")
    assert busy_cores(0) == 0
    (tmp_path / "stat").write_text("cpu  5 0 5 80 10 0 0 0 0 0\ncpu0 1 1 1 1\n")
    assert threads._core_times() == (90, 100)


CASES = [(2, 0.3, 2, 2), (2, 0.9, 2, 1), (2, 2.0, 2, 1), (2, 4.9, 8, 2), (8, 1, 8, 7)]


@pytest.mark.parametrize(("given", "taken", "cores", "advised"), CASES)
def test_fewer_threads_beside_other_programs(given: int, taken: float, cores: int, advised: int) -> None:
    assert advised_threads(given, taken, cores) == advised


def test_a_training_says_that_fewer_would_be_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "busy_cores", lambda: 1.02)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with caplog.at_level(logging.WARNING):
        run._warn_of_a_busy_machine(1)
        assert not caplog.text
        run._warn_of_a_busy_machine(2)
    assert "other programs take 1.0 of 2 cores" in caplog.text and "try --train.cpu-threads 1" in caplog.text
