"""Log files of strangers, read as data alone: nothing is unpickled or executed, and every size is bounded.

What a file is follows from its first bytes, never from its name. A bound that is reached is an error that names the file; a
declared size is never believed.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from roi_env.sources.json_text import TwiceError, read_json

MAX_DOCUMENT = 2**28
"""Bytes of a JSON document, unpacked: it is held whole."""
MAX_LINE = 2**26
"""Bytes of a line of JSON Lines or a field of CSV."""
MAX_FILE = 2**33
"""Bytes of all that is read of a file, unpacked."""
MAX_MEMBERS = 1_000_000
"""Files inside a zip."""
MAX_DEPTH = 200
"""Lists and objects inside each other."""
_ZSTD = 93
"""Method of zip that Python before 3.14 does not know."""
_SEPARATOR = re.compile(r"sep=(.)\s*$")
"""What Excel writes before a header."""
_OF_A_RUN = re.compile(
    r"(?=.*\d)(\d{4}-?\d\d-?\d\d([T_ -]?[\d.:_-]+Z?)?|[0-9a-f]{8}(-?[0-9a-f]{4}){0,6})", re.IGNORECASE
)
"""Names of folders that are a time, or a number by chance."""
_A_TABLE = 2
"""Rows of a text that make it a table: one that differs before is no log, and others can go on without it."""
_NO_DELIMITERS = "\"'`_-.()[]{}<>\r\n,;\t|:^~"
"""What separates no fields, and what is tried before all others."""
_DELIMITERS = ",;\t|:^~"
_REFUSED = (
    (b"\x80", "a Python pickle: it runs code when it is read, so it is never opened; write JSON Lines from it"),
    (b"SQLite format 3\x00", "an SQLite database: write the rows as CSV or JSON Lines"),
    (b"\x89HDF", "an HDF5 file: write the rows as Parquet, CSV or JSON Lines"),
    (b"\xff\xfe\x00\x00", "text in UTF-32: save it as UTF-8"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (b"ARROW1", "an Arrow file: write it as Parquet"),
)


def _open_zstd(path: Path, mode: str) -> IO[bytes]:
    return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


_PACKED: dict[bytes, tuple[str, Callable[[Path, str], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", _open_zstd),
}
"""First bytes of packed files: what packs them, and how they are opened."""
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


class LogError(ValueError):
    """A log cannot be imported; the message names the file and what to do.

    :param is_log: whether the file was understood, and only lacks what a table needs: other logs can go on without it.
    """

    def __init__(self, path: str, message: str, *, is_log: bool = False) -> None:
        self.path, self.is_log = path, is_log
        super().__init__(f"{printable(path)}: {message}")


class CompanionError(LogError):
    """A file that belongs to a run beside its answers: averages, settings."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message, is_log=True)


class LackingError(LogError):
    """A file whose columns do not say all that a table needs.

    :param lacking: how much is missing; of several files the one that lacks least tells most.
    :param proposals: columns of ours -> theirs that may be what is missing.
    """

    def __init__(self, path: str, message: str, lacking: int, proposals: Mapping[str, str]) -> None:
        super().__init__(path, message, is_log=True)
        self.lacking, self.proposals = lacking, proposals


