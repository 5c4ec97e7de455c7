"""Damage drawn onto images of whole products, with the pixels that it covers: what detectors are measured on.

Four types: a stain, a tear, scratches, a part that is missing. All of them begin on the product, which is what differs
from the background that the image's border shows; sizes are shares of the image's shorter side. The same image, type
and seed give the same damage.

The detectors were chosen by looking at `DEVELOPED`; `HELD_OUT` was kept for the measurement, so that its figures say
what to expect of damage that nobody thought of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dualtower.errors import DataError, UnknownName

__all__ = ["DAMAGES", "DEVELOPED", "HELD_OUT", "Damaged", "draw_damage", "product_area"]

DEVELOPED = ("stain", "tear")
HELD_OUT = ("scratch", "missing_part")

MIN_SHARE = 0.003
"""Least share of the image that damage covers; 14 pixels of a photo of 60x80."""
MIN_CHANGE = 24.0
"""Least mean change of the covered pixels, in levels of 0..255 of the channel that changes most."""
SEEN = 12
"""A pixel is damaged where one of its channels changes by so many levels: less is lost in the noise of a JPEG."""
_TRIES = 12
_FINE = 4  # damage is drawn this much larger, which smooths its edges
_UNLIKE_BACKGROUND = 36

Points = list[tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Damaged:
    """An image with damage.

    Attributes:
        image: RGB, of the size of the whole one.
        mask: Which pixels are damaged, bool ``[H, W]``.
        damage: A key of `DAMAGES`.
    """

    image: Image.Image
    mask: np.ndarray
    damage: str


@dataclass(frozen=True, eq=False)
class _Canvas:
    """What a type of damage draws on: pixels float ``[H, W, 3]``, and where the product is, bool ``[H, W]``."""

    pixels: np.ndarray
    product: np.ndarray
    rng: np.random.Generator

    @property
    def side(self) -> float:
        return float(min(self.product.shape))

    def place(self) -> tuple[float, float]:
        """A point of the product, x and y in pixels."""
        rows, columns = np.nonzero(self.product)
        number = int(self.rng.integers(len(rows)))
        return float(columns[number]), float(rows[number])

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def color_at(self, place: tuple[float, float]) -> np.ndarray:
        """The mean color round a point, float ``[3]``."""
        column, row, reach = round(place[0]), round(place[1]), max(1, round(self.side / 20))
        around = self.pixels[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        color: np.ndarray = around.reshape(-1, 3).mean(0)
        return color

    def drawn(self, draw: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
        """What is drawn in white, smoothed, float 0..1 ``[H, W]``; coordinates are times `_FINE`."""
        height, width = self.product.shape
        layer = Image.new("L", (width * _FINE, height * _FINE))
        draw(ImageDraw.Draw(layer))
        return np.asarray(layer.reduce(_FINE)) / np.float64(255)


def draw_damage(image: Image.Image, damage: str, *, seed: int) -> Damaged:
    """Draw damage that can be seen onto the product of an image.

    Args:
        image: A whole product, RGB.
        damage: A key of `DAMAGES`.
        seed: Seed of place, size and color.

    Raises:
        UnknownName: No such type.
        DataError: Nothing that was tried can be seen, as where a part is missing from an image without a product.
    """
    if damage not in DAMAGES:
        raise UnknownName("type of damage", damage, DAMAGES)
    pixels = np.asarray(image.convert("RGB"), np.float64)
    product = product_area(pixels)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for attempt in range(_TRIES):  # a place may be as dark as the stain that falls on it
        rng = np.random.default_rng([seed, attempt])
        changed = np.clip(DAMAGES[damage](_Canvas(pixels, product, rng)).round(), 0, 255)
        change = np.abs(changed - pixels).max(2)
        mask = change >= SEEN
        if not mask.any():
            continue
        visible = min(mask.mean() / MIN_SHARE, change[mask].mean() / MIN_CHANGE)
        if best is None or visible > best[0]:
            best = (float(visible), changed, mask)
        if visible >= 1:
            break
    if best is None:
        raise DataError(f"{damage} cannot be seen on this image, which is of one color; give an image of a product")
    return Damaged(Image.fromarray(best[1].astype(np.uint8)), best[2], damage)


def product_area(pixels: np.ndarray) -> np.ndarray:
    """Where the product is: pixels unlike the background, bool ``[H, W]``; the middle of the image where none are.

    Args:
        pixels: RGB 0..255, ``[H, W, 3]``.
    """
    height, width = pixels.shape[:2]
    grounds = (_background(pixels), _background(pixels.swapaxes(0, 1)).swapaxes(0, 1), _border_color(pixels))
    unlike = np.minimum.reduce([np.abs(pixels - ground).max(2) for ground in grounds]) > _UNLIKE_BACKGROUND
    middle = np.zeros((height, width), bool)
    middle[height // 4 : math.ceil(height * 3 / 4), width // 4 : math.ceil(width * 3 / 4)] = True
    return unlike if unlike.mean() >= 0.02 else middle


def _border_color(pixels: np.ndarray) -> np.ndarray:
    """The median color of the outermost pixels, float ``[3]``."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color: np.ndarray = np.median(border, axis=0)
    return color


