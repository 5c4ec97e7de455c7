"""The images of the synthetic catalog: patterns, materials, and the camera that looks at them.

A product is drawn in its own coordinates, x to the right and y down, both within -1..1. A view turns, scales
and shifts them, chooses background and light, and adds noise. Plain arithmetic and integer random numbers
decide about a pixel, no sine and no normal distribution, so that machines agree to the last bit.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dualtower.data.synthetic.shapes import Part, silhouette

__all__ = ["COLORS", "MATERIALS", "OBJECTS", "PATTERNS", "ProductSpec", "encode_png", "render_view"]

SIDE = 64  # pixels of an image
FINE = 3  # silhouettes are drawn this much larger, which smooths their edges

COLORS = {
    "red": (204, 42, 48),
    "orange": (238, 128, 36),
    "yellow": (243, 204, 62),
    "green": (58, 142, 78),
    "blue": (48, 96, 196),
    "purple": (124, 70, 164),
    "pink": (240, 150, 182),
    "teal": (36, 150, 152),
    "navy": (34, 44, 96),
    "brown": (122, 80, 52),
    "beige": (222, 200, 164),
    "grey": (140, 142, 146),
    "black": (46, 46, 52),
    "white": (244, 243, 240),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag")
MATERIALS = {
    "soft": ("cotton", "denim", "leather", "wool"),
    "hard": ("ceramic", "glass", "steel", "wood"),
}
OBJECTS = {
    "t-shirt": "soft",
    "dress": "soft",
    "tote bag": "soft",
    "hat": "soft",
    "shoe": "soft",
    "cushion": "soft",
    "mug": "hard",
    "teapot": "hard",
    "vase": "hard",
    "bottle": "hard",
    "lamp": "hard",
    "chair": "hard",
}


@dataclass(frozen=True)
class ProductSpec:
    """What a product looks like, whatever the view: one value of each attribute.

    Attributes:
        accent: The color of the stripes, dots, checks or zigzags; ``none`` on a plain product.
    """

    object: str
    color: str
    pattern: str
    accent: str
    material: str


def render_view(spec: ProductSpec, product: np.random.Generator, view: np.random.Generator) -> np.ndarray:
    """Draw one view of a product, uint8 ``[64, 64, 3]``.

    Args:
        spec: The product.
        product: Decides what all its views share, such as how wide the stripes are.
        view: Decides position, background, light and noise.
    """
    place = _camera(view)
    x, y = _product_coordinates(place)
    canvas = _background(view)
    cloth, relief = _surface(spec, product, x, y)
    solidity = 0.62 if spec.material == "glass" else 1.0
    masks = [(part, *_mask(part, place)) for part in silhouette(spec.object)]

    whole = np.maximum.reduce([mask for _, mask, _ in masks])
    canvas *= 1 - 0.35 * _shadow(whole)[..., None]
    for part, mask, outline in masks:
        paint = cloth if part.role == "body" else _trim(spec) if part.role == "trim" else _trim(spec) * 0.6
        cover = (mask * solidity)[..., None]
        canvas = canvas * (1 - cover) + paint * relief[..., None] * cover
        canvas = _ink(canvas, outline, spec)
    return _photograph(canvas, view)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 ``[H, W, 3]`` as a PNG without compression.

    Compressed bytes differ between versions of zlib; these are the same everywhere, and so are fingerprints.
    """
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows  # one block, < 64 kB
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    image = chunk(b"IDAT", stored + struct.pack(">I", zlib.adler32(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + image + chunk(b"IEND", b"")


def _uniform(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> Any:
    """Uniform numbers made of integers, of which every platform draws the same."""
    return low + (high - low) * (rng.integers(0, 1 << 16, size=size) / (1 << 16))


# Camera, light, background ---------------------------------------------------------------------------------


def _camera(rng: np.random.Generator) -> np.ndarray:
    """The map from product to image coordinates (0..1), ``[2, 3]``."""
    half = _uniform(rng, -0.22, 0.22)  # tangent of half the angle: up to 25 degrees, without a sine
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    size = _uniform(rng, 0.28, 0.46)
    mirror = 1 - 2 * int(rng.integers(2))
    wide, tall, slant = mirror * size * _uniform(rng, 0.9, 1.08), size, size * _uniform(rng, -0.1, 0.1)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    shift = _uniform(rng, 0.42, 0.58, 2)
    return np.column_stack([turn @ np.array([[wide, slant], [0.0, tall]]), shift])


def _product_coordinates(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel in product coordinates, two arrays ``[64, 64]``."""
    (a, b, e), (c, d, f) = place.tolist()
    column = (np.arange(SIDE)[None, :] + 0.5) / SIDE - e
    row = (np.arange(SIDE)[:, None] + 0.5) / SIDE - f
    determinant = a * d - b * c
    return (d * column - b * row) / determinant, (a * row - c * column) / determinant


def _background(rng: np.random.Generator) -> np.ndarray:
    """A tinted wall above a slightly darker table, float ``[64, 64, 3]``."""
    tint = _uniform(rng, 178, 246) + _uniform(rng, -14, 14, 3)
    horizon = int(rng.integers(SIDE * 5 // 8, SIDE * 7 // 8))
    canvas = np.empty((SIDE, SIDE, 3))
    canvas[:] = tint * (1 + _uniform(rng, 0, 0.1) * (np.arange(SIDE) / SIDE - 0.5))[:, None, None]
    canvas[horizon:] *= _uniform(rng, 0.86, 0.96)
    return canvas


def _shadow(mask: np.ndarray) -> np.ndarray:
    """The blurred silhouette, moved down and to the right."""
    dark = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(2))
    shadow = np.zeros((SIDE, SIDE))
    shadow[3:, 2:] = np.asarray(dark)[:-3, :-2] / 255
    return shadow


def _photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light from one side, its color, and the noise of the sensor; uint8 ``[64, 64, 3]``."""
    ramp = np.arange(SIDE) / SIDE - 0.5
    across, down = _uniform(rng, -0.4, 0.4, 2)
    light = _uniform(rng, 0.68, 1.1) * (1 + across * ramp[None, :] + down * ramp[:, None])
    noise = rng.integers(-10, 11, size=canvas.shape, dtype=np.int8)
    noisy = canvas * light[..., None] * _uniform(rng, 0.91, 1.09, 3) + noise
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


# Patterns and materials ------------------------------------------------------------------------------------


def _wave(x: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 between 0 and 1."""
    return 2 * np.abs(x - np.floor(x) - 0.5)


def _step(x: np.ndarray, sharpness: float = 5.0) -> np.ndarray:
    """0 below 0, 1 above, with a soft edge."""
    return np.clip(x * sharpness + 0.5, 0, 1)


def _surface(
    spec: ProductSpec, rng: np.random.Generator, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Color ``[64, 64, 3]`` and brightness ``[64, 64]`` of the product's surface at each pixel."""
    base, accent = _pair(spec)
    weight = _pattern(spec.pattern, rng, x, y)
    return base + (accent - base) * weight[..., None], _relief(spec.material, rng, x, y)


def _pair(spec: ProductSpec) -> tuple[np.ndarray, np.ndarray]:
    """The color and the accent, as the material shows them; a plain product has its one color twice."""
    accent = spec.color if spec.pattern == "plain" else spec.accent
    return _tinted(COLORS[spec.color], spec.material), _tinted(COLORS[accent], spec.material)


def _tinted(rgb: tuple[int, int, int], material: str) -> np.ndarray:
    """What a material makes of a color: wood stays a little brown, steel a little gray."""
    color = np.array(rgb, dtype=float)
    if material == "wood":
        return 0.72 * color + 0.28 * np.array([168.0, 118.0, 70.0])
    if material == "steel":
        return 0.7 * color + 0.3 * (0.3 * color.mean() + 110)
    return color


def _trim(spec: ProductSpec) -> np.ndarray:
    return _pair(spec)[0] * 0.72 + (24 if spec.color == "black" else 0)


def _pattern(name: str, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the accent shows at each pixel, 0..1; on less than half of the product."""
    count = _uniform(rng, 1.9, 2.9)  # repeats per unit: the whole product is about 1.5 units wide
    u, v = x * count + _uniform(rng, 0, 1), y * count + _uniform(rng, 0, 1)
    upright = bool(rng.integers(2))
    if name == "striped":
        return _step(_wave(u if upright else v) - 0.62)
    if name == "checked":
        return 0.5 * _step(_wave(u) - 0.62) + 0.5 * _step(_wave(v) - 0.62)
    if name == "zigzag":
        return _step(_wave(v + 0.45 * _wave(u)) - 0.62)
    if name == "dotted":
        u = u + 0.5 * (np.floor(v) % 2)
        return _step(0.1 - (u - np.floor(u) - 0.5) ** 2 - (v - np.floor(v) - 0.5) ** 2, 18.0)
    return np.zeros_like(x)


def _relief(name: str, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What a material does to the brightness at each pixel, around 1."""
    phase = _uniform(rng, 0, 1)
    round_body = 1.06 - 0.35 * x * x  # a vessel is darker where it turns away
    if name == "cotton":
        return 1 + 0.08 * (_wave(0.8 * x + 0.3 * y + phase) - 0.5)
    if name == "denim":  # diagonal twill
        return 0.95 + 0.24 * (_wave(6.5 * (x + y)) - 0.5)
    if name == "leather":  # a broad sheen, dark towards the edges
        glow = np.clip(1 - 2.4 * ((x + 0.25) ** 2 + (y + 0.15) ** 2), 0, 1)
        return 0.72 + 0.55 * glow * glow
    if name == "wool":  # rows of stitches
        return 0.84 + 0.42 * _wave(4.5 * x) * _wave(4.5 * y + 0.5 * np.floor(4.5 * x))
    if name == "ceramic":  # a window's reflection
        return round_body + 0.55 * (_step(0.1 - np.abs(x + 0.28), 20.0) * _step(0.4 - np.abs(y + 0.1), 20.0))
    if name == "steel":  # bands of reflected light
        return 0.72 + 0.62 * _wave(1.6 * x + 0.4 + 0.2 * phase) ** 2
    if name == "wood":  # grain
        return 0.86 + 0.26 * _wave(4.2 * x + 0.9 * _wave(0.7 * y + phase) + 0.3 * _wave(2.1 * y))
    return 0.98 + 0.5 * _step(0.05 - np.abs(x + 0.3 - 0.15 * y), 20.0)  # glass: a thin highlight


def _ink(canvas: np.ndarray, outline: np.ndarray, spec: ProductSpec) -> np.ndarray:
    """Draw a part's edge: a light thread on denim, a bright rim on glass, else a darker line."""
    color, strength = np.array([60.0, 56.0, 58.0]), 0.45
    if spec.material == "denim":
        color, strength = np.array([232.0, 190.0, 120.0]), 0.8
    elif spec.material == "glass":
        color, strength = 0.4 * np.array(COLORS[spec.color]) + 0.6 * 252.0, 0.75
    cover = (outline * strength)[..., None]
    return canvas * (1 - cover) + color * cover


def _mask(part: Part, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cover of a part and of its outline at each pixel, two arrays ``[64, 64]`` of 0..1."""
    fine = SIDE * FINE
    points = np.rint((part.curve @ place[:, :2].T + place[:, 2]) * fine).astype(int)
    path = [tuple(point) for point in points.tolist()]
    fill, edge = Image.new("L", (fine, fine)), Image.new("L", (fine, fine))
    if part.width:
        size = part.width * float(place[1, 1]) * fine
        ImageDraw.Draw(edge).line(path, fill=255, width=round(size) + 4, joint="curve")
        ImageDraw.Draw(fill).line(path, fill=255, width=round(size), joint="curve")
        edge.paste(0, mask=fill)
    else:
        ImageDraw.Draw(fill).polygon(path, fill=255)
        ImageDraw.Draw(edge).line([*path, path[0]], fill=255, width=FINE)
    return np.asarray(fill.reduce(FINE)) / 255, np.asarray(edge.reduce(FINE)) / 255
