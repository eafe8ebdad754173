"""JSON text as values; what it tells twice, in two ways, is an error."""

from __future__ import annotations

import json
from typing import Any


class TwiceError(ValueError):
    """An object has a key twice, with values that differ."""

    def __init__(self, key: str, first: Any, second: Any) -> None:
        super().__init__(key)
        self.key, self.values, self.path = key, (first, second), ""

    def __str__(self) -> str:
        place = f" (at {self.path})" if self.path else ""
        one, other = (text if len(text) <= 40 else f"{text[:40]}..." for text in map(json.dumps, self.values))
        return f"one object{place} has the key {self.key!r} twice, as {one} and as {other}: keep the one that holds"


def read_json(text: str) -> Any:
    """The value of a JSON text.

    :raises TwiceError: where one object has a key twice, with values that differ; it says where.
    :raises ValueError: for what is no JSON; RecursionError: where it is too deep.
    """
    try:
        return _DECODER.decode(text)
    except TwiceError as error:
        error.path = _path(json.loads(text, object_pairs_hook=_marked))
        raise


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        first: dict[str, Any] = {}
        for key, value in pairs:
            before = first.setdefault(key, value)
            if before is not value and json.dumps(before) != json.dumps(value):
                raise TwiceError(key, before, value)
    return found


def _marked(pairs: list[tuple[str, Any]]) -> Any:
    try:
        return _object(pairs)
    except TwiceError as error:
        return error


def _path(value: Any) -> str:
    """The keys that lead to the first object that has one twice; "" of the outermost."""
    level = [("", value)]
    while level:
        path, value = level.pop(0)
        if isinstance(value, TwiceError):
            break
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        level += [(f"{path}.{name}" if path else str(name), child) for name, child in parts]
    return path


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