def _background(pixels: np.ndarray) -> np.ndarray:
    """What the left and the right end of each row would show between them without the product, float ``[H, W, 3]``.

    An end that is unlike the rest of the border is taken for the product, and the border's color stands in its place.
    """
    usual, width = _border_color(pixels), pixels.shape[1]
    ends = []
    for end in (pixels[:, :3], pixels[:, -3:]):
        color = np.median(end, axis=1)
        unlike = np.abs(color - usual).max(1, keepdims=True) > 2 * _UNLIKE_BACKGROUND
        ends.append(np.where(unlike, usual, color)[:, None])
    way = (np.arange(width) / max(1, width - 1))[None, :, None]
    between: np.ndarray = ends[0] * (1 - way) + ends[1] * way
    return between


def _laid_over(pixels: np.ndarray, cover: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Paint `color` over pixels ``[H, W, 3]``, as opaque as `cover` ``[H, W]`` says."""
    painted: np.ndarray = pixels * (1 - cover[..., None]) + color * cover[..., None]
    return painted


def _scaled(points: Sequence[tuple[float, float]]) -> Points:
    return [(x * _FINE, y * _FINE) for x, y in points]


def _stain(canvas: _Canvas) -> np.ndarray:
    """Spilled coffee, mud or ink, or bleach on what is dark: a few round blots that run into each other."""
    x, y = canvas.place()
    radius = canvas.side * canvas.uniform(0.06, 0.12)
    circles = []
    for _ in range(int(canvas.rng.integers(4, 8))):
        r = radius * canvas.uniform(0.4, 0.9)
        circles.append((x + canvas.uniform(-radius, radius), y + canvas.uniform(-radius, radius), r))

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for cx, cy, r in circles:
            pen.ellipse([(cx - r) * _FINE, (cy - r) * _FINE, (cx + r) * _FINE, (cy + r) * _FINE], fill=255)

    dark = ((96, 64, 32), (40, 36, 44), (70, 84, 40))
    pale = ((226, 214, 190), (206, 206, 210))
    colors = dark if canvas.color_at((x, y)).mean() > 110 else pale
    color = np.array(colors[int(canvas.rng.integers(len(colors)))], np.float64)
    return _laid_over(canvas.pixels, canvas.drawn(draw) * canvas.uniform(0.55, 0.85), color)


def _tear(canvas: _Canvas) -> np.ndarray:
    """A jagged slit that gapes in its middle: dark inside, with a pale frayed edge."""
    x, y = canvas.place()
    length, angle = canvas.side * canvas.uniform(0.22, 0.42), canvas.uniform(0, math.pi)
    gape = canvas.side * canvas.uniform(0.025, 0.05)
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    count = int(canvas.rng.integers(6, 10))
    upper: Points = []
    lower: Points = []
    for number in range(count + 1):
        way = number / count
        open_by = gape * math.sin(math.pi * way)
        shift = canvas.uniform(-0.9, 0.9) * gape
        for side, edge in ((1, upper), (-1, lower)):
            off = shift + side * open_by * canvas.uniform(0.6, 1.2)
            step = length * (way - 0.5)
            edge.append((x + step * along[0] + off * across[0], y + step * along[1] + off * across[1]))
    outline = _scaled(upper + lower[::-1])
    thread = max(1, round(canvas.side * 0.012 * _FINE))
    edge_cover = canvas.drawn(lambda pen: pen.line([*outline, outline[0]], fill=255, width=thread))
    inside = canvas.drawn(lambda pen: pen.polygon(outline, fill=255))
    here = canvas.color_at((x, y))
    hollow = here * 0.25 if here.mean() > 90 else here + 90  # what is worn below shows through dark cloth
    torn = _laid_over(canvas.pixels, inside * 0.95, hollow)
    return _laid_over(torn, edge_cover * 0.8, 0.5 * here + 0.5 * 235)


def _scratch(canvas: _Canvas) -> np.ndarray:
    """One to three thin strokes that lie nearly parallel, pale on what is dark and dark on what is pale."""
    x, y = canvas.place()
    length, angle = canvas.side * canvas.uniform(0.25, 0.55), canvas.uniform(0, math.pi)
    width = max(1, round(canvas.side * canvas.uniform(0.014, 0.026) * _FINE))
    strokes = []
    for _ in range(int(canvas.rng.integers(1, 4))):
        turned = angle + canvas.uniform(-0.12, 0.12)
        reach = length / 2 * canvas.uniform(0.7, 1.0)
        middle = (x + canvas.uniform(-0.06, 0.06) * canvas.side, y + canvas.uniform(-0.06, 0.06) * canvas.side)
        bend = canvas.uniform(-0.03, 0.03) * canvas.side
        cosine, sine = math.cos(turned), math.sin(turned)
        strokes.append(
            _scaled(
                [
                    (middle[0] - reach * cosine, middle[1] - reach * sine),
                    (middle[0] - bend * sine, middle[1] + bend * cosine),
                    (middle[0] + reach * cosine, middle[1] + reach * sine),
                ]
            )
        )

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for stroke in strokes:
            pen.line(stroke, fill=255, width=width, joint="curve")

    tone = 238.0 if canvas.color_at((x, y)).mean() < 128 else 44.0
    return _laid_over(canvas.pixels, canvas.drawn(draw) * canvas.uniform(0.7, 0.95), np.full(3, tone))


def _missing_part(canvas: _Canvas) -> np.ndarray:
    """A piece broken or cut out of the product: the background shows where it was."""
    x, y = canvas.place()
    radius = canvas.side * canvas.uniform(0.12, 0.2)
    count = int(canvas.rng.integers(6, 10))
    start = canvas.uniform(0, 2 * math.pi)
    corners = []
    for number in range(count):
        angle = start + 2 * math.pi * number / count
        reach = radius * canvas.uniform(0.75, 1.15)
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    cover = canvas.drawn(lambda pen: pen.polygon(_scaled(corners), fill=255))
    ground = _background(canvas.pixels)
    grain = np.abs(np.diff(canvas.pixels[:2], axis=0)).mean() / 1.13  # of independent normal noise, its deviation
    return _laid_over(canvas.pixels, cover, ground + canvas.rng.normal(0, grain, ground.shape))


DAMAGES: dict[str, Callable[[_Canvas], np.ndarray]] = {
    "stain": _stain,
    "tear": _tear,
    "scratch": _scratch,
    "missing_part": _missing_part,
}
"""Type of damage -> what draws it."""
