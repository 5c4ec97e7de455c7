"""The distinct texts of an attribute, numbered; an Arrow array, as Python's dictionaries take ten times the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dualtower.types import product_code

__all__ = ["Vocabulary"]


class Vocabulary:
    """Texts by code, their places in a list that only grows. It never changes: `extended` gives another one.

    Texts are found by their 64-bit hashes, as products are.

    Args:
        texts: Distinct ones, ``large_string``.
        hashes: `product_code` of each, ascending, int64.
        codes: Place in `texts` of each of the hashes, int32.
    """

    def __init__(self, texts: pa.Array, hashes: np.ndarray, codes: np.ndarray) -> None:
        self._texts, self._hashes, self._codes = texts, hashes, codes

    @classmethod
    def empty(cls) -> Vocabulary:
        """A vocabulary of no texts."""
        return cls(pa.array([], pa.large_string()), np.empty(0, np.int64), np.empty(0, np.int32))

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray]) -> Vocabulary:
        """The vocabulary of which `arrays` were kept.

        Raises:
            KeyError: One is missing.
        """
        offsets, content = (pa.py_buffer(np.ascontiguousarray(arrays[name])) for name in ("offsets", "content"))
        texts = pa.LargeStringArray.from_buffers(len(arrays["codes"]), offsets, content)
        return cls(texts, arrays["hashes"], arrays["codes"])

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it is, to be kept."""
        offsets: Any
        content: Any
        _, offsets, content = self._texts.buffers()
        texts: dict[str, np.ndarray] = {
            "offsets": np.frombuffer(offsets, np.int64),
            "content": np.frombuffer(content or b"", np.uint8),
        }
        return texts | {"hashes": self._hashes, "codes": self._codes}

    def __len__(self) -> int:
        return len(self._codes)

    def texts(self) -> list[str]:
        """All texts in the order of their codes."""
        return list(self._texts.to_pylist())

    def text(self, code: int) -> str:
        """The text of a code."""
        return str(self._texts[code].as_py())

    def codes_of(self, texts: Sequence[str]) -> np.ndarray:
        """Codes of some texts, int32; -1 for those that are not known."""
        return self._find(np.array([product_code(text) for text in texts], np.int64))

    def extended(self, texts: Sequence[str]) -> Vocabulary:
        """This vocabulary and what of some distinct texts it lacks."""
        wanted = np.array([product_code(text) for text in texts], np.int64)
        new = np.flatnonzero(self._find(wanted) < 0)
        if not len(new):
            return self
        codes = np.arange(len(self), len(self) + len(new), dtype=np.int32)
        order = np.argsort(wanted[new])
        places = np.searchsorted(self._hashes, wanted[new][order])
        return Vocabulary(
            pa.concat_arrays([self._texts, pa.array([texts[i] for i in new.tolist()], pa.large_string())]),
            np.insert(self._hashes, places, wanted[new][order]),
            np.insert(self._codes, places, codes[order]),
        )

    def _find(self, hashes: np.ndarray) -> np.ndarray:
        if not len(self):
            return np.full(len(hashes), -1, np.int32)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self) - 1)
        return np.where(self._hashes[places] == hashes, self._codes[places], np.int32(-1))
