"""Images of many rows, undecoded and unread until a row is asked for."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualtower.data.reading import undecoded_column
from dualtower.data.transforms.images import open_image
from dualtower.errors import BrokenImage, CardError, brief

__all__ = ["ArrowImages", "ImageColumn", "StoredImage", "digest", "undecodable_images"]

StoredImage = bytes | Path | None
CHECKED_AT_ONCE = 256  # images per task of the thread pool
LONGEST_PATH = 1_024  # characters
BASE64_IMAGES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")  # how JPEG, PNG, GIF and WebP begin in base64


class ArrowImages:
    """The image column of a memory-mapped `datasets.Dataset`.

    Args:
        dataset: The dataset; only this object is pickled, and it pickles as the name of its file.
        name: A column of encoded bytes, of paths, of base64, or `datasets` Image.
        folder: Relative paths start here; None where the source has no folder.

    Attributes:
        rows: For a column of lists, the row of each image, int64 ``[N]``; else None.

    Raises:
        CardError: The column holds something else.
    """

    def __init__(self, dataset: Any, name: str, folder: Path | None) -> None:
        self.dataset, self.name, self.folder = dataset, name, folder
        self.rows, column = _flattened(undecoded_column(dataset, name))
        self.length = len(column)
        self.bytes, self.paths = _bytes_and_paths(column, name)
        self.is_base64 = self.paths is not None and _is_base64(_first(self.paths), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dataset, self.name, self.folder)

    def __len__(self) -> int:
        return self.length

    def present(self) -> np.ndarray:
        """Which of them there are, bool ``[N]``; a path counts whether or not there is a file."""
        import pyarrow.compute as pc

        there = np.zeros(self.length, bool)
        if self.bytes is not None:
            there |= np.asarray(pc.is_valid(self.bytes))
        if self.paths is not None:
            there |= np.asarray(pc.fill_null(pc.not_equal(self.paths, ""), False))
        return there

    def identity(self, rows: np.ndarray) -> Iterator[bytes]:
        """What changes whenever an image does."""
        import pyarrow.compute as pc

        files = [Path(file["filename"]) for file in self.dataset.cache_files]
        yield f"{self.name} {self.folder}".encode()
        yield from map(_state, files)
        if files and (self.paths is None or self.is_base64):
            return
        if files and self.bytes is not None:  # these lie in the files
            rows = rows[~np.asarray(pc.is_valid(self.bytes))[rows]]
        yield from map(_state, (self[row] for row in rows.tolist()))

    def sizes(self) -> np.ndarray:
        """Length of each one's bytes, of its base64, or of its file, int64 ``[N]``; -1 where there is none."""
        import pyarrow.compute as pc

        found = np.full(self.length, -1, np.int64)
        for column in (self.bytes, self.paths if self.is_base64 else None):
            if column is not None:
                found = np.maximum(found, np.asarray(pc.fill_null(pc.binary_length(column), -1), np.int64))
        if self.paths is not None and not self.is_base64:
            for row in np.flatnonzero((found < 0) & self.present()):
                found[row] = _size(self[int(row)])
        return found

    def __getitem__(self, row: int) -> StoredImage:
        if self.bytes is not None and (encoded := self.bytes[row].as_py()) is not None:
            return encoded
        if self.paths is None or not (path := self.paths[row].as_py()):
            return None
        if self.is_base64:
            return _from_base64(path)
        if self.folder is None:  # a path from the machine that made the dataset, unless it is in our own cache
            return Path(path) if Path(path).is_absolute() else None
        return self.folder / path


class ImageColumn(Sequence[StoredImage]):
    """Rows chosen from one or several stores of images.

    Args:
        stores: `ArrowImages` or plain lists.
        addresses: For each row its place in the stores laid end to end; None: all of them in order.
    """

    def __init__(self, stores: Sequence[Any], addresses: np.ndarray | None = None) -> None:
        self.stores = list(stores)
        self.starts = np.cumsum([0, *map(len, self.stores)])
        self.addresses = np.arange(self.starts[-1]) if addresses is None else addresses

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, row: Any) -> Any:
        address = int(self.addresses[row])
        if len(self.stores) == 1:
            return self.stores[0][address]
        store = int(np.searchsorted(self.starts, address, side="right")) - 1
        return self.stores[store][address - int(self.starts[store])]

    def identity(self) -> Iterator[bytes]:
        """What changes whenever an image does, but for one in memory without reading any: hash it.

        Arrow files by path, size and time of modification, and so the files that they name; images in memory by
        their bytes.
        """
        for number, store in enumerate(self.stores):
            places = self.addresses - self.starts[number]
            used = np.unique(places[(places >= 0) & (places < len(store))])
            if isinstance(store, ArrowImages):
                yield from store.identity(used)
            else:
                yield from map(_state, (store[int(place)] for place in used))
        yield self.addresses.tobytes()

    def sizes(self) -> np.ndarray:
        """Size of each encoded image in bytes, int64 ``[N]``, -1 where there is none; reads no image."""
        of_stores = [
            store.sizes() if isinstance(store, ArrowImages) else np.array([_size(p) for p in store], np.int64)
            for store in self.stores
        ]
        sizes: np.ndarray = np.concatenate([np.empty(0, np.int64), *of_stores])[self.addresses]
        return sizes

    def select(self, rows: np.ndarray) -> ImageColumn:
        """The images of some rows."""
        return ImageColumn(self.stores, self.addresses[rows])

    @staticmethod
    def concatenate(parts: Sequence[ImageColumn]) -> ImageColumn:
        """The images of all parts, one part after the other."""
        offsets = np.cumsum([0, *(part.starts[-1] for part in parts)])
        addresses = [part.addresses + offset for part, offset in zip(parts, offsets, strict=False)]
        return ImageColumn([store for part in parts for store in part.stores], np.concatenate(addresses))


