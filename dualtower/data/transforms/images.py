"""From any image file to RGB, and from RGB to the pixels that the model expects.

A catalog's images come from many hands: phone photos that are stored sideways, logos with transparency,
print files in CMYK, animated banners. `open_image` makes RGB of all of them, or says what is wrong.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dualtower.errors import BrokenImage, ConfigError

__all__ = ["MAX_PIXELS", "ImageSettings", "open_image", "to_pixels", "to_size"]

MAX_PIXELS = 64_000_000
EXIF_KEYS = {
    "exif",
    "Raw profile type exif",
    "xmp",
    "XML:com.adobe.xmp",
}  # asking for EXIF costs a third of a decode
WHITE = (255, 255, 255)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes pixels; the settings travel with the model.

    Attributes:
        height: Height of the pixels.
        width: Width of the pixels. It need not equal the height: keep the shape that your photos have.
        mean: Per channel, of pixels in 0..1; the image tower subtracts it. ImageNet's by default.
        std: Per channel; the image tower divides by it.
        resize: ``stretch`` changes the aspect ratio, ``crop`` cuts the longer side, ``pad`` adds white.
        interpolation: Filter of the resize.
    """

    height: int = 224
    width: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"an image of {self.height}x{self.width} pixels is not possible; give 1 or more")
        if min(self.std) <= 0:
            raise ConfigError(f"image std {self.std} is not possible; each value must be greater than 0")


def open_image(
    image: bytes | str | Path | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    near: int | None = None,
    where: str = "image",
    row: object = "?",
) -> Image.Image:
    """Decode an image to 8-bit RGB.

    The EXIF orientation is applied; transparency is laid over white; CMYK, palette, gray and 16-bit images
    are converted; of an animation the first frame is taken.

    Args:
        image: Encoded bytes, a path, or an open image.
        max_pixels: Larger images are refused before they are decoded: a small file can unfold to gigabytes.
        near: Pixels of the shorter side that are enough. An image of more than twice as many is made smaller before
            it is converted, a JPEG while it is decoded, which takes a fraction of the time and of the memory.
        where: File or dataset of the image, for messages.
        row: Row of the image there, for messages.

    Raises:
        BrokenImage: Missing, truncated, too large, or not an image.
    """
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(image, max_pixels, near)
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return _to_rgb(opened, max_pixels, near)
    except Exception as error:  # decoders raise anything on hostile bytes: struct.error, IndexError, SyntaxError ...
        raise BrokenImage(where, row, _reason(image, error)) from error


def to_pixels(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """`to_size`, uint8 ``[3, H, W]``."""
    return np.ascontiguousarray(np.asarray(to_size(image, settings)).transpose(2, 0, 1))


def to_size(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Resize an RGB image as the settings say, unless it has the right size."""
    size = (settings.width, settings.height)
    if image.size == size:
        return image
    method = RESAMPLING[settings.interpolation]
    if settings.resize == "stretch":
        return image.resize(size, method)
    if settings.resize == "crop":
        return ImageOps.fit(image, size, method)
    return ImageOps.pad(image, size, method, color=WHITE)


def _to_rgb(image: Image.Image, max_pixels: int, near: int | None) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:  # known from the header alone
        raise ValueError(f"{width}x{height} pixels are more than the {max_pixels:,} allowed")
    if image.format == "EPS":
        raise ValueError("EPS is a program, not an image")  # Pillow would hand it to Ghostscript
    if near:
        image.draft(None, (near, near))
    image.load()
    if near:
        image = _reduced(image, near)
    if image.info.keys() & EXIF_KEYS and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _deep_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reduced(image: Image.Image, near: int) -> Image.Image:
    """An image with many more pixels than are wanted, by a whole factor smaller."""
    factor = min(image.size) // near
    if factor < 2 or image.mode in ("I", "F") or image.mode.startswith("I;"):
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")  # or a color that means transparent would be averaged with others
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    return image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Gray with more than 8 bits. (Pillow's own conversion cuts at 255, which turns such images white.)"""
    values = np.asarray(image)
    peak = values.max(initial=0)
    full = 1 if image.mode == "F" and peak <= 1 else 255 if peak <= 255 and image.mode in ("I", "F") else 65535
    gray = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 64):  # all at once they would take eight bytes a pixel, several times
        some = slice(start, start + 64)
        gray[some] = np.clip(values[some].astype(np.float64) * (255 / full), 0, 255).round()
    return Image.fromarray(gray).convert("RGB")


def _reason(image: object, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        path = str(image)
        return f"no image at {path if len(path) <= 150 else f'... {path[-146:]}'}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "empty file" if image == b"" else "not an image, or of a format that Pillow cannot read"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {error}"
    return f"cannot be decoded: {error or type(error).__name__}"
