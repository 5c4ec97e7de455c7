"""The silhouettes of the synthetic catalog, as control points of smooth curves.

Every object lives in its own coordinates, x to the right and y down, both within -1..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

__all__ = ["Part", "silhouette"]


@dataclass(frozen=True)
class Part:
    """One piece of a silhouette: a filled curve, or a stroke where `width` is not 0.

    Attributes:
        role: ``body`` carries the pattern, ``trim`` is plain and darker, ``hollow`` is darkest.
        points: Control points of a smooth curve, ``[K, 2]``; a point given twice is a sharp corner.
        width: Width of a stroke, in product coordinates.
    """

    role: str
    points: tuple[tuple[float, float], ...]
    width: float = 0.0

    @property
    def curve(self) -> np.ndarray:
        """The smooth curve through the control points, ``[N, 2]``."""
        return _smooth(self.points, closed=not self.width)


@cache
def _smooth(points: tuple[tuple[float, float], ...], closed: bool) -> np.ndarray:
    """Cut the corners of a control polygon three times (Chaikin 1974), which rounds it."""
    curve = np.array(points)
    for _ in range(3):
        ahead = np.roll(curve, -1, axis=0)
        cut = np.stack([0.75 * curve + 0.25 * ahead, 0.25 * curve + 0.75 * ahead], axis=1).reshape(-1, 2)
        curve = cut if closed else np.concatenate([curve[:1], cut[1:-3], curve[-1:]])
    return curve


def _corners(*points: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Control points of a shape with sharp corners."""
    return tuple(point for point in points for _ in range(2))


