"""Files of recorded generations as Arrow tables: Parquet, CSV, JSON Lines; plain or gzipped text.

A reader gives back the columns under the names of ``COLUMNS`` where the file's own differ by case, spaces or a mark in front
alone, the others as they came, and *notes*: one sentence for everything that was inferred rather than read.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from roi_env.sources.json_text import TwiceError, read_json

TEXT_COLUMNS = ("dataset", "question_id", "question", "answer", "menu", "tier")
COLUMNS = (*TEXT_COLUMNS, "tier_order", "tokens", "correct", "sample")
EARLIER_MENU = "family"
"""What the column ``menu`` was called; files that call it so are read."""
MAX_TOKENS = 2**31 - 2
"""Largest recordable token count: an outcome is packed with its correctness into 32 bits."""
DICTIONARY = pa.dictionary(pa.int32(), pa.string())

# Column: (stored type, smallest value, largest value, what to write there).
INTEGERS = {
    "tier_order": (pa.int32(), 1, 2**31 - 1, "an integer >= 1 (1 = cheapest tier of its menu), or an empty column"),
    "tokens": (pa.int32(), 0, MAX_TOKENS, f"generated tokens, an integer from 0 to {MAX_TOKENS}"),
    "correct": (pa.bool_(), 0, 1, "true or false (or yes or no, or 1 or 0)"),
    "sample": (
        pa.int64(),
        0,
        2**63 - 1,
        "an integer >= 0 that numbers the generations of one question and tier, or an empty column",
    ),
}

# Texts that say whether an answer was right, in any case.
_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")

HUB = "hf:"
"""Begins the name of a data set of the Hugging Face hub."""
NO_ROWS = "the table has no rows: record at least one generation"
_JSONL_BLOCK = 2**25
_SHOWN = 100
"""Characters of a bad value that an error shows."""
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip"}


class OutcomeTableError(ValueError):
    """A table cannot be used as asked.

    :ivar path: the file, or the name given to a table in memory.
    :ivar column: the column at fault, if one is.
    :ivar row: 0-based data row (header lines and blank lines not counted) of the first offence, if one row is at fault.
    """

    def __init__(self, path: str, message: str, column: str | None = None, row: int | None = None) -> None:
        self.path, self.column, self.row = path, column, row
        where = path
        if column is not None:
            where += f": column {column!r}"
        if row is not None:
            where += f", row {row} (0-based data row)"
        super().__init__(f"{where}: {message}")


def read_file(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """``(columns, notes)`` of a file; values are not checked yet.

    :raises OutcomeTableError: where the file is of no known kind or cannot be read, naming the row where one is at fault.
    """
    if not path.is_file():
        raise OutcomeTableError(str(path), "is a folder, not a file" if path.is_dir() else "file not found")
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in _READERS or name.endswith(".parquet.gz"):
        raise OutcomeTableError(
            str(path),
            f"unknown file type {path.suffix!r}: give a .parquet, .csv, .tsv, .jsonl or .json file (or rename it); text may "
            "be gzipped, with .gz behind",
        )
    if path.stat().st_size == 0:
        raise OutcomeTableError(str(path), "the file has 0 bytes: record or copy it again")
    return _READERS[suffix](path)


def is_folder(path: Path) -> bool:
    """Whether a table is a folder, here or on the hub."""
    return str(path).startswith(HUB) or path.is_dir()


def read_folder(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """``(columns, notes)`` of a data set in the layout of the Hugging Face hub: its shards, one after the other.

    :raises OutcomeTableError: where there are no shards, or they differ in columns or metadata.
    """
    shards = files_of(path)
    for shard in shards:
        if match := re.search(r"-of-(\d+)$", shard.stem):
            if int(match[1]) != len(shards):
                raise OutcomeTableError(str(path), f"has {len(shards)} of {int(match[1])} shards: copy it again")
            break
    tables = [_read_parquet(shard)[0] for shard in shards]
    for shard, table in zip(shards, tables, strict=True):
        if table.column_names != tables[0].column_names or table.schema.metadata != tables[0].schema.metadata:
            raise OutcomeTableError(
                str(shard), f"has other columns or metadata than {shards[0].name}: keep one table a folder"
            )
    try:
        return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries(), ()
    except pa.ArrowException as error:
        raise OutcomeTableError(str(path), f"its shards do not fit together: {error}") from error


def files_of(path: Path) -> list[Path]:
    """The files that hold a table: itself, or the shards of a folder, here or of the hub.

    :raises OutcomeTableError: where a folder has no shards.
    """
    if not is_folder(path):
        return [path]
    folder = _from_hub(path) if str(path).startswith(HUB) else path
    shards = sorted((folder / "data").glob("*.parquet")) or sorted(folder.glob("*.parquet"))
    if not shards:
        raise OutcomeTableError(
            str(path), "is a folder without data/*.parquet: give a file, or a folder that `roi publish-table` wrote"
        )
    return shards


def _from_hub(path: Path) -> Path:
    """The folder that holds a data set of the hub; only Parquet shards are fetched, and no code of it is run."""
    name = str(path).removeprefix(HUB)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise OutcomeTableError(str(path), 'needs: pip install "roi-reasoning[live]"') from None
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=["*.parquet", "data/*.parquet"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise OutcomeTableError(
            str(path),
            f"cannot be had from the hub ({' '.join(str(error).split())[:200]}): check the name and the network",
        ) from error


def own_name(header: str) -> str:
    """What a header may mean: ``" Question ID"`` is ``question_id``."""
    plain = re.sub(r"[\s\-_.]+", "_", header.strip("\ufeff \t\r\n\"'")).casefold()
    return "menu" if plain == EARLIER_MENU else plain


def with_own_names(rows: pa.Table, path: str) -> tuple[pa.Table, tuple[str, ...]]:
    """The table with its columns under our names where they differ in spelling alone, and a note where they do.

    :raises OutcomeTableError: where two columns could be one of ours.
    """
    names, renamed = list(rows.column_names), []
    for wanted in COLUMNS:
        if wanted in names:
            continue
        found = [number for number, name in enumerate(names) if own_name(name) == wanted]
        if len(found) > 1:
            theirs = [names[number] for number in found]
            raise OutcomeTableError(path, f"could be any of the columns {theirs}; keep one, named {wanted!r}", wanted)
        if found:
            if names[found[0]] != EARLIER_MENU:
                renamed.append(f"{names[found[0]]!r} as {wanted}")
            names[found[0]] = wanted
    notes = (f"columns read by their meaning: {', '.join(renamed)}",) if renamed else ()
    return rows.rename_columns(names), notes


def wrong(path: str, column: str, row: int | None, expected: str, got: object) -> NoReturn:
    """Raise for one bad value."""
    shown = str(got) if len(str(got)) <= _SHOWN else f"{str(got)[:_SHOWN]}..."
    raise OutcomeTableError(path, f"expected {expected}, got {shown}; correct the value or drop the row", column, row)


def number_text(value: float | Decimal) -> str | None:
    """A number as the text of an id or an answer: whole numbers without a point; None where it is not finite."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return None
    if value == int(value):
        return str(int(value))
    return format(value.normalize(), "f") if isinstance(value, Decimal) else repr(value)


