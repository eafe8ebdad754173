"""Parameters of agents: what their signatures say, checked where somebody gives them by name.

A signature, or a dataclass of settings, states types as usual, and ranges with the aliases below. Checked once, where agents are
made, so that a slip of the pen is told by the parameter's name instead of by whatever it breaks later.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    :param above: whether ``low`` itself is outside.
    """

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:g}"
        return f"above {self.low:g}" if self.above else f"of at least {self.low:g}"


Count: TypeAlias = Annotated[int, Range(1)]
Natural: TypeAlias = Annotated[int, Range(0)]
Positive: TypeAlias = Annotated[float, Range(0, above=True)]
NonNegative: TypeAlias = Annotated[float, Range(0)]
Share: TypeAlias = Annotated[float, Range(0, 1)]


class Word(str):
    """A value on the command line that is neither number, quoted text nor list: nan, abc, 1 + 2. No parameter takes one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def checked(factory: Callable[..., Any], given: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Arguments of a factory, checked against its signature; whole numbers written as 1e6 become integers.

    :param factory: a class with a constructor of its own, a dataclass, or a function.
    :param given: by name.
    :param who: whose parameters they are, for errors.
    :raises ValueError: naming the parameter, what is expected, and what was given.
    """
    own = inspect.isclass(factory) and not is_dataclass(factory)
    try:
        hints = get_type_hints(factory.__init__ if own else factory, include_extras=True)  # type: ignore[misc]
    except NameError:  # types that are imported for type checkers alone
        hints = {}
    known = [name for name in inspect.signature(factory).parameters if name != "problem"]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{who} has no parameter {', '.join(unknown)}; it takes {', '.join(sorted(known)) or 'none'}")
    found = {}
    for name, value in given.items():
        hint = hints.get(name, Any)
        if isinstance(value, Real) and not isinstance(value, Integral) and _whole(hint) and float(value).is_integer():
            value = int(float(value))
        if not _fits(value, hint):
            raise ValueError(f"{who}: {name} must be {_expected(hint)}, got {value!r:.80}")
        found[name] = value
    return found


def check_numbers(settings: Any, positive: Sequence[str] = ()) -> None:
    """Check the numbers of a dataclass of settings whose types alone are checked where it is made: nan and inf are floats as well.

    :param positive: fields that must be above 0.
    :raises ValueError: naming the field.
    """
    for name, value in vars(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
        if name in positive and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def as_params(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass of settings by name, in their order, as JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}


def _whole(hint: Any) -> bool:
    return hint is int or (get_origin(hint) is Annotated and get_args(hint)[0] is int)


def _options(hint: Any) -> tuple[Any, ...] | None:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else None


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, Word):
        return False
    if (options := _options(hint)) is not None:
        return any(_fits(value, option) for option in options)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, arguments[0]) and all(value in limit for limit in arguments[1:])
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(one, arguments[0]) for one in value if arguments)
    try:
        return isinstance(value, hint) if inspect.isclass(hint) else True
    except TypeError:  # Any, protocols
        return True


def _expected(hint: Any) -> str:
    if (options := _options(hint)) is not None:
        return " or ".join(_expected(option) for option in options)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_expected(arguments[0])} {' and '.join(map(str, arguments[1:]))}"
    if origin is Literal:
        return f"one of {list(arguments)}"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return "a list" + (f", each of its entries {_expected(arguments[0])}" if arguments else "")
    names = {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "a text in quotes",
        type(None): "none",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))
