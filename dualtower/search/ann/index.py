"""Nearest-neighbor indexes over one kind of vectors of a catalog: held in memory, rebuilt from the truth at will.

An index covers the slots below `covered`; what came later, and what a filter or a deletion leaves out, is the business
of the search (`dualtower.search.local.searcher`). All indexes are faiss's (Douze et al., 2024, arXiv:2401.08281).

Which lists of an inverted file a filtered search looks at is decided here and not by a number of probes: the nearest
lists, until they hold `search_budget` of the *chosen* rows. So a filter that fits only rows far away from the query
looks farther, and finds them, where a fixed number of probes returns next to nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dualtower.errors import ConfigError, UnknownName
from dualtower.search.local.vector_file import VectorReader
from dualtower.search.records import State

faiss: Any = importlib.import_module("faiss")  # the types that it brings lack half of it

__all__ = [
    "METHODS",
    "Index",
    "IndexInfo",
    "RowSelection",
    "best_of",
    "build_index",
    "faiss_threads",
    "index_class",
]

METHODS = ("flat", "ivf-sq8", "ivf-pq", "hnsw")
OVERSAMPLING = {"flat": 1, "ivf-sq8": 2, "ivf-pq": 4, "hnsw": 2}
"""Candidates per wanted hit: the coarser the codes, the more, since exact scores decide among them."""
_AT_ONCE = 65536


@dataclass(frozen=True, eq=False)
class RowSelection:
    """Rows that may be found.

    Attributes:
        mask: One value for every slot, bool ``[N]``.
        filtered: Whether a filter left rows out, rather than only deletions.
    """

    mask: np.ndarray
    filtered: bool

    @cached_property
    def slots(self) -> np.ndarray:
        """Their slots, ascending."""
        return np.flatnonzero(self.mask)

    def selector(self, covered: int) -> Any:
        """Tell faiss which of the first `covered` slots may be found; None where all of them may."""
        if covered not in self._selectors:
            self._selectors[covered] = self._selector(covered)
        return self._selectors[covered]

    @cached_property
    def _selectors(self) -> dict[int, Any]:
        return {}

    def _selector(self, covered: int) -> Any:
        if self.mask[:covered].all():
            return None
        bits = np.packbits(self.mask[:covered], bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        selector.bits = bits  # faiss keeps only the address
        return selector


@dataclass(frozen=True)
class IndexInfo:
    """What an index is, and where it lies; the JSON beside it.

    Attributes:
        vector_name: Kind of vectors.
        method: One of `METHODS`.
        state: State of the catalog that it was built from.
        covered: Slots that it covers.
        selectivities: Shares of the rows that filters leave, for which efforts were measured.
        search_budgets: For each of them, the effort that reached the wanted recall; see `budget_for`.
        recall: recall@10 that was measured, the lowest of all shares.
        file: In the same folder.
        checksum: Checksum of that file, BLAKE2b.
    """

    vector_name: str
    method: str
    state: State
    covered: int
    selectivities: tuple[float, ...] = ()
    search_budgets: tuple[int, ...] = ()
    recall: float | None = None
    file: str = ""
    checksum: str = ""

    def budget_for(self, share: float) -> int:
        """Effort for a share of chosen rows: between two measured shares, along the line of the logarithms."""
        if len(self.search_budgets) < 2:
            return self.search_budgets[0] if self.search_budgets else 0
        return math.ceil(math.exp(np.interp(math.log(max(share, 1e-9)), *self._line)) - 1e-9)

    @cached_property
    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of shares and efforts, by share."""
        order = np.argsort(self.selectivities)
        return np.log(self.selectivities)[order], np.log(self.search_budgets)[order]