def _unreadable(path: Path, kind: str, error: Exception, row: int | None = None) -> OutcomeTableError:
    if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
        remedy = "; the text is not UTF-8: save it as UTF-8"
    else:
        remedy = (
            "; write one JSON object a line, or one list of them" if isinstance(error, json.JSONDecodeError) else ""
        )
    return OutcomeTableError(
        str(path), f"cannot be read as {kind} (truncated, damaged or of another kind?): {error}{remedy}", row=row
    )


def _open(path: Path) -> IO[bytes]:
    """A text file's bytes, unzipped where its name says so.

    :raises OutcomeTableError: where they are not what the name says.
    """
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    with path.open("rb") as file:
        kind = _ENCODINGS.get(file.read(2))
    if kind:
        remedy = "add .gz to its name" if kind == "gzip" else "save it as UTF-8"
        raise OutcomeTableError(str(path), f"cannot be read as text: the file is {kind}; {remedy}")
    return path.open("rb")


def _read_parquet(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    try:
        schema = pq.read_schema(path)
        # Repeated texts stay dictionary codes from file to memory: a million copies of a question cost one.
        plain = [item.name for item in schema if pa.types.is_string(item.type) or pa.types.is_large_string(item.type)]
        texts = [name for name in plain if own_name(name) in TEXT_COLUMNS and plain.count(name) == 1]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            return file.read(), ()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet", error) from error


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def _read_csv(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    from pyarrow import csv as arrow_csv

    bad_row: list[int | None] = []

    def on_invalid(row: Any) -> str:
        # Arrow counts the header as row 1.
        bad_row.append(None if row.number is None else row.number - 2)
        return "error"

    try:
        delimiter, names = _header(path)
        parse = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_invalid)
        # Everything as text: Arrow would guess a type from the first block and say no row when a later one differs.
        types = {name: DICTIONARY if own_name(name) in TEXT_COLUMNS else pa.string() for name in names}
        convert = arrow_csv.ConvertOptions(column_types=types)
        try:
            table = arrow_csv.read_csv(path, parse_options=parse, convert_options=convert)
        except pa.ArrowInvalid:
            if not bad_row:
                raise
            # Only the serial reader knows row numbers.
            bad_row.clear()
            serial = arrow_csv.ReadOptions(use_threads=False)
            table = arrow_csv.read_csv(path, read_options=serial, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, "CSV", error, bad_row[0] if bad_row else None) from error
    # Nameless columns are row numbers, or what Excel leaves behind the last.
    table = table.select([at for at, name in enumerate(table.column_names) if name.strip()])
    notes = () if delimiter == "," else (f"fields are separated by {_DELIMITERS[delimiter]}",)
    table, renamed = with_own_names(table, str(path))
    for name in INTEGERS:
        if table.column_names.count(name) == 1 and not is_empty(table[name]):
            numbers = _numbers_from_text(table[name], name, str(path))
            table = table.set_column(table.column_names.index(name), name, numbers)
    return table, (*notes, *renamed)


def _header(path: Path) -> tuple[str, list[str]]:
    """``(delimiter, names)``: the delimiter under which the first line with text has most of our columns."""
    found: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            found[delimiter] = next(filter(None, csv.reader(file, delimiter=delimiter)), [])
    best = max(found, key=lambda delimiter: len({own_name(name) for name in found[delimiter]} & set(COLUMNS)))
    return best, found[best]


def _numbers_from_text(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    _reject_nulls(column, name, path, INTEGERS[name][3])
    text = pc.utf8_trim_whitespace(column)
    if name == "correct":
        text = pc.utf8_lower(text)
        good = pc.is_in(text, pa.array(_TRUE + _FALSE))
    else:
        good = pc.match_substring_regex(text, r"^-?[0-9]{1,18}(\.0*)?$")
    if not pc.all(good).as_py():
        row = pc.index(good, False).as_py()
        value = column[row].as_py()
        separated = name != "correct" and re.search(r"\d[,. ']\d", value)
        hint = " (write numbers with a point and without separators)" if separated else ""
        wrong(path, name, row, INTEGERS[name][3], repr(value) + hint)
    if name == "correct":
        return pc.is_in(text, pa.array(_TRUE))
    return pc.replace_substring_regex(text, r"\.0*$", "").cast(pa.int64())


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def _read_json(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    from pyarrow import json as arrow_json

    try:
        if _is_list(path):
            with _open(path) as file:
                table, notes = _from_records(enumerate(read_json(file.read().decode("utf-8-sig"))), str(path))
            return table, ("the file is one JSON list; JSON Lines (one object a line) need less memory", *notes)
        # Declared, since Arrow would turn ids that look like dates into dates.
        schema = pa.schema([(name, pa.string()) for name in TEXT_COLUMNS])
        parse = arrow_json.ParseOptions(explicit_schema=schema)
        blocks = []
        # In blocks, so that only one is ever held as plain text: the JSON reader knows no dictionaries.
        with _open(path) as file:
            while lines := file.readlines(_JSONL_BLOCK):
                text = b"".join(lines)
                if text.isspace():
                    continue
                block = arrow_json.read_json(pa.BufferReader(text), parse_options=parse)
                for name in TEXT_COLUMNS:
                    index = block.column_names.index(name)
                    block = block.set_column(index, name, block[name].dictionary_encode())
                blocks.append(block)
        if not blocks:
            raise OutcomeTableError(str(path), NO_ROWS)
        table = pa.concat_tables(blocks, promote_options="permissive")
    except pa.ArrowException:
        # Valid JSON that Arrow cannot type (numbers as ids, columns of mixed types), or a damaged line: this reader tells.
        return _from_records(_records(path), str(path))
    except TwiceError as error:
        raise OutcomeTableError(str(path), str(error)) from error
    except (json.JSONDecodeError, RecursionError, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, "JSON", error) from error
    if any(pa.types.is_temporal(kind) for kind in table.schema.types):
        return _from_records(_records(path), str(path))  # texts that look like dates are texts
    # A declared column that no line has comes back as nulls; tell "missing" from "null".
    empty = {name for name in TEXT_COLUMNS if table[name].null_count == table.num_rows}
    return table.drop_columns(sorted(empty - next(_records(path))[1].keys())), ()


def _is_list(path: Path) -> bool:
    with _open(path) as file:
        start = b""
        while not start and (line := file.readline()):
            start = line.removeprefix(b"\xef\xbb\xbf").strip()
    return start.startswith(b"[")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(row, object)`` of every line.

    :raises OutcomeTableError: for a line that is not one JSON object.
    """
    row = 0
    try:
        with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                if not line.isspace():
                    yield row, read_json(line)
                    row += 1
    except TwiceError as error:
        raise OutcomeTableError(str(path), str(error), row=row) from error
    except (json.JSONDecodeError, RecursionError, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, "JSON Lines", error, row) from error


class _Column:
    """A column of any JSON values: codes into the distinct ones; -1 where a row has none."""

    def __init__(self) -> None:
        self.codes = array("i")
        self.known: dict[Any, int] = {}
        self.values: list[Any] = []

    def put(self, row: int, value: Any) -> None:
        self.pad(row)
        if value is None:
            return
        key = value if isinstance(value, str) else (type(value), json.dumps(value))
        code = self.known.setdefault(key, len(self.values))
        if code == len(self.values):
            self.values.append(value)
        self.codes.append(code)

    def pad(self, rows: int) -> None:
        if missing := rows - len(self.codes):
            self.codes.extend([-1] * missing)

    def first(self, code: int) -> int:
        return self.codes.index(code)


def _from_records(records: Iterable[tuple[int, Any]], path: str) -> tuple[pa.Table, tuple[str, ...]]:
    columns: dict[str, _Column] = {}
    rows = 0
    for row, record in records:
        if not isinstance(record, dict):
            raise OutcomeTableError(path, "every line must be one JSON object: {column: value}", row=row)
        for name, value in record.items():
            columns.setdefault(name, _Column()).put(row, value)
        rows = row + 1
    if not rows:
        raise OutcomeTableError(path, NO_ROWS)
    notes, mixed, arrays = [], [], {}
    for name, column in columns.items():
        column.pad(rows)
        _check_characters(column, name, path)
        codes = np.frombuffer(column.codes, np.int32)
        indices = pa.array(codes, mask=codes < 0)
        # Where a column has our name itself, another that looks like it is just another column.
        meaning = name if own_name(name) in columns else own_name(name)
        if meaning in TEXT_COLUMNS:
            values = pa.array([_id(value, meaning, path, column, code) for code, value in enumerate(column.values)])
            arrays[name] = pa.DictionaryArray.from_arrays(indices, values.cast(pa.string()))
            if any(not isinstance(value, str) for value in column.values):
                notes.append(f"column {name!r}: numbers are read as text")
            continue
        if meaning in INTEGERS:
            for code, value in enumerate(column.values):
                if not isinstance(value, str) and not _fits(meaning, value):
                    wrong(path, meaning, column.first(code), INTEGERS[meaning][3], json.dumps(value))
            # Of one type: true and 1, 30 and 30.0 and "30" may stand side by side.
            if any(isinstance(value, str) for value in column.values):
                column.values = [value if isinstance(value, str) else json.dumps(value) for value in column.values]
            else:
                kind = float if any(isinstance(value, float) for value in column.values) else int
                column.values = [kind(value) for value in column.values]
        try:
            values = pa.array(column.values)
        except (pa.ArrowException, TypeError, OverflowError):
            values = pa.array([v if isinstance(v, str) else json.dumps(v) for v in column.values])
            mixed.append(name)
        arrays[name] = values.take(indices)
    if mixed:
        notes.append(f"columns of mixed types, kept as text: {', '.join(mixed)}")
    return pa.table(arrays), tuple(notes)


def _check_characters(column: _Column, name: str, path: str) -> None:
    for code, value in enumerate(column.values):
        try:
            (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
        except UnicodeEncodeError:
            wrong(path, name, column.first(code), "text of whole characters", f"half a surrogate pair in {value!r}")


def _id(value: Any, name: str, path: str, column: _Column, code: int) -> str:
    if isinstance(value, str):
        return value
    text = None
    if name != "question" and isinstance(value, int | float) and not isinstance(value, bool):
        text = number_text(value)
    if text is None:
        expected = "text" if name == "question" else "text or a number"
        wrong(path, name, column.first(code), expected, json.dumps(value))
    return text


def _fits(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return name == "correct"
    return (
        isinstance(value, int | float)
        and math.isfinite(value)
        and abs(value) < 2**63
        and (name != "correct" or value in (0, 1))
    )


# ---------------------------------------------------------------------------------------------------------------------
# Values


def text_column(column: pa.ChunkedArray, name: str, path: str) -> tuple[pa.ChunkedArray, bool]:
    """A text column as ``dictionary<int32, string>`` with one dictionary of distinct values, and whether it was numbers.

    :raises OutcomeTableError: for other types, nulls, and empty texts other than questions and answers.
    """
    may_be_empty = name in ("question", "answer")
    expected = 'text ("" where there is none)' if may_be_empty else "text that is not empty"
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        wrong(path, name, 0, expected, "no value (null)")
    numbers = name != "question" and (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
    if numbers:
        column = _texts_of_numbers(column.cast(kind), name, path, expected)
    elif not is_text(kind):
        raise OutcomeTableError(path, f"expected {expected}, got the type {kind}; store the column as text", name, 0)
    if pa.types.is_string_view(kind):
        column = column.cast(pa.large_string())
    _reject_nulls(column, name, path, expected)
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    if encoded.dictionary.null_count or len(pc.unique(encoded.dictionary)) < len(encoded.dictionary):
        decoded = encoded.dictionary_decode()
        _reject_nulls(pa.chunked_array([decoded]), name, path, expected)
        encoded = decoded.dictionary_encode()
    if not may_be_empty:
        empty = pc.index(encoded.dictionary, pa.scalar("", encoded.dictionary.type)).as_py()
        row = _first(encoded.indices.to_numpy() == empty) if empty >= 0 else None
        if row is not None:
            wrong(path, name, row, expected, "an empty text")
    encoded = pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int32()), encoded.dictionary.cast(pa.string()))
    return pa.chunked_array([encoded], DICTIONARY), bool(numbers)


def _texts_of_numbers(column: pa.ChunkedArray, name: str, path: str, expected: str) -> pa.ChunkedArray:
    _reject_nulls(column, name, path, expected)
    encoded = column.combine_chunks().dictionary_encode()
    texts = [number_text(value) for value in encoded.dictionary.to_pylist()]
    if None in texts:
        row = _first(encoded.indices.to_numpy() == texts.index(None))
        wrong(path, name, row, expected, encoded.dictionary[texts.index(None)].as_py())
    return pa.chunked_array([pa.array(texts, pa.string()).take(encoded.indices)])


def integer_column(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """A column of ``INTEGERS`` as its stored type; whole floating-point and decimal numbers count as integers, and texts as
    the numbers they are.

    :raises OutcomeTableError: for other types, nulls and values out of range.
    """
    stored, low, high, expected = INTEGERS[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        wrong(path, name, 0, expected, "no value (null)")
    if is_text(column.type):
        column = _numbers_from_text(column.cast(pa.string()), name, path)
    if pa.types.is_decimal(column.type) or pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or (name == "correct" and pa.types.is_boolean(column.type))
    ):
        raise OutcomeTableError(path, f"expected {expected}, got the type {column.type}; convert the column", name, 0)
    _reject_nulls(column, name, path, expected)
    values = column.to_numpy()
    if pa.types.is_floating(column.type):
        row = _first(~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) > 2**53))
    else:
        row = None
    bad = _first((values < low) | (values > high)) if values.dtype != bool else None
    if row is not None or bad is not None:
        row = min(r for r in (row, bad) if r is not None)
        wrong(path, name, row, expected, values[row])
    return pa.chunked_array([pa.array(values.astype(stored.to_pandas_dtype()), stored)])


def is_empty(column: pa.ChunkedArray) -> bool:
    """Whether no row of a column has a value: nulls and blank texts."""
    if is_text(column.type):
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column.cast(pa.string())), ""), None, column)
    return bool(column.null_count == len(column))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _first(mask: npt.NDArray[np.bool_]) -> int | None:
    return int(mask.argmax()) if mask.any() else None


def _reject_nulls(column: pa.ChunkedArray, name: str, path: str, expected: str) -> None:
    if column.null_count:
        row = _first(pc.is_null(column).to_numpy())
        assert row is not None
        wrong(path, name, row, expected, "no value (null)")


_READERS: dict[str, Callable[[Path], tuple[pa.Table, tuple[str, ...]]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
}


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many, for messages."""
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