def _both(*right: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """A shape symmetric about x = 0 from its right half, top to bottom."""
    return (*right, *((-x, y) for x, y in reversed(right)))


def _oval(x: float, y: float, wide: float, tall: float) -> tuple[tuple[float, float], ...]:
    a, b = 1.05, 0.435  # corners of an octagon a little outside of the unit circle
    ring = ((a, b), (b, a), (-b, a), (-a, b), (-a, -b), (-b, -a), (b, -a), (a, -b))
    return tuple((x + wide * u, y + tall * v) for u, v in ring)


_SILHOUETTES: dict[str, tuple[Part, ...]] = {
    "t-shirt": (
        Part(
            "body",
            _both(*_corners((0.22, -0.8), (0.9, -0.45), (0.72, -0.08), (0.48, -0.2), (0.48, 0.85))),
        ),
        Part("trim", ((-0.22, -0.78), (-0.2, -0.5), (0.2, -0.5), (0.22, -0.78)), 0.09),
    ),
    "dress": (
        Part(
            "body",
            _both(
                *_corners((0.12, -0.55), (0.22, -0.9), (0.34, -0.9), (0.3, -0.5)),
                (0.2, -0.2),
                (0.24, -0.05),
                *_corners((0.72, 0.88)),
            ),
        ),
        Part("trim", ((-0.22, -0.13), (0, -0.1), (0.22, -0.13)), 0.1),
    ),
    "tote bag": (
        Part("trim", ((-0.34, -0.2), (-0.3, -0.95), (0.3, -0.95), (0.34, -0.2)), 0.1),
        Part("body", _corners((-0.66, -0.25), (0.66, -0.25), (0.56, 0.88), (-0.56, 0.88))),
    ),
    "hat": (
        Part("body", _oval(0, 0.32, 0.95, 0.26)),
        Part(
            "body",
            ((-0.5, 0.3), (-0.52, -0.3), (-0.4, -0.6), (0.4, -0.6), (0.52, -0.3), (0.5, 0.3), (0, 0.44)),
        ),
        Part("trim", ((-0.49, 0.16), (-0.2, 0.3), (0.2, 0.3), (0.49, 0.16)), 0.13),
    ),
    "shoe": (
        Part(
            "body",
            (
                *_corners((-0.85, -0.5), (-0.3, -0.55)),
                (-0.1, -0.3),
                (0.3, -0.1),
                (0.85, 0.0),
                *_corners((0.92, 0.32), (-0.86, 0.32)),
                (-0.8, 0.0),
            ),
        ),
        Part("trim", _corners((-0.9, 0.28), (0.95, 0.28), (0.9, 0.48), (-0.88, 0.48))),
        Part("hollow", ((-0.25, -0.3), (-0.05, -0.42)), 0.06),
        Part("hollow", ((-0.1, -0.16), (0.1, -0.3)), 0.06),
        Part("hollow", ((0.08, -0.04), (0.28, -0.2)), 0.06),
    ),
    "cushion": (
        Part(
            "body",
            (
                *(
                    (-0.85, -0.85),
                    (-0.8, -0.8),
                    (0, -0.68),
                    (0.8, -0.8),
                    (0.85, -0.85),
                    (0.8, -0.8),
                    (0.68, 0),
                ),
                *(
                    (0.8, 0.8),
                    (0.85, 0.85),
                    (0.8, 0.8),
                    (0, 0.68),
                    (-0.8, 0.8),
                    (-0.85, 0.85),
                    (-0.8, 0.8),
                ),
                *((-0.68, 0), (-0.8, -0.8)),
            ),
        ),
        Part("trim", _oval(0, 0, 0.1, 0.1)),
    ),
    "mug": (
        Part("trim", ((0.4, -0.3), (0.9, -0.4), (0.9, 0.4), (0.36, 0.4)), 0.15),
        Part(
            "body",
            (
                *_corners((-0.6, -0.6), (0.45, -0.6)),
                (0.42, 0.72),
                (0.3, 0.75),
                (-0.45, 0.75),
                (-0.57, 0.72),
            ),
        ),
        Part("hollow", _oval(-0.075, -0.6, 0.52, 0.12)),
    ),
    "teapot": (
        Part("trim", ((0.5, -0.25), (1.0, -0.4), (1.0, 0.4), (0.5, 0.3)), 0.12),
        Part(
            "body",
            (
                (-0.5, 0.3),
                (-0.75, 0.1),
                (-0.8, -0.3),
                (-0.95, -0.35),
                (-0.75, -0.42),
                (-0.6, -0.1),
                (-0.4, 0.0),
            ),
        ),
        Part("body", _oval(0, 0.12, 0.64, 0.58)),
        Part("trim", _oval(0, -0.4, 0.32, 0.11)),
        Part("trim", _oval(0, -0.56, 0.1, 0.1)),
    ),
    "vase": (
        Part(
            "body",
            _both(
                *_corners((0.32, -0.88)),
                (0.14, -0.6),
                (0.2, -0.35),
                (0.72, 0.0),
                (0.6, 0.6),
                *_corners((0.28, 0.88)),
            ),
        ),
        Part("hollow", _oval(0, -0.88, 0.32, 0.07)),
    ),
    "bottle": (
        Part("body", _both(*_corners((0.15, -0.75)), (0.14, -0.4), (0.44, -0.25), *_corners((0.42, 0.9)))),
        Part("trim", _both(*_corners((0.19, -0.95), (0.19, -0.68)))),
    ),
    "lamp": (
        Part("trim", ((0, 0.0), (0, 0.8)), 0.12),
        Part("trim", _oval(0, 0.82, 0.44, 0.12)),
        Part("body", _both(*_corners((0.32, -0.88), (0.75, 0.12)))),
    ),
    "chair": (
        Part("trim", _corners((-0.42, -0.3), (-0.42, 0.2)), 0.12),
        Part("trim", _corners((0.42, -0.3), (0.42, 0.2)), 0.12),
        Part("trim", _corners((-0.5, 0.2), (-0.58, 0.92)), 0.12),
        Part("trim", _corners((0.5, 0.2), (0.58, 0.92)), 0.12),
        Part("body", _both((0.5, -0.95), (0.56, -0.9), (0.52, -0.2), (0.46, -0.15))),
        Part("body", _corners((-0.52, 0.05), (0.52, 0.05), (0.68, 0.32), (-0.68, 0.32))),
    ),
}


def silhouette(name: str) -> tuple[Part, ...]:
    """The parts of an object, back to front."""
    return _SILHOUETTES[name]
