"""Which files of the paths that a user names are logs, and what is said of those that are none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from roi_env.sources.importing.files import CompanionError, LackingError, LogError, LogFile, printable
from roi_env.sources.importing.generations import Generation, Report, text_of
from roi_env.sources.importing.proposals import NO_TABLE, as_options

_MOST_FILES = 10_000
_NOTHING_LACKS = NO_TABLE - 1
"""How far a file is from a table that lacks no column, but is none for another reason."""
_NO_LOGS = (".md", ".txt", ".py", ".yaml", ".yml", ".html", ".png", ".lock", ".log")


def find_logs(paths: Sequence[Path], report: Report) -> list[Path]:
    """The files, and all files of folders but hidden ones, links and those of kinds that are no logs; none twice.

    :raises LogError: where there are none, or too many.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        inside, skipped = _inside(path) if path.is_dir() else ([path], "")
        if not inside:
            raise LogError(str(path), f"the folder has no files that could be logs{skipped}")
        if skipped:
            report.note(f"not looked at in {printable(str(path))}{skipped}")
        for file in inside:
            found.setdefault(file.resolve(), file)
    if len(found) > _MOST_FILES:
        raise LogError(str(paths[0]), f"{len(found):,} files, more than {_MOST_FILES:,}: import some at a time")
    return list(found.values())


def _inside(folder: Path) -> tuple[list[Path], str]:
    """The files of a folder that could be logs, and which others are not read."""
    inside, skipped = [], Counter[str]()
    for file in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(folder).parts) or not file.is_file():
            continue
        if file.is_symlink():
            skipped["links (name what they lead to)"] += 1
        elif file.suffix.lower() in _NO_LOGS:
            skipped[file.suffix.lower()] += 1
        else:
            inside.append(file)
    return inside, f" ({', '.join(f'{count} {what}' for what, count in skipped.items())})" if skipped else ""


def nothing_left(reasons: Sequence[LogError]) -> LogError:
    """The error of files of which none is a table: of the one that lacks least, with options that may suit all of them."""
    least = min(reasons, key=lambda one: one.lacking if isinstance(one, LackingError) else _NOTHING_LACKS)
    reason = str(least).partition(": ")[2]
    if len(reasons) < 2:
        return LogError(least.path, reason)
    ranked = [one for one in reasons if isinstance(one, LackingError) and one.lacking < NO_TABLE]
    ranked.sort(key=lambda one: one.lacking)
    together = {ours: theirs for one in reversed(ranked) for ours, theirs in one.proposals.items()}
    mine = least.proposals if isinstance(least, LackingError) else together
    of_all = f"; perhaps all of them: {as_options({**together, **mine})}" if together.keys() > mine.keys() else ""
    return LogError(
        least.path, f"{reason} ({len(reasons) - 1} more files cannot be imported as they are either{of_all})"
    )


def say_same_names(files: Sequence[LogFile], tier: str, report: Report) -> None:
    """Warn of files that ``tier={file}`` makes one tier, because only their folders differ."""
    if "{file}" not in tier or "{folder}" in tier:
        return
    same = [name for name, count in Counter(file.stem for file in files).items() if count > 1]
    if same:
        report.warn(
            f"several files are called {printable(same[0])!r}, and --column tier={tier} makes them one tier: --column tier={{folder}} tells them apart"
        )


def say_same_content(generations: Iterable[tuple[LogFile, Generation]], report: Report) -> None:
    """Warn of files that hold the same generations in other bytes: every generation would count twice."""
    of_file: dict[str, list[tuple[str, ...]]] = {}
    for file, one in generations:
        what = (one.question_id, one.question, one.score, one.tokens, one.usd, one.text)
        of_file.setdefault(str(file.path), []).append(tuple(text_of(value).casefold() for value in what))
    known: dict[int, str] = {}
    for path, mine in of_file.items():
        before = known.setdefault(hash(tuple(sorted(mine))), path)
        if before != path and len(mine) > 1 and sorted(of_file[before]) == sorted(mine):
            report.warn(
                f"{printable(path)} holds the same generations as {printable(before)}: if it is a copy in another form, leave it out, or each counts twice"
            )


def distinct(paths: Sequence[Path], report: Report) -> tuple[list[LogFile], list[LogError]]:
    """Files that differ: a copy would count every generation twice."""
    seen: dict[bytes, Path] = {}
    files: list[LogFile] = []
    reasons = []
    for path in paths:
        try:
            file = LogFile(path)
        except LogError as error:
            if not error.is_log or len(paths) == 1:
                raise
            reasons.append(error)
            continue
        with path.open("rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").digest()
        if digest in seen:
            report.warn(f"left out: {printable(str(path))} holds the same bytes as {printable(str(seen[digest]))}")
            continue
        seen[digest] = path
        files.append(file)
    return files, reasons


def say_left_out(reasons: Iterable[LogError], report: Report) -> None:
    """Tell of files that are no logs; one speaks for others of the same folder and fault."""
    alike: dict[tuple[type, str], list[LogError]] = {}
    for reason in reasons:
        fault = str(reason).partition(": ")[2].partition(" It has ")[0]
        alike.setdefault((type(reason), fault), []).append(reason)
    for (kind, fault), mine in alike.items():
        names = ", ".join(printable(Path(one.path).name) for one in mine[:3]) + (
            f" and {len(mine) - 3:,} more" if mine[3:] else ""
        )
        if kind is CompanionError:
            report.note(f"{names}: about a run, without answers of its own")
        elif len(mine) == 1:
            report.warn(f"left out: {mine[0]}")
        else:
            report.warn(f"left out: {len(mine):,} files ({names}): {fault}")