def undecodable_images(
    images: Sequence[StoredImage], ids: Sequence[str], *, where: str
) -> Generator[tuple[int, BrokenImage], None, None]:
    """Decode every image; yield number and error of those that are missing or cannot be decoded, in order.

    Decoders release the interpreter lock, so threads help, above all with large images.
    """
    starts = range(0, len(images), CHECKED_AT_ONCE)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for found in pool.map(lambda start: _check_some(images, ids, start, where), starts):
            yield from found
    finally:  # also when the caller stops at the first error, and on Ctrl-C
        pool.shutdown(cancel_futures=True)


def digest(image: StoredImage) -> bytes:
    """A hash of the encoded bytes; empty where there are none."""
    try:
        content = image.read_bytes() if isinstance(image, Path) else image
    except OSError:  # a missing file is for the check to report
        content = None
    return b"" if content is None else hashlib.blake2b(content, digest_size=16).digest()


def _state(image: StoredImage) -> bytes:
    """Path, size and time of modification of a file; a hash of bytes."""
    if not isinstance(image, Path):
        return digest(image)
    try:
        state = image.stat()
    except OSError:
        return f"{image} is missing".encode()
    return f"{image.absolute()} {state.st_size} {state.st_mtime_ns}".encode()


def _size(image: StoredImage) -> int:
    if isinstance(image, bytes):
        return len(image)
    try:
        return -1 if image is None else image.stat().st_size
    except OSError:  # a missing file is for the check to report
        return -1


def _check_some(
    images: Sequence[StoredImage], ids: Sequence[str], start: int, where: str
) -> list[tuple[int, BrokenImage]]:
    found = []
    for i in range(start, min(start + CHECKED_AT_ONCE, len(images))):
        image = images[i]
        try:
            if image is None:
                raise BrokenImage(where, ids[i], "no image")
            open_image(image, where=where, row=ids[i])
        except BrokenImage as error:
            found.append((i, error))
    return found


def _flattened(column: Any) -> tuple[np.ndarray | None, Any]:
    """Flatten a column of lists: the row of each member, and all members as one column."""
    import pyarrow.compute as pc

    dtypes = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(column.type) for is_kind in dtypes):
        return None, column
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    return np.repeat(np.arange(len(column)), lengths), pc.list_flatten(column)


def _bytes_and_paths(column: Any, name: str) -> tuple[Any, Any]:
    """Arrow columns of encoded bytes and of paths; either may be None."""
    dtype = column.type
    if pa.types.is_struct(dtype) and {f.name for f in dtype} >= {"bytes", "path"}:
        fields = dict(zip((f.name for f in dtype), column.flatten(), strict=True))
        return fields["bytes"], fields["path"]
    if pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype):
        return column, None
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        if _first(column).startswith(("http://", "https://")):
            raise CardError(f"image column {name!r} holds URLs; download the images and give their paths instead")
        return None, column
    if pa.types.is_null(dtype):
        return None, None
    raise CardError(f"image column {name!r} holds {brief(dtype)}, not images: encoded bytes, paths, or datasets Image")


def _first(column: Any) -> str:
    """The first text that is not empty."""
    import pyarrow.compute as pc

    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        place = pc.index(pc.greater(pc.binary_length(chunk), 0), True).as_py()
        if place >= 0:
            return str(chunk[place])
    return ""


def _is_base64(text: str, name: str) -> bool:
    """Whether a column that begins with this text holds images in base64, not paths."""
    if text.startswith("data:") or (text.startswith(BASE64_IMAGES) and "." not in text and _from_base64(text)):
        return True
    if len(text) < LONGEST_PATH:
        return False
    if _from_base64(text):  # of no image that we know, which the decoder will say
        return True
    raise CardError(f"image column {name!r} holds texts of {len(text):,} characters, neither paths nor base64")


def _from_base64(text: str) -> bytes:
    """Encoded bytes; none where it is no base64, which the decoder of images then reports."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        return b""
