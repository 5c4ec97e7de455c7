"""Tables of text (CSV, TSV, JSON, JSON Lines), kept as the file has them.

The readers of `datasets` guess a column's type from its first rows: "007" becomes 7, "None" a missing value,
"2024-01-01" a moment in time, and one number among the ids puts all the others into JSON quotes. Here a column's type
follows from all of its values, in two passes: a column of CSV is text unless every value is a plainly written number,
and a column of JSON has the type that its values have, or is text where they differ.

Like `datasets`, the reader writes a memory-mapped Arrow file into the cache, so that a table may be larger than the
memory, and reads an unchanged file only once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dualtower.data.json_values import column_array, column_type, common_type
from dualtower.errors import SourceError, brief
from dualtower.files import atomic_write

__all__ = ["TABLE_SUFFIXES", "open_table"]

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
ROWS_AT_ONCE = 10_000
FORMAT = 2  # of the cached files; count up when the same file would be read differently
NO_NUMBER = "^[-+]?(nan|inf|infinity)$"
INTEGER = "(0|[1-9][0-9]{0,17})"  # neither "007" nor more digits than 64 bits hold
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

Columns = Mapping[str, Any]  # column -> list of values, or Arrow array of strings
Reader = Callable[[Path], Iterator[Columns]]


def open_table(
    files: Sequence[Path],
    *,
    known: Collection[str] = (),
    as_text: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
    images: Path | None = None,
) -> Any:
    """Read files of one split into a `datasets.Dataset` with the columns of all of them; what one lacks is missing.

    Args:
        files: CSV, TSV, JSON or JSON Lines.
        known: Columns that the card names; they tell the delimiter of a CSV file.
        as_text: Columns of CSV that stay text whatever they hold, such as ids.
        options: For CSV arguments of `pandas.read_csv` (``sep``, ``encoding``, ``decimal`` ...); for JSON ``encoding``,
            and ``field``, the key under which the rows lie.
        images: For files of metadata, the folder of the source. ``file_name`` becomes ``image``, a path below it.

    Raises:
        SourceError: A file cannot be read; the message names it, and the line where that is known.
    """
    options = dict(options or {})
    stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = repr((FORMAT, stamps, sorted(known), sorted(as_text), sorted(options.items()), str(images)))
    digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

    def read(file: Path) -> Iterator[Columns]:
        is_csv = file.suffix.lower() in (".csv", ".tsv")
        chunks = _read_csv(file, known, options) if is_csv else _read_json(file, options)
        return chunks if images is None else _with_images(chunks, file, images)

    numerals = _Numerals(options.get("decimal", "."), options.get("thousands") or "")
    return _cached(f"{digest}.arrow", files, read, as_text, numerals)


class _Numerals:
    """How a CSV file writes its numbers."""

    def __init__(self, decimal: str, thousands: str) -> None:
        self.decimal, self.thousands = decimal, thousands
        grouped = f"|[1-9][0-9]{{0,2}}({re.escape(thousands)}[0-9]{{3}}){{1,4}}" if thousands else ""
        self.integer = f"^-?({INTEGER}{grouped})$"
        self.number = f"^-?({INTEGER}{grouped})({re.escape(decimal)}[0-9]+)?$"

    def type_of(self, texts: Any) -> pa.DataType:
        """What a column of texts holds; empty ones are missing."""
        texts = texts.drop_null()
        texts = texts.filter(pc.not_equal(texts, ""))
        if not len(texts):
            return pa.null()
        if pc.all(pc.match_substring_regex(texts, self.integer)).as_py():
            return pa.int64()
        numbers = pc.match_substring_regex(texts, self.number)
        # One "inf" among numbers does not make texts of all of them; the check of rows names and refuses it.
        among = pc.or_(numbers, pc.match_substring_regex(texts, NO_NUMBER, ignore_case=True))
        return pa.float64() if pc.any(numbers).as_py() and pc.all(among).as_py() else pa.string()

    def parse(self, texts: Any, dtype: pa.DataType) -> Any:
        """The numbers."""
        texts = pc.if_else(pc.equal(texts, ""), None, texts)
        if self.thousands:
            texts = pc.replace_substring(texts, self.thousands, "")
        return pc.replace_substring(texts, self.decimal, ".").cast(dtype)


def _cached(name: str, files: Sequence[Path], read: Reader, as_text: Collection[str], numerals: _Numerals) -> Any:
    import datasets

    path = Path(datasets.config.HF_DATASETS_CACHE) / "dualtower" / name
    if not path.exists():
        types: dict[str, pa.DataType] = {}
        for chunk in (chunk for file in files for chunk in read(file)):
            for column, values in chunk.items():
                types[column] = common_type(types.get(column, pa.null()), _type(column, values, as_text, numerals))
        if not types:
            raise SourceError(f"{files[0]} is empty")
        _write(path, (chunk for file in files for chunk in read(file)), types, numerals)
    return datasets.Dataset.from_file(str(path))


def _write(path: Path, chunks: Iterable[Columns], types: Mapping[str, pa.DataType], numerals: _Numerals) -> None:
    # A column without any value is text, so that a filter or a template may still name it.
    schema = pa.schema([(name, pa.string() if dtype == pa.null() else dtype) for name, dtype in types.items()])
    # Several processes may do the same work; the last one wins.
    with atomic_write(path) as partial, partial.open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for chunk in chunks:
            count = len(next(iter(chunk.values())))
            columns = [
                _array(chunk[field.name], field.type, numerals) if field.name in chunk else pa.nulls(count, field.type)
                for field in schema
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _type(column: str, values: Any, as_text: Collection[str], numerals: _Numerals) -> pa.DataType:
    if isinstance(values, list):
        return column_type(values)
    return pa.string() if column in as_text else numerals.type_of(values)


def _array(values: Any, dtype: pa.DataType, numerals: _Numerals) -> Any:
    if isinstance(values, list):
        return column_array(values, dtype)
    return values if dtype == pa.string() else numerals.parse(values, dtype)


def _read_csv(file: Path, known: Collection[str], options: Mapping[str, Any]) -> Iterator[Columns]:
    import pandas

    options = {"dtype": str, "keep_default_na": False, "chunksize": ROWS_AT_ONCE, **options}
    options["encoding"] = options.get("encoding") or _encoding(file)
    if not {"sep", "delimiter", "dialect"} & options.keys():
        options["sep"] = _delimiter(file, options["encoding"], known)
    try:
        with pandas.read_csv(file, **options) as chunks:
            for chunk in chunks:
                if "index_col" not in options and not isinstance(chunk.index, pandas.RangeIndex):
                    raise ValueError("rows have more fields than the header")  # pandas would make an index of the first
                yield {str(name).strip(): pa.array(chunk[name], pa.string(), from_pandas=True) for name in chunk}
    except pandas.errors.EmptyDataError:
        return
    except (ValueError, TypeError, LookupError, OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot read {file} as csv: {brief(error)}") from error


def _delimiter(file: Path, encoding: str, known: Collection[str]) -> str:
    """The mark that divides the header into most of the columns that the card names."""
    with file.open(encoding=encoding, errors="replace", newline="") as stream:
        header = stream.readline()

    def columns(mark: str) -> list[str]:
        return [name.strip() for name in next(csv.reader([header], delimiter=mark), [])]

    marks = ("\t",) if file.suffix.lower() == ".tsv" else (",", ";", "\t", "|")
    mark = max(marks, key=lambda mark: len(set(columns(mark)) & set(known)))
    for name in known:
        if columns(mark).count(name) > 1:
            raise SourceError(f"cannot read {file} as csv: it has several columns {name!r}; give them different names")
    return mark


def _encoding(file: Path) -> str:
    """UTF-8 or what a byte-order mark says; else Western European, unless the bytes speak against it."""
    others = 0
    with file.open("rb") as stream:
        start = stream.read(4)
        for mark, encoding in BYTE_ORDER_MARKS.items():
            if start.startswith(mark):
                return encoding
        stream.seek(0)
        runs: list[int] = []
        for line in stream:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                others += 1
                runs += [len(run) for run in re.findall(rb"[\x80-\xff]+", line)]
    if not others:
        return "utf-8"
    # In Western European languages letters beyond ASCII stand alone; in a run they are Cyrillic, Chinese, Japanese ...
    if sum(runs) > 1.5 * len(runs):
        raise SourceError(
            f"{file} is not UTF-8; say in the card what it is: source: {{options: {{encoding: gb18030}}}}"
        )
    logger.warning("%s is not UTF-8; it is read as Western European (cp1252)", file)
    return "cp1252"


def _read_json(file: Path, options: Mapping[str, Any]) -> Iterator[Columns]:
    if strangers := options.keys() - {"encoding", "field"}:
        raise SourceError(f"{file}: JSON has the options encoding and field, not {sorted(strangers)[0]}")
    encoding = options.get("encoding") or _encoding(file)
    try:
        with file.open(encoding=encoding) as stream:
            yield from _columns(_json_rows(stream, file, options.get("field")), file)
    except (UnicodeDecodeError, LookupError, OSError) as error:
        raise SourceError(f"cannot read {file} as json: {brief(error)}") from error


def _json_rows(stream: io.TextIOWrapper, file: Path, field: str | None) -> Iterator[tuple[str, Any]]:
    """Place in the file and value of each row: of a list, or one a line."""
    first = next((line for line in stream if line.strip()), "")
    whole = field is not None or first.lstrip().startswith("[") or first.strip() == "{"
    stream.seek(0)
    if not whole:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield f"line {number}", _parsed(line, f"{file}: line {number}")
        return
    value = _parsed(stream.read(), f"{file}:")
    if isinstance(value, dict):
        lists = [name for name, member in value.items() if isinstance(member, list)]
        if field not in value:
            hint = f"; say in the card: source: {{options: {{field: {lists[0]}}}}}" if lists else ""
            raise SourceError(f"cannot read {file} as json: it is one object, not a list of rows{brief(hint)}")
        value = value[field]
    if not isinstance(value, list):
        raise SourceError(f"cannot read {file} as json: {type(value).__name__} where a list of rows was expected")
    yield from ((f"row {number}", row) for number, row in enumerate(value))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"cannot read {where} not JSON: {brief(error)}") from error


def _columns(rows: Iterator[tuple[str, Any]], file: Path) -> Iterator[Columns]:
    chunk: list[dict[str, Any]] = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise SourceError(f"cannot read {file}: {place} is a {type(row).__name__}, not an object with columns")
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            yield _turned(chunk)
            chunk = []
    if chunk:
        yield _turned(chunk)


def _turned(rows: Sequence[Mapping[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _with_images(chunks: Iterator[Columns], file: Path, folder: Path) -> Iterator[Columns]:
    """Name the columns of images as `datasets` does: ``x_file_name`` becomes ``x``, ``file_name`` ``image``."""
    below = file.parent.relative_to(folder)

    def path(name: Any) -> Any:
        if isinstance(name, list):
            return [path(member) for member in name]
        if not name:
            return None
        if Path(str(name)).is_absolute() or ".." in Path(str(name)).parts:
            raise SourceError(f"{file}: file_name {brief(name)!r} leads out of the folder; give paths inside it")
        return str(below / str(name))

    for chunk in chunks:
        turned: dict[str, Any] = {}
        for name, values in chunk.items():
            match = re.fullmatch(r"(?:(.+)_)?file_name(s?)", name)
            if match is None:
                turned[name] = values
            else:
                members = values if isinstance(values, list) else values.to_pylist()
                turned[match[1] or f"image{match[2]}"] = [path(member) for member in members]
        yield turned
