"""Images as they are stored and served: the same pixels, and nothing that a camera wrote beside them."""

from __future__ import annotations

import io
import random
import struct

import factories
import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from dualtower.data.image_metadata import without_metadata
from dualtower.data.transforms.images import open_image
from dualtower.search.ingest.thumbnails import make_thumbnail

SECRETS = (b"Maria", b"Canon EOS", b"2024:05:17", b"GPS", b"secret")


def photo(kind: str, *, orientation: int = 6, **more) -> bytes:
    """An image with all that a phone writes beside it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Canon EOS"
    exif[ExifTags.Base.Artist] = "Maria"
    exif[ExifTags.Base.DateTime] = "2024:05:17 12:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("Author", "Maria")
        info.add_itxt("XML:com.adobe.xmp", "<x>secret</x>")
        more = {"pnginfo": info, **more}
    else:
        more = {"xmp": b"<x:xmpmeta>secret</x:xmpmeta>", **more}
        if kind == "JPEG":
            more = {"comment": b"secret", **more}
    image = Image.effect_noise((48, 32), 60).convert("RGB")
    image.save(stream := io.BytesIO(), kind, exif=exif, **more)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "more"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_only_the_orientation_stays(kind: str, more: dict, orientation: int) -> None:
    given = photo(kind, orientation=orientation, **more)
    assert any(secret in given for secret in SECRETS)
    bare = without_metadata(given)
    assert bare is not None and not [secret for secret in SECRETS if secret in bare]
    assert np.array_equal(np.asarray(open_image(bare)), np.asarray(open_image(given)))
    with Image.open(io.BytesIO(bare)) as opened:
        exif = opened.getexif()
        assert opened.format == kind and dict(exif) == ({} if orientation == 1 else {0x0112: orientation})
        assert not exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert without_metadata(bare) == bare
    assert make_thumbnail(given) == bare


def test_what_follows_the_image_or_hides_in_it_goes() -> None:
    plain = factories.photo(3)
    plain.save(stream := io.BytesIO(), "JPEG", icc_profile=b"p" * 300)
    content = stream.getvalue()
    small_copy = struct.pack(">BBH", 0xFF, 0xE0, 2 + 14 + 27) + b"JFIF\0\1\1\0\0\1\0\1\3\3" + b"secret" + bytes(21)
    multi = struct.pack(">BBH", 0xFF, 0xE2, 2 + 10) + b"MPF\0secret"
    hidden = content[:2] + small_copy + multi + content[20:] + b"secret: a second image, or a film"
    bare = without_metadata(hidden)
    assert bare is not None and b"secret" not in bare
    with Image.open(io.BytesIO(bare)) as opened:
        assert opened.info["icc_profile"] == b"p" * 300
    assert np.array_equal(np.asarray(open_image(bare)), np.asarray(open_image(content)))


def test_an_image_made_anew_has_no_comment_either() -> None:
    given = photo("JPEG", orientation=3)
    made = make_thumbnail(given, most_bytes=10)
    assert not [secret for secret in SECRETS if secret in made]
    turned = np.asarray(open_image(given)).astype(int)
    assert np.abs(np.asarray(open_image(made)).astype(int) - turned).mean() < 30


def test_a_small_file_with_many_pixels_is_made_anew() -> None:
    Image.new("L", (5000, 5000)).save(stream := io.BytesIO(), "PNG")
    assert len(stream.getvalue()) < 100_000
    assert max(open_image(make_thumbnail(stream.getvalue())).size) == 512


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_bytes_that_do_not_hold_together_are_no_image_and_no_crash(kind: str) -> None:
    given, dice = photo(kind), random.Random(5)
    for _ in range(300):
        changed = bytearray(given[: dice.randrange(1, len(given))])
        for _ in range(dice.randrange(4)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        without_metadata(bytes(changed))
    assert (
        without_metadata(b"GIF89a") is None and without_metadata(b"") is None and without_metadata(given[:40]) is None
    )