class Index(ABC):
    """One kind of vectors of a catalog, searchable.

    Args:
        info: What it is.
        inner: faiss's index; its ids are slots.
    """

    exact = False
    """Whether it finds the very best ones."""

    def __init__(self, info: IndexInfo, inner: Any) -> None:
        self.info, self.inner = info, inner

    def __len__(self) -> int:
        return self.info.covered

    @property
    def oversampling(self) -> int:
        """Candidates to take per wanted hit."""
        return OVERSAMPLING[self.info.method]

    def search(
        self, vectors: np.ndarray, selection: RowSelection, count: int, search_budget: int | None = None
    ) -> list[np.ndarray]:
        """Find for each query the slots of about the `count` best chosen rows, best first; fewer if it finds no more.

        Args:
            vectors: float32 ``[Q, D]``.
            selection: Rows that may be found.
            count: How many.
            search_budget: Instead of the measured one.
        """
        if not len(self):
            return [np.empty(0, np.int64) for _ in vectors]
        share = len(selection.slots) / max(1, len(selection.mask))
        search_budget = self.info.budget_for(share) if search_budget is None else search_budget
        found = self._search(np.ascontiguousarray(vectors, np.float32), selection, min(count, len(self)), search_budget)
        return [slots[slots >= 0] for slots in found]

    @abstractmethod
    def _search(self, vectors: np.ndarray, selection: RowSelection, count: int, search_budget: int) -> np.ndarray:
        """See `search`; int64 ``[Q, count]``, -1 in places that could not be filled."""

    def megabytes(self) -> float:
        """What it takes in memory."""
        return len(faiss.serialize_index(self.inner)) / 2**20

    def with_budgets(self, search_budgets: Sequence[tuple[float, int]], recall: float) -> Index:
        """The same index with measured efforts."""
        selectivities = tuple(share for share, _ in search_budgets)
        info = replace(
            self.info,
            selectivities=selectivities,
            search_budgets=tuple(search_budget for _, search_budget in search_budgets),
            recall=recall,
        )
        return type(self)(info, self.inner)


class FlatIndex(Index):
    """Every vector in float16, every one looked at."""

    exact = True

    def _search(self, vectors: np.ndarray, selection: RowSelection, count: int, search_budget: int) -> np.ndarray:
        params = faiss.SearchParameters(sel=selection.selector(len(self)))
        slots: np.ndarray = self.inner.search(vectors, count, params=params)[1]
        return slots


