"""Augmentation is a function of its seeds, stays in range, and each preset keeps its promise."""

from __future__ import annotations

import pytest
import torch

from dualtower.data.transforms.augmentation import AUGMENTATIONS, BatchRNG, augment, erase


def photos(batch: int = 6, height: int = 40, width: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("size", [None, (20, 16)])
def test_shape_range_and_repeatability(name: str, size: tuple[int, int] | None) -> None:
    first = augment(photos(), name, BatchRNG(0, 5, 1, size=6), size=size)
    again = augment(photos(), name, BatchRNG(0, 5, 1, size=6), size=size)
    assert first.shape == (6, 3, *(size or (40, 30)))
    assert first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 255 + 1e-3
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["product", "simclr"])
def test_another_step_draws_otherwise(name: str) -> None:
    first = augment(photos(), name, BatchRNG(0, 5, size=6))
    assert not torch.equal(first, augment(photos(), name, BatchRNG(0, 6, size=6)))


def test_none_changes_nothing() -> None:
    assert torch.equal(augment(photos(), "none", BatchRNG(0, size=6)), photos().float())


def test_product_keeps_color() -> None:
    """An image of one color stays exactly that color under crop and flip."""
    plain = torch.tensor([200.0, 30.0, 90.0])[None, :, None, None].expand(8, 3, 32, 24)
    out = augment(plain, "product", BatchRNG(3, size=8))
    torch.testing.assert_close(out, plain, atol=1e-3, rtol=0)


def test_product_flips_about_half() -> None:
    """Left-to-right ramps that fall after augmentation have been flipped."""
    ramp = torch.linspace(0, 255, 32).expand(400, 3, 16, 32)
    out = augment(ramp, "product", BatchRNG(0, size=400))
    flipped = (out[:, 0, 8, 0] > out[:, 0, 8, -1]).float().mean()
    assert 0.4 < flipped < 0.6


def test_product_magnifies_as_often_as_it_shrinks() -> None:
    """Otherwise a model would meet its images at another scale than it has learned them at."""
    ramp = torch.linspace(0, 255, 32).expand(400, 3, 16, 32)
    out = augment(ramp, "product", BatchRNG(0, size=400))
    slope = (out[:, 0, 8, 20] - out[:, 0, 8, 12]).abs() / 8
    assert slope.std() > 0.1
    assert slope.mean().item() == pytest.approx(255 / 31, rel=0.02)


@pytest.mark.parametrize("name", ["product", "simclr"])
def test_strength_is_how_far_it_goes(name: str) -> None:
    """At strength 0 nothing is left but flips (and, in simclr, greying and blurring)."""
    ramp = torch.linspace(0, 255, 32).expand(200, 3, 16, 32)
    spread = {
        strength: (out[:, 0, 8, 20] - out[:, 0, 8, 12]).abs().std().item()
        for strength in (0.0, 0.5, 1.0)
        for out in [augment(ramp, name, BatchRNG(0, size=200), strength=strength)]
    }
    assert spread[0.0] < 0.5 < spread[0.5] < spread[1.0]


def test_hue_rotation_keeps_grey() -> None:
    gray = torch.full((4, 3, 8, 8), 100.0)
    out = augment(gray, "simclr", BatchRNG(1, size=4))
    assert torch.allclose(out[:, 0], out[:, 1], atol=0.5) and torch.allclose(out[:, 1], out[:, 2], atol=0.5)


def test_neighboring_seeds_are_independent() -> None:
    draws = torch.stack([BatchRNG(0, step, 0, 0, size=64).uniform(0, 1) for step in range(50)])
    correlations = torch.corrcoef(draws) - torch.eye(50)
    assert correlations.abs().max() < 0.6
    assert abs(draws.mean().item() - 0.5) < 0.03


def test_erasing_hides_one_rectangle_of_some_images() -> None:
    pixels = torch.full((2000, 3, 40, 30), -1.0)
    erased = erase(pixels, BatchRNG(0, size=2000), share=0.4)
    hidden = (erased != -1).all(1)
    touched = hidden.flatten(1).any(1)
    assert 0.36 < touched.float().mean() < 0.44
    shares = hidden[touched].float().mean((1, 2))
    assert shares.min() > 0.005 and shares.max() < 0.3 and 0.1 < shares.mean() < 0.17
    rows, columns = hidden.any(2), hidden.any(1)  # a rectangle is the product of its rows and columns
    assert torch.equal(hidden, rows[:, :, None] & columns[:, None, :])
    assert torch.equal(erased, erase(pixels, BatchRNG(0, size=2000), share=0.4))
    assert len(erased[touched][0].permute(1, 2, 0)[hidden[touched][0]].unique(dim=0)) == 1
