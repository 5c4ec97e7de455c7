"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Small tensors run faster on one thread, and two test runs on one machine do not disturb each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_fashion() -> Path:
    """Folder of the real fashion products, or a skip where a checkout has none."""
    folder = REPOSITORY.parent / "shared" / "data" / "fashion-products"
    if not folder.is_dir():
        pytest.skip("the real products (../shared/data/fashion-products) are not beside this checkout")
    return folder
