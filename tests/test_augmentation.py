"""Augmentation is a function of its seeds, stays in range, and each preset keeps its promise."""

from __future__ import annotations

import pytest
import torch

from dualtower.data.transforms.augmentation import AUGMENTATIONS, PRESETS, BatchRNG, augment, erase
from dualtower.data.transforms.presets import PresetRule, augment_each
from dualtower.errors import ConfigError, UnknownName


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


# Presets for kinds of products


def cross(batch: int, height: int = 64, width: int = 48) -> torch.Tensor:
    """A dark bar on white, upright in the middle."""
    pixels = torch.full((batch, 3, height, width), 255.0)
    pixels[:, :, 12:52, 22:26] = 0
    return pixels


def tilt(pixels: torch.Tensor) -> torch.Tensor:
    """Degrees between the dark bar of each image and the upright, in pixels and not in shares of the sides."""
    angles = []
    for image in 255 - pixels[:, 0]:
        y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in image.shape), indexing="ij")
        weight = image.double() / image.sum()
        y, x = y - (weight * y).sum(), x - (weight * x).sum()
        angle = 0.5 * torch.atan2(2 * (weight * x * y).sum(), (weight * y * y).sum() - (weight * x * x).sum())
        angles.append(torch.rad2deg(angle))
    return torch.stack(angles)


@pytest.mark.parametrize(("name", "least", "most"), [("apparel", 8, 18), ("product", 0, 0.5)])
def test_how_far_a_preset_turns(name: str, least: float, most: float) -> None:
    turned = tilt(augment(cross(200), name, BatchRNG(0, size=200)).clamp(0, 255)).abs()
    assert least <= turned.max() <= most


def test_jewelry_is_turned_any_way_and_keeps_its_metal() -> None:
    assert tilt(augment(cross(200), "jewelry", BatchRNG(0, size=200))).abs().max() > 80
    gold = torch.tensor([180.0, 140.0, 40.0])[None, :, None, None].expand(50, 3, 32, 24)
    out = augment(gold, "jewelry", BatchRNG(3, size=50))[:, :, 16, 12]
    ratio = out / out.sum(1, keepdim=True)
    torch.testing.assert_close(ratio, (gold[0, :, 0, 0] / 360).expand_as(ratio), atol=1e-3, rtol=0)
    assert (out.std(0) / out.mean(0)).min() > 0.1, "the light is another one"


def test_electronics_are_never_mirrored() -> None:
    ramp = torch.linspace(20, 235, 32).expand(200, 3, 16, 32)
    out = augment(ramp, "electronics", BatchRNG(0, size=200))
    assert (out[:, 0, 4:12, -8:].mean((1, 2)) > out[:, 0, 4:12, :8].mean((1, 2))).all()


RULE = {"by": "kind", "Clothes": "apparel", "Rings": "jewelry", "default": "none"}


def test_each_row_gets_the_preset_of_its_kind() -> None:
    rule, rows = (
        PresetRule.of(RULE),
        [{"kind": kind} for kind in ("Rings", "Clothes", None, "Clothes", "Cups", "Rings")],
    )
    codes = rule.codes(rows)
    assert [PRESETS[code] for code in codes] == ["jewelry", "apparel", "none", "apparel", "none", "jewelry"]
    assert rule.names == ["apparel", "jewelry", "none"]
    pixels = photos()
    out = augment_each(pixels, codes, BatchRNG(7, size=6), size=(40, 30), strength=1.0)
    assert torch.equal(out[[2, 4]], pixels[[2, 4]].float())
    assert not torch.equal(out[0], pixels[0].float()) and not torch.equal(out[1], pixels[1].float())
    assert torch.equal(out, augment_each(pixels, codes, BatchRNG(7, size=6), size=(40, 30), strength=1.0))
    one_kind = augment_each(pixels, torch.full((6,), codes[1]), BatchRNG(7, size=6), size=(40, 30), strength=1.0)
    torch.testing.assert_close(one_kind, augment(pixels, "apparel", BatchRNG(7, size=6)))
    torch.testing.assert_close(one_kind[[1, 3]], out[[1, 3]], msg="whatever its neighbors get")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"by": "kind"}, "lacks 'default'"),
        ({"default": "none"}, "lacks 'by'"),
        ({"by": "kind", "default": "aparel"}, "Did you mean 'apparel'"),
    ],
)
def test_a_rule_that_says_too_little_is_refused(rule: dict[str, str], said: str) -> None:
    with pytest.raises((ConfigError, UnknownName), match=said):
        PresetRule.of(rule)


# Crops from images that are larger than the model's


def test_a_crop_keeps_the_detail_of_a_larger_image() -> None:
    """A third of the image, enlarged to the model's size, is cut out of pixels and not out of what was averaged."""
    checks = torch.arange(58).unsqueeze(1).add(torch.arange(44)).remainder(2).mul(255.0).expand(64, 3, 58, 44)
    from_large = augment(checks, "jewelry", BatchRNG(0, size=64), size=(32, 24))
    smaller = torch.nn.functional.interpolate(checks, (32, 24), mode="bilinear", antialias=True)
    from_small = augment(smaller, "jewelry", BatchRNG(0, size=64), size=(32, 24))
    detail = [out.std((1, 2, 3)).max().item() for out in (from_large, from_small)]
    assert detail[0] > 2 * detail[1] + 5


def test_a_whole_image_that_is_made_smaller_does_not_alias() -> None:
    checks = torch.arange(96).unsqueeze(1).add(torch.arange(72)).remainder(2).mul(255.0).expand(16, 3, 96, 72)
    out = augment(checks, "product", BatchRNG(0, size=16), size=(32, 24))
    torch.testing.assert_close(out, torch.full_like(out, 127.5), atol=3, rtol=0)
