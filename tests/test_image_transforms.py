"""Whatever a shop uploads becomes 8-bit RGB, or one clear error."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dualtower.data.transforms.images import ImageSettings, open_image, to_pixels
from dualtower.errors import BrokenImage, ConfigError


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def center(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((image.width // 2, image.height // 2))


RED = Image.new("RGB", (20, 30), (200, 10, 20))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_common_formats(kind: str) -> None:
    image = open_image(encode(RED, kind))
    assert image.size == (20, 30)
    assert center(image) == pytest.approx((200, 10, 20), abs=8)


def test_bytes_path_and_open_image_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(encode(RED))
    photos = [open_image(source) for source in (path.read_bytes(), path, str(path), RED)]
    assert len({p.tobytes() for p in photos}) == 1


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (20, 30), (0, 255, 255, 0))  # no cyan: red
    assert center(open_image(encode(cmyk, "JPEG"))) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_brightness(kind: str) -> None:
    gray = Image.fromarray(np.full((30, 20), 40_000, dtype=np.uint16))
    assert center(open_image(encode(gray, kind))) == (156, 156, 156)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((4, 4), 0.5, np.float32), 128),
        (np.full((4, 4), 128, np.float32), 128),
        (np.full((4, 4), 32_896, np.int32), 128),
        (np.full((4, 4), 100, np.int32), 100),
    ],
)
def test_float_and_32_bit_grey(values: np.ndarray, expected: int) -> None:
    assert center(open_image(Image.fromarray(values))) == (expected,) * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    clear = Image.new("RGBA", (20, 30), (200, 10, 20, 0))
    if mode == "P":
        clear = Image.new("P", (20, 30), 0)
        clear.putpalette([200, 10, 20] + [0] * 765)
        clear.info["transparency"] = 0
        encoded = encode(clear, transparency=0)
    else:
        encoded = encode(clear.convert(mode))
    assert center(open_image(encoded)) == (255, 255, 255)


def test_half_transparent_red_is_pink() -> None:
    assert center(open_image(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))) == (255, 127, 127)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette(mode: str) -> None:
    assert center(open_image(encode(Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)))) == (255,) * 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind: str) -> None:
    blue = Image.new("RGB", RED.size, (0, 0, 255))
    animated = encode(RED, kind, save_all=True, append_images=[blue], duration=100)
    assert center(open_image(animated)) == pytest.approx((200, 10, 20), abs=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    sideways = Image.new("RGB", (30, 20), (255, 255, 255))
    sideways.paste((0, 0, 0), (0, 0, 15, 20))  # the left half is black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: left becomes top
    upright = open_image(encode(sideways, kind, exif=exif))
    assert upright.size == (20, 30)
    assert upright.getpixel((10, 3))[0] < 30 < 220 < upright.getpixel((10, 26))[0]


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text file", "not an image"),
        (b"<html>404</html>", "not an image"),
        (encode(NOISE, "JPEG")[:900], "cannot be decoded"),
        (encode(NOISE, "PNG")[:900], "cannot be decoded"),
        (encode(NOISE, "WEBP")[:900], "cannot be decoded"),
        (encode(NOISE, "PNG")[:20], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
    ],
)
def test_broken_images(content: bytes, reason: str) -> None:
    with pytest.raises(BrokenImage, match=reason) as caught:
        open_image(content, where="shop.csv", row=17)
    assert str(caught.value).startswith("shop.csv, row 17: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_image_bomb_is_refused_before_decoding(side: int) -> None:
    with pytest.raises(BrokenImage, match="pixels"):
        open_image(png_header(side, side))


def test_pixel_limit_can_be_set() -> None:
    with pytest.raises(BrokenImage, match="20x30 pixels are more than the 599 allowed"):
        open_image(encode(RED), max_pixels=599)
    assert open_image(encode(RED), max_pixels=600).size == (20, 30)


def test_text_file_named_jpg_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "note.jpg"
    path.write_text("buy milk")
    with pytest.raises(BrokenImage, match="not an image"):
        open_image(path)
    with pytest.raises(BrokenImage, match=r"no image at .*gone\.jpg"):
        open_image(tmp_path / "gone.jpg")
    with pytest.raises(BrokenImage, match="cannot be decoded"):
        open_image(tmp_path)


def test_right_size_is_not_touched() -> None:
    pixels = to_pixels(NOISE, ImageSettings(height=64, width=64))
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.asarray(NOISE).transpose(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_rules(interpolation: Any) -> None:
    wide = Image.new("RGB", (80, 20), (0, 0, 0))
    wide.paste((90, 90, 90), (30, 0, 50, 20))
    by_rule = {
        rule: to_pixels(wide, ImageSettings(height=20, width=20, resize=rule, interpolation=interpolation))
        for rule in ("stretch", "crop", "pad")
    }
    assert {rule: p.shape for rule, p in by_rule.items()} == dict.fromkeys(by_rule, (3, 20, 20))
    assert by_rule["stretch"][0, 10, 0] == 0 and by_rule["stretch"][0, 10, 10] > 80
    assert (by_rule["crop"] == 90).all()
    assert (by_rule["pad"][:, 0] == 255).all() and by_rule["pad"][0, 10, 0] < 10


@pytest.mark.parametrize("settings", [{"height": 0}, {"width": -1}, {"std": (1.0, 0.0, 1.0)}])
def test_impossible_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not possible"):
        ImageSettings(**settings)
