"""Fixtures that several test files share, and what holds for all of them: one thread, and the long tests first."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for all processes that tests start

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Small tensors run faster on one thread, and two test runs on one machine do not disturb each other."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each worker begin with the files of slow tests, so that none is left alone with them at the end.

    Of pytest-xdist's workers, each takes an equal share of all tests in their order (``--dist worksteal``), and only
    then from what another has left. Where there is one process, the order stays.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers == 1:
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = {path: sum(item.get_closest_marker("slow") is not None for item in tests) for path, tests in files.items()}
    longest = sorted((path for path in files if slow[path]), key=lambda path: (-slow[path], path))
    rest = (item for path, tests in files.items() if not slow[path] for item in tests)
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        ordered += [item for path in longest[worker::workers] for item in files[path]]
        ordered += islice(rest, max(0, len(items) * (worker + 1) // workers - len(ordered)))
    items[:] = [*ordered, *rest]


@pytest.fixture(scope="session")
def shared_fashion() -> Path:
    """Folder of the real fashion products, or a skip where a checkout has none."""
    folder = REPOSITORY.parent / "shared" / "data" / "fashion-products"
    if not folder.is_dir():
        pytest.skip("the real products (../shared/data/fashion-products) are not beside this checkout")
    return folder
