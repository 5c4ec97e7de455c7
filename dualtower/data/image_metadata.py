"""Encoded images without what cameras and programs write beside the pixels: places, dates, names, small copies.

The pixels' own bytes stay as they are. Of EXIF the orientation alone stays, without which a photo lies on its side;
color profiles stay too.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

__all__ = ["without_metadata"]

PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = frozenset(b"IHDR PLTE IDAT IEND tRNS cHRM gAMA iCCP sBIT sRGB cICP bKGD pHYs hIST acTL fcTL fdAT".split())
WEBP_CHUNKS = frozenset([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"])
HAS_EXIF, HAS_XMP = 0x08, 0x04  # bits of VP8X
_SOI, _EOI, _SOS, _COM, _APP0, _APP1, _APP2, _APP14, _APP15 = 0xD8, 0xD9, 0xDA, 0xFE, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_AFTER_SCAN = re.compile(rb"\xff(?=[^\x00\xd0-\xd7\xff])")  # zeros are stuffed behind 0xFF in a scan, or it restarts


def without_metadata(content: bytes) -> bytes | None:
    """The same image without metadata.

    Args:
        content: JPEG, PNG or WebP.

    Returns:
        None where the bytes are of another format, or do not hold together.
    """
    try:
        if content.startswith(b"\xff\xd8\xff"):
            return b"\xff\xd8" + _jpeg_exif(content) + b"".join(_jpeg_parts(content))
        if content.startswith(PNG):
            return PNG + b"".join(_png_parts(content))
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            body = b"".join(_webp_parts(content))
            return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    except (ValueError, struct.error, IndexError):
        pass
    return None


def _orientation(content: bytes) -> bytes:
    """EXIF that says how the image is turned and nothing else; empty where it is not."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # EXIF of hostile bytes raises anything
        raise ValueError from error
    if turned not in range(2, 9):
        return b""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    return exif.tobytes()


def _jpeg_exif(content: bytes) -> bytes:
    exif = _orientation(content)
    return struct.pack(">BBH", 0xFF, _APP1, 2 + len(exif)) + exif if exif else b""


def _jpeg_parts(content: bytes) -> Iterator[bytes]:
    """Segments and scans from the first to the end of the image; what follows that is no part of it."""
    at = 2
    while True:
        if content[at] != 0xFF:
            raise ValueError
        marker = content[at + 1]
        if marker == 0xFF:  # filled up
            at += 1
            continue
        if marker == _EOI:
            yield b"\xff\xd9"
            return
        (length,) = struct.unpack_from(">H", content, at + 2)
        end = at + 2 + length
        payload = content[at + 4 : end]
        if _is_kept(marker, payload):
            yield content[at:end]
        elif marker == _APP0 and payload.startswith(b"JFIF\0"):  # without the small copy in it
            yield struct.pack(">BBH", 0xFF, _APP0, 16) + payload[:12].ljust(12, b"\0") + b"\0\0"
        at = end
        if marker == _SOS:
            found = _AFTER_SCAN.search(content, at)
            if found is None:
                raise ValueError
            yield content[at : found.start()]
            at = found.start()


def _is_kept(marker: int, payload: bytes) -> bool:
    if marker == _APP2:
        return payload.startswith(b"ICC_PROFILE\0")
    if marker == _APP14:
        return payload.startswith(b"Adobe")  # says what the colors mean
    return marker != _COM and not _APP0 <= marker <= _APP15


def _png_parts(content: bytes) -> Iterator[bytes]:
    exif, at = _orientation(content).removeprefix(b"Exif\0\0"), len(PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise ValueError
        if exif and kind == b"IDAT":
            checksum = zlib.crc32(b"eXIf" + exif)
            yield struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", checksum)
            exif = b""
        if kind in PNG_CHUNKS:
            yield content[at:end]
        if kind == b"IEND":
            return
        at = end


def _webp_parts(content: bytes) -> Iterator[bytes]:
    exif, at = _orientation(content).removeprefix(b"Exif\0\0"), 12
    stop = 8 + struct.unpack_from("<I", content, 4)[0]
    if stop > len(content):
        raise ValueError
    while at < stop:
        kind, length = struct.unpack_from("<4sI", content, at)
        end = at + 8 + length
        part = content[at : end + length % 2]
        if end > stop:
            raise ValueError
        if kind == b"VP8X":
            flags = part[8] & ~(HAS_EXIF | HAS_XMP) | (HAS_EXIF if exif else 0)
            yield part[:8] + bytes([flags]) + part[9:]
        elif kind in WEBP_CHUNKS:
            yield part
        at = end + length % 2
    if exif:
        yield b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