class InvertedIndex(Index):
    """An inverted file; `search_budget` is the number of chosen rows that are looked at."""

    def __init__(self, info: IndexInfo, inner: Any) -> None:
        super().__init__(info, inner)
        lists = inner.invlists
        self.list_of = np.empty(info.covered, np.int32)
        for i in range(inner.nlist):
            if size := lists.list_size(i):
                self.list_of[faiss.rev_swig_ptr(lists.get_ids(i), size)] = i

    def _search(self, vectors: np.ndarray, selection: RowSelection, count: int, search_budget: int) -> np.ndarray:
        wanted = max(search_budget, 4 * count)
        if not selection.filtered:  # as many lists as hold so many rows on average: faiss itself is the quickest
            probes = min(math.ceil(wanted * self.inner.nlist / max(1, len(selection.slots))), self.inner.nlist)
            params = faiss.SearchParametersIVF(nprobe=probes, sel=selection.selector(len(self)))
            nearest: np.ndarray = self.inner.search(vectors, count, params=params)[1]
            return nearest
        scores = np.empty((len(vectors), count), np.float32)
        found = np.full((len(vectors), count), -1, np.int64)
        lists, near = self._lists(vectors, selection, wanted)
        if lists.size:
            params = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selection.selector(len(self)))
            # The plain binding: the wrapper around it takes no selector.
            addresses = [faiss.swig_ptr(array) for array in (lists, near, scores, found)]
            self.inner.search_preassigned_c(len(vectors), faiss.swig_ptr(vectors), count, *addresses, False, params)
        return found

    def _lists(self, vectors: np.ndarray, selection: RowSelection, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Find for each query the nearest lists that hold so many chosen rows, else -1; and how near they are."""
        below = selection.slots[: np.searchsorted(selection.slots, len(self))]
        sizes = np.bincount(self.list_of[below], minlength=self.inner.nlist)
        number = 8 + 2 * math.ceil(wanted * len(sizes) / max(1, sizes.sum()))
        while True:
            number = min(number, len(sizes))
            near, lists = self.inner.quantizer.search(vectors, number)
            held = sizes[lists].cumsum(axis=1)
            if number == len(sizes) or held[:, -1].min() >= wanted:
                break
            number *= 4
        before = held - sizes[lists]
        used = (before < wanted) & (held > before)  # what lies beyond is not needed, and empty lists hold nothing
        width = int(used.any(axis=0).nonzero()[0].max(initial=-1)) + 1
        lists, near = np.where(used, lists, -1)[:, :width], near[:, :width]
        return np.ascontiguousarray(lists), np.ascontiguousarray(near)


class GraphIndex(Index):
    """A hierarchical small-world graph (Malkov and Yashunin, 2016, arXiv:1603.09320); `search_budget` is its
    efSearch."""

    def _search(self, vectors: np.ndarray, selection: RowSelection, count: int, search_budget: int) -> np.ndarray:
        params = faiss.SearchParametersHNSW(efSearch=max(search_budget, count), sel=selection.selector(len(self)))
        slots: np.ndarray = self.inner.search(vectors, count, params=params)[1]
        return slots


_CLASSES: dict[str, type[Index]] = {
    "flat": FlatIndex,
    "ivf-sq8": InvertedIndex,
    "ivf-pq": InvertedIndex,
    "hnsw": GraphIndex,
}


def build_index(reader: VectorReader, *, vector_name: str, state: State, method: str, seed: int = 0) -> Index:
    """Build an index over all slots of a file. Rows that are gone are in it too, and are left out by the search.

    Args:
        reader: The vectors.
        vector_name: Their kind, for the record.
        state: State of the catalog, for the record.
        method: One of `METHODS`. ``ivf-pq`` takes an eighth of the float16 vectors' memory, ``ivf-sq8`` half of it.
        seed: Seed of the sample that lists are learned from.

    Raises:
        UnknownName: No such method.
        ConfigError: There are too few vectors for it.
    """
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    size, dim, metric = reader.slots, reader.dim, faiss.METRIC_INNER_PRODUCT
    if method == "flat":
        inner = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, metric)
    else:
        lists = max(1, min(round(4 * math.sqrt(size)), size // 40))
        codes = _product_code(dim) if method == "ivf-pq" else "SQ8"
        inner = faiss.index_factory(dim, "HNSW32,SQ8" if method == "hnsw" else f"IVF{lists},{codes}", metric)
        sample = np.sort(np.random.default_rng(seed).permutation(size)[: max(64 * lists, 20_000)])
        if len(sample) < 256:
            raise ConfigError(f"{method} needs at least 256 vectors to learn from, not {size}; use flat")
        if method != "hnsw":
            inner.cp.max_points_per_centroid, inner.cp.seed = 64, seed + 1
        if method == "ivf-pq":
            inner.pq.cp.max_points_per_centroid = 64
            inner.pq.cp.min_points_per_centroid = 1  # a small catalog is no reason for faiss to print warnings
        inner.train(reader.gather(sample).astype(np.float32))
    for start in range(0, size, _AT_ONCE):
        _add(inner, reader.run(start, min(start + _AT_ONCE, size)))
    return index_class(method)(IndexInfo(vector_name, method, state, size), inner)


def index_class(method: str) -> type[Index]:
    """Class of the indexes of a method.

    Raises:
        UnknownName: No such method.
    """
    if method not in _CLASSES:
        raise UnknownName("method", method, METHODS)
    return _CLASSES[method]


@contextlib.contextmanager
def faiss_threads(number: int | None) -> Iterator[None]:
    """Let faiss use so many threads when it is called from this thread; None leaves it as it is."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def best_of(vectors: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` best of some float16 ``[N, D]`` vectors, best first, exactly.

    Beside `dualtower.topk.largest`, since faiss scores the float16 numbers where they lie: no float32 copy, no scores.
    """
    index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    _add(index, vectors)
    slots: np.ndarray = index.search(query[None], min(count, len(vectors)))[1][0]
    return slots[slots >= 0]


def _add(index: Any, vectors: np.ndarray) -> None:
    """Add float16 vectors; an index of float16 takes the bytes as they are."""
    if isinstance(index, faiss.IndexScalarQuantizer):
        index.is_trained = True
        index.add_sa_codes(np.ascontiguousarray(vectors).view(np.uint8))
    else:
        index.add(vectors.astype(np.float32))


def _product_code(dim: int) -> str:
    """Codes of a quarter byte per number, rotated first."""
    parts = max(p for p in range(1, dim // 4 + 1) if dim % p == 0)
    return f"PQ{parts}"