def printable(text: str) -> str:
    """Text without characters that would steer a terminal or that no file can hold."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(
        " " if char in "\t\r\n" else char if char.isprintable() or char == " " else "\ufffd" for char in text
    )


@dataclass(frozen=True)
class Terms:
    """What a file of ours says beside its rows; see :class:`~roi_env.sources.outcome_tables.OutcomeTable`.

    :param decision_cost: None where the file does not tell.
    """

    level_edges: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tier_caps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    decision_cost: int | None = None
    pairing: bool = False


@dataclass
class LogFile:
    """A file, and what its first bytes say it is.

    :param kind: ``zip``, ``parquet``, ``json`` (a document), ``lines`` (JSON Lines) or ``csv``.
    :param notes: what was inferred, or went wrong without harm, in reading.
    :param terms: what a file of ours says beside its rows; its reader sets them.
    """

    path: Path
    kind: str = ""
    notes: list[str] = field(default_factory=list)
    terms: Terms | None = None
    _parsed: Any = None

    def __post_init__(self) -> None:
        self.kind = self._kind()

    @property
    def stem(self) -> str:
        """The file's name without the endings of kinds; models' names have points themselves."""
        return re.sub(
            r"(\.(jsonl|json|ndjson|csv|tsv|txt|parquet|eval))?(\.(gz|zst|bz2|xz))?$",
            "",
            self.path.name,
            flags=re.IGNORECASE,
        ) or (self.path.name)

    @property
    def folder(self) -> Path:
        """The folder that the file is in; above those that are named after a time or a number of a run, which name nothing else."""
        found = self.path.absolute().parent
        while _OF_A_RUN.fullmatch(found.name) and found.parent.name:
            found = found.parent
        return found

    def error(self, message: str, *, is_log: bool = False) -> LogError:
        """An error that names this file."""
        return LogError(str(self.path), message, is_log=is_log)

    def damaged(self, kind: str, error: BaseException, place: str = "") -> LogError:
        """The error of a file that ends too soon, or is not what it says."""
        what = "lists or objects stand too deep in each other" if isinstance(error, RecursionError) else str(error)
        return self.error(
            f"cannot be read as {kind}{place} (truncated or damaged?): {printable(what)[:200]}; copy it again, or leave it out"
        )

    def _kind(self) -> str:
        if not self.path.is_file():
            raise self.error("file not found" if not self.path.exists() else "is no ordinary file")
        if self.path.stat().st_size == 0:
            raise self.error("the file has 0 bytes: copy it again, or leave it out", is_log=True)
        with self.path.open("rb") as file:
            start = file.read(32)
        for mark, what in _REFUSED:
            if start.startswith(mark):
                raise self.error(f"is {what}", is_log=True)
        if start.startswith(b"PK"):
            return "zip"
        if start.startswith(b"PAR1"):
            return "parquet"
        with self.open() as raw:
            head = self._read(raw, 2**16)
        if head.startswith(_REFUSED[0][0]):
            raise self.error(f"is {_REFUSED[0][1]}", is_log=True)
        if b"\x00" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.error(
                "holds bytes that no text has (UTF-16 without its mark?): give JSON, JSON Lines, CSV, Parquet or an Inspect log (.eval)",
                is_log=True,
            )
        text = head.decode(self.encoding, "replace").lstrip("\ufeff \t\r\n")
        if not text:
            raise self.error("holds white space alone: copy it again, or leave it out", is_log=True)
        if text[0] == "[":
            return "json" if not self._first_line_is_whole() else "lines"
        if text[0] == "{":
            return "lines" if self._first_line_is_whole() else "json"
        return "csv"

    def _first_line_is_whole(self) -> bool:
        """Whether the first line with text is an object by itself, so that another can follow."""
        number, line = 0, ""
        try:
            with self.text() as file:
                while not line.strip():
                    number += 1
                    if not (line := file.readline(MAX_LINE)):
                        return False
        except UnicodeDecodeError as error:
            raise self._foreign(number, error) from error
        except _DAMAGED as error:
            raise self._unpacking(error) from error
        return isinstance(_json(line), dict)

    def _foreign(self, line: int, error: UnicodeDecodeError) -> LogError:
        return self.error(f"line {line} is not UTF-8 text ({error.reason}): save the file as UTF-8")

    @cached_property
    def encoding(self) -> str:
        """UTF-8 (with or without a mark) or, where its mark says so, UTF-16."""
        with self.open() as file:
            mark = self._read(file, 2)
        return "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"

    def _read(self, file: IO[bytes], size: int) -> bytes:
        try:
            return file.read(size)
        except _DAMAGED as error:
            raise self._unpacking(error) from error

    def open(self) -> IO[bytes]:
        """The bytes, unpacked where they are packed."""
        opener = _PACKED[self._mark][1] if self._mark else Path.open
        return cast(IO[bytes], opener(self.path, "rb"))

    @cached_property
    def _mark(self) -> bytes:
        """The first bytes of a packed file; nothing of another."""
        with self.path.open("rb") as file:
            start = file.read(8)
        return next((mark for mark in _PACKED if start.startswith(mark)), b"")

    def _unpacking(self, error: BaseException, place: str = "") -> LogError:
        return self.damaged(_PACKED[self._mark][0] if self._mark else "text", error, place)

    def text(self) -> io.TextIOWrapper:
        """The text; line ends as they are."""
        return io.TextIOWrapper(self.open(), self.encoding, newline="")

    def lines(self, *, blank: bool = False) -> Iterator[tuple[int, str]]:
        """``(number, line)`` of every line with text, counted from 1; ``blank``: of those without, too.

        :raises LogError: for a line or file that is too long, or text that is not UTF-8.
        """
        number = size = 0
        try:
            with self.text() as file:
                while line := file.readline(MAX_LINE + 1):
                    number += 1
                    size += len(line)
                    self._bound(len(line), MAX_LINE, f"line {number}")
                    self._bound(size, MAX_FILE, "the file")
                    if blank or not line.isspace():
                        yield number, line
        except UnicodeDecodeError as error:
            raise self._foreign(number + 1, error) from error
        except _DAMAGED as error:
            raise self._unpacking(error, f" after line {number}") from error

    def _bound(self, size: int, most: int, what: str) -> None:
        if size > most:
            raise self.error(f"{what} holds more than {most:,} bytes, more than is read: divide it, or leave it out")

    def document(self) -> Any:
        """The JSON document that the file is; held until :meth:`forget`."""
        if self._parsed is not None:
            return self._parsed
        try:
            with self.open() as file:
                data = file.read(MAX_DOCUMENT + 1)
        except _DAMAGED as error:
            raise self._unpacking(error) from error
        self._bound(len(data), MAX_DOCUMENT, "the document")
        self._parsed = self.parsed(data, "JSON")
        return self._parsed

    def forget(self) -> None:
        """Hold the document no more."""
        self._parsed = None

    def parsed(self, data: bytes | str, what: str, place: str = "") -> Any:
        """JSON text as values.

        :raises LogError: where it is none, or too deep, or tells two things under one key.
        """
        try:
            text = data if isinstance(data, str) else data.decode(self.encoding if what == "JSON" else "utf-8-sig")
            value = read_json(text)
        except TwiceError as error:
            raise self.error(f"{what}{place}: {printable(str(error))}") from error
        except (ValueError, RecursionError) as error:
            if what == "JSON" and str(error).startswith("Extra data"):
                raise self.error(
                    "holds several JSON values, one after another: write one a line (`jq -c . FILE`)"
                ) from error
            raise self.damaged(what, error, place) from error
        if _deeper(value, MAX_DEPTH):
            raise self.error(
                f"{what}{place}: lists or objects stand more than {MAX_DEPTH} deep in each other; no log does"
            )
        return value

    # -----------------------------------------------------------------------------------------------------------------
    # Zip: Inspect's logs.

    def members(self) -> list[zipfile.ZipInfo]:
        """What the zip says it holds; nothing is unpacked, and no name is ever a path."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, EOFError) as error:
            raise self.damaged("zip", error) from error
        if len(found) > MAX_MEMBERS:
            raise self.error(f"holds {len(found):,} files, more than {MAX_MEMBERS:,}: no log does")
        return found

    def unpack(self, members: list[zipfile.ZipInfo]) -> Iterator[tuple[str, Any]]:
        """``(name, JSON)`` of members, one after the other."""
        total = 0
        try:
            with zipfile.ZipFile(self.path) as archive, self.path.open("rb") as raw:
                for member in members:
                    if member.flag_bits & 1:
                        raise self.error("is encrypted: unpack it with its password first")
                    with self._opened(archive, raw, member) as file:
                        data = file.read(MAX_DOCUMENT + 1)
                    self._bound(len(data), MAX_DOCUMENT, f"{printable(member.filename)!r} inside it")
                    if member.compress_type == _ZSTD and zlib.crc32(data) != member.CRC:
                        raise zipfile.BadZipFile(f"bad CRC-32 of {member.filename!r}")
                    total += len(data)
                    self._bound(total, MAX_FILE, "the zip")
                    yield (
                        member.filename,
                        self.parsed(data, "an Inspect log", f", {printable(member.filename)!r} inside it"),
                    )
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, struct.error, NotImplementedError) as error:
            raise self.damaged("zip", error) from error

    def _opened(self, archive: zipfile.ZipFile, raw: IO[bytes], member: zipfile.ZipInfo) -> IO[bytes]:
        if member.compress_type != _ZSTD:
            return archive.open(member)
        raw.seek(member.header_offset)
        header = raw.read(30)
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise zipfile.BadZipFile(f"no header of {member.filename!r}")
        name, extra = struct.unpack("<26xHH", header)
        raw.seek(name + extra, 1)
        packed = raw.read(min(member.compress_size, MAX_DOCUMENT))
        return cast(IO[bytes], pa.CompressedInputStream(pa.BufferReader(packed), "zstd"))

    # -----------------------------------------------------------------------------------------------------------------
    # Rows

    def records(self) -> Iterator[tuple[str, Any]]:
        """``(place, value)`` of what is one row each: lines, elements of a list, rows of CSV and Parquet.

        :raises LogError: for what cannot be read, naming the place.
        """
        if self.kind == "lines":
            yield from self._alone(
                (f"line {number}", self.parsed(line, "JSON Lines", f", line {number}")) for number, line in self.lines()
            )
        elif self.kind == "json":
            value = self.document()
            yield from self._alone(
                (f"element {number}", item)
                for number, item in enumerate(value if isinstance(value, list) else [value], 1)
            )
        elif self.kind == "csv":
            yield from self._csv()
        elif self.kind == "parquet":
            yield from self._parquet()
        else:
            raise self.error("is a zip that is no Inspect log: unpack it, and import what is inside")

    def _alone(self, found: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The records, or the rows of the only one, where it is a table as pandas writes it."""
        for place, value in found:
            if (rows := _rows(value)) is None:
                yield place, value
            elif (other := next(found, None)) is None:
                self._note("columns, as pandas writes them, are read as rows")
                yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
            else:
                yield from ((place, value), other)
            yield from found

    def first(self) -> Any:
        """The first record, or None."""
        return next((value for _, value in self.records()), None)

    def only(self) -> Any:
        """The document that the file is.

        :raises LogError: where it holds several.
        """
        found = self.records()
        _, document = next(found)
        if (other := next(found, None)) is not None:
            raise self.error(f"{other[0]} is a second log: give every log a file of its own")
        return document

    def _csv(self) -> Iterator[tuple[str, dict[str, str]]]:
        delimiter = self._delimiter()
        if delimiter != ",":
            name = {"\t": "tabs"}.get(delimiter, repr(delimiter))
            self._note(f"fields are separated by {name}")
        csv.field_size_limit(MAX_LINE)
        # Fields in quotes may hold empty lines.
        lines = (line for number, line in self.lines(blank=True) if number > 1 or not _SEPARATOR.match(line))
        reader = (
            fields for fields in csv.reader(lines, delimiter=delimiter, strict=True) if any(map(str.strip, fields))
        )
        number = 0
        try:
            header = [name.strip() for name in next(reader)]
            self._check_names(header)
            for number, fields in enumerate(reader, 1):
                if len(fields) != len(header):
                    raise self.error(
                        f"row {number} has {len(fields)} fields, the header {len(header)} (separated by {delimiter!r}): quote "
                        "fields that hold the separator",
                        is_log=number <= _A_TABLE,
                    )
                # Nameless columns are row numbers, or what Excel leaves behind the last.
                yield f"row {number}", {name: text for name, text in zip(header, fields, strict=True) if name}
        except csv.Error as error:
            raise self.damaged("CSV", error, f" after row {number}") from error

    def _check_names(self, names: list[str]) -> None:
        if repeated := sorted({name for name in names if name and names.count(name) > 1}):
            raise self.error(f"has the column {printable(repeated[0])!r} more than once: keep one")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _delimiter(self) -> str:
        """The separator under which the first rows have the same number of fields, and the most."""
        head = []
        for number, (_, line) in enumerate(self.lines()):
            if number == 0 and (told := _SEPARATOR.match(line)):
                return told[1]
            head.append(line)
            if number == 50:
                break
        best = (False, 1, ",")
        rare = [char for char in dict.fromkeys(head[0]) if not (char.isalnum() or char in _NO_DELIMITERS)]
        for delimiter in (*_DELIMITERS, *sorted(rare, key=" ".__eq__)):
            if best[0] and delimiter not in _DELIMITERS:
                break
            try:
                rows = list(csv.reader(head, delimiter=delimiter))
            except csv.Error:
                continue
            # The last may go on in a line that was not read.
            sizes = {len(row) for row in (rows[:-1] if len(rows) > 2 and len(head) > 50 else rows)}
            found = (len(sizes) == 1, len(rows[0]), delimiter)
            if found[1] > 1 and found[:2] > best[:2]:
                best = found
        return best[2]

    def metadata(self) -> dict[bytes, bytes]:
        """The metadata of a Parquet file; nothing of the others."""
        if self.kind != "parquet":
            return {}
        try:
            return dict(pq.read_schema(self.path).metadata or {})
        except (pa.ArrowException, OSError) as error:
            raise self.damaged("Parquet", error) from error

    def _parquet(self) -> Iterator[tuple[str, dict[str, Any]]]:
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                sizes = [file.metadata.row_group(at).total_byte_size for at in range(file.metadata.num_row_groups)]
                self._bound(sum(sizes), MAX_FILE, "the table")
                self._check_names(file.schema_arrow.names)
                for batch in file.iter_batches(1024):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"row {number}", _plain(row)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self.damaged("Parquet", error) from error
        except LogError:
            raise
        except (ValueError, OverflowError) as error:  # times that Python has not: nanoseconds, years beyond 9999
            raise self.error(
                f"a value behind row {number} cannot be read ({error}): write times as text, or leave their column out"
            ) from error


def _plain(value: Any) -> Any:
    """A value of Parquet with bytes, as older writers store texts, as text."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _rows(document: Any) -> list[dict[str, Any]] | None:
    """The rows of a document that holds a table as pandas writes it (by column, by number, split); None of others."""
    if not isinstance(document, dict) or len(document) < 2:
        return None
    names, data = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(data, list):
        fits = all(isinstance(row, list) and len(row) == len(names) for row in data)
        return [dict(zip(map(str, names), row, strict=True)) for row in data] if fits else None
    parts = list(document.values())
    if all(isinstance(part, list) for part in parts):
        columns = {name: dict(enumerate(part)) for name, part in document.items()}
    elif all(isinstance(part, dict) for part in parts) and parts[0].keys() & {"0"}:
        columns = document
    elif all(isinstance(part, dict) for part in parts) and "0" in document:
        return parts
    else:
        return None
    keys = next(iter(columns.values())).keys()
    if len(keys) < 2 or any(part.keys() != keys for part in columns.values()):
        return None
    return [{name: part[key] for name, part in columns.items()} for key in keys]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _deeper(value: Any, depth: int) -> bool:
    """Whether containers stand more than ``depth`` deep in each other; asks without recursion."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
