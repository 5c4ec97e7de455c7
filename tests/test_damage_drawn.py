"""Damage drawn by code: it can be seen, its mask is right, and the same seed draws the same."""

from __future__ import annotations

import factories
import numpy as np
import pytest
from damaged import shirt
from PIL import Image

from dualtower.data.synthetic.damage import DAMAGES, DEVELOPED, HELD_OUT, draw_damage, product_area
from dualtower.errors import DataError, UnknownName


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("size", [(30, 40), (64, 64), (150, 200)])
def test_the_mask_is_what_has_changed(damage: str, size: tuple[int, int]) -> None:
    whole = shirt(3, size)
    for seed in range(10):
        found = draw_damage(whole, damage, seed=seed)
        change = np.abs(np.asarray(found.image, int) - np.asarray(whole, int)).max(2)
        assert found.damage == damage and found.image.size == whole.size and found.mask.shape == size[::-1]
        assert change[found.mask].min() >= 12 and change[~found.mask].max(initial=0) < 12
        assert 0.003 <= found.mask.mean() < 0.3 and change[found.mask].mean() >= 24
        assert (found.mask & product_area(np.asarray(whole, float))).any()


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_seed_decides(damage: str) -> None:
    first, again, other = (draw_damage(shirt(3, (60, 80)), damage, seed=seed) for seed in (4, 4, 5))
    assert first.image.tobytes() == again.image.tobytes() and (first.mask == again.mask).all()
    assert first.image.tobytes() != other.image.tobytes()


def test_the_product_is_found_before_a_wall_and_a_table() -> None:
    pixels = np.full((64, 64, 3), 220.0)
    pixels[44:] *= 0.85
    pixels[20:50, 24:40] = (30, 60, 160)
    assert product_area(pixels).sum() == 30 * 16
    blank = product_area(np.full((64, 64, 3), 200.0))
    assert blank.sum() == 32 * 32 and blank[16:48, 16:48].all()


def test_types_are_held_apart() -> None:
    assert sorted(DEVELOPED + HELD_OUT) == sorted(DAMAGES) and not set(DEVELOPED) & set(HELD_OUT)


def test_bad_input() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'stain'"):
        draw_damage(factories.photo(), "stains", seed=0)
    with pytest.raises(DataError, match="missing_part cannot be seen"):
        draw_damage(Image.new("RGB", (40, 40), "white"), "missing_part", seed=0)
