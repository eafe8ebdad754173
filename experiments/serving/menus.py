"""Tiers over several models, as a file names them: who answers each, how long it may get, and what it costs::

    tiers:                                # cheapest first
      - {name: quick, endpoint: URL, backend: vllm, model: small, cap: 512, price: {prompt: 0.05, completion: 0.20}}
      - {name: deep, endpoint: URL, backend: openai, model: large, cap: 8704, thinking: 8192, effort: high, key_env: KEY,
         price: {prompt: 1.25, completion: 10}}
    menus: {auto: [quick, deep], small: [quick]}     # default: auto, with all tiers

A tier whose model reasons in the open says ``dialect: instruct, tokenizer: FOLDER``: its cap is one of reasoning, forced text and answer,
of which ``answer: 32`` tokens are kept for the last two; a cap of just these answers at once. ``force: TEXT`` is another forced text.
A price is US dollars per million tokens. All tiers have one, and budgets are dollars, or none, and budgets are tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands import endpoints
from experiments.config import ConfigError
from experiments.serving.amounts import check_names, read_file
from roi_env.answering.base import SKIP, ThinkingTier
from roi_env.answering.dialect import OPEN_ANSWER_TOKENS, Dialect
from roi_env.answering.prices import Price, Rates
from roi_env.sources.units import UNIT_NAMES, Unit

if TYPE_CHECKING:
    from roi_env.answering.http import ByTier, HTTPSolver

DEFAULT = "auto"
_OPEN = ("dialect", "tokenizer", "force", "answer")
"""Fields of tiers that are forced."""
_FIELDS = ("name", "endpoint", "backend", "model", "key_env", "cap", "thinking", "effort", "price", *_OPEN)
_NAME = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
_NAMED = "a name has up to 128 letters, digits and . : / - _"


@dataclass(frozen=True)
class Seat:
    """One tier of a file, and who answers it.

    :param price: None: costs are tokens.
    :param speech: how its model speaks, and the tokenizer that forces answers.
    """

    tier: ThinkingTier
    endpoint: str
    backend: str
    model: str
    key_env: str | None
    price: Price | None
    speech: endpoints.Dialects
    tokenizer: str | None


@dataclass(frozen=True)
class Menu:
    """What one agent chooses from, cheapest first; ``name`` is the model that clients ask for."""

    name: str
    seats: tuple[Seat, ...]

    @property
    def tiers(self) -> list[ThinkingTier]:
        """Its tiers."""
        return [seat.tier for seat in self.seats]

    @property
    def models(self) -> list[str]:
        """Who answers each tier."""
        return [f"{seat.endpoint} {seat.model}" for seat in self.seats]

    @property
    def rates(self) -> Rates:
        """What its tiers cost."""
        return Rates({seat.tier.name: seat.price for seat in self.seats if seat.price is not None})

    def dearer_first(self) -> list[str]:
        """What a user should know of the order of its tiers."""
        most = [self.rates.cost(tier.name, tier.most_tokens, 0) for tier in self.tiers]
        return [
            f"menu {self.name!r}: tier {after.name!r} stands behind {before.name!r}, and its whole cap costs less; tiers stand "
            "cheapest first"
            for before, after, a, b in zip(self.tiers, self.tiers[1:], most, most[1:], strict=False)
            if b < a
        ]


def read_menus(path: Path, parts: Mapping[Any, Any] | None = None) -> list[Menu]:
    """The menus of a file; none where it names no tiers.

    :param parts: see :func:`experiments.serving.amounts.read_plans`.
    :raises ConfigError: naming the file and the field, for what cannot be used.
    """
    found = read_file(path) if parts is None else parts
    if "tiers" not in found:
        if "menus" in found:
            raise ConfigError(f"{path}: menus: needs tiers to be made of")
        return []
    given = found["tiers"]
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{path}: tiers: must be a list of tiers, cheapest first")
    seats: dict[str, Seat] = {}
    for number, value in enumerate(given):
        seat = _seat(value, f"{path}: tiers.{number}")
        if seat.tier.name in seats:
            raise ConfigError(f"{path}: tiers.{number}.name: {seat.tier.name!r} is named twice")
        seats[seat.tier.name] = seat
    bare = [name for name, seat in seats.items() if seat.price is None]
    if bare and len(bare) < len(seats):
        priced = next(name for name in seats if name not in bare)
        raise ConfigError(
            f"{path}: tier {bare[0]!r} has no price, {priced!r} has one: give all tiers prices (budgets in dollars), or none "
            "(budgets in tokens)"
        )
    menus = found.get("menus", {DEFAULT: list(seats)})
    if not isinstance(menus, dict) or not menus:
        raise ConfigError(f"{path}: menus: must hold a list of tiers a name")
    check_names(menus, f"{path}: menus")
    return [_menu(str(name), value, seats, f"{path}: menus.{name}") for name, value in menus.items()]


def _menu(name: str, value: Any, seats: dict[str, Seat], where: str) -> Menu:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{where}: {_NAMED}")
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise ConfigError(f"{where}: must be a list of different tiers, got {value!r}")
    if unknown := [one for one in value if not isinstance(one, str) or one not in seats]:
        raise ConfigError(f"{where}: there is no tier {unknown[0]!r}, but {', '.join(seats)}")
    return Menu(name, tuple(seats[one] for one in value))


def _seat(value: Any, where: str) -> Seat:
    from roi_env.answering.backends import BACKENDS

    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a tier with name, endpoint, model and cap, got {value!r}")
    if unknown := [str(name) for name in value if name not in _FIELDS]:
        raise ConfigError(f"{where}.{unknown[0]}: there is no such field, but {', '.join(_FIELDS)}")
    texts: dict[str, Any] = {"backend": "generic", "key_env": None, "effort": None, **value}
    texts = {"dialect": "auto", "tokenizer": None, "force": None, **texts}
    for name in ("name", "endpoint", "model", "backend", "key_env", "effort", "dialect", "tokenizer", "force"):
        if name not in texts:
            raise ConfigError(f"{where}.{name}: is missing")
        if not isinstance(texts[name], str) and (texts[name] is not None or name in value):
            raise ConfigError(f"{where}.{name}: must be a text, got {texts[name]!r}")
    if _NAME.fullmatch(texts["name"]) is None:
        raise ConfigError(f"{where}.name: {_NAMED}, got {texts['name']!r}")
    if texts["name"] == SKIP:
        raise ConfigError(f"{where}.name: {SKIP!r} is what becomes of a question that is not asked: name it otherwise")
    if texts["backend"] not in BACKENDS:
        raise ConfigError(f"{where}.backend: there is no {texts['backend']!r}, but {', '.join(BACKENDS)}")
    speech = endpoints.Dialects(texts["dialect"], texts["force"])
    try:
        spoken = speech.at_endpoint(endpoints.Connection(tokenizer=texts["tokenizer"]))
    except ConfigError as error:
        raise ConfigError(f"{where}.dialect: {error}") from None
    return Seat(
        _tier(value, texts["name"], texts["effort"], where) if spoken is None else _open(value, spoken, where),
        texts["endpoint"].rstrip("/"),
        texts["backend"],
        texts["model"],
        texts["key_env"],
        _price(value["price"], f"{where}.price") if "price" in value else None,
        speech,
        texts["tokenizer"],
    )


def _open(value: dict[Any, Any], spoken: Dialect, where: str) -> ThinkingTier:
    """A tier whose model reasons in the open."""
    for field in ("thinking", "effort"):
        if field in value:
            raise ConfigError(f"{where}.{field}: is of a thought in a block, not of the dialect {spoken.name}")
    cap, answer = (
        _tokens(found, f"{where}.{field}", 1)
        for field, found in (("cap", value.get("cap")), ("answer", value.get("answer", OPEN_ANSWER_TOKENS)))
    )
    try:
        return spoken.tier(str(value["name"]), 0 if cap == answer else cap, answer)
    except ValueError as error:
        raise ConfigError(f"{where}.cap: {error}") from None


def _tokens(number: Any, where: str, least: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**30:
        raise ConfigError(f"{where}: must be a whole number of tokens below 2**30, got {number!r}")
    return number


def _tier(value: dict[Any, Any], name: str, effort: str | None, where: str) -> ThinkingTier:
    if "answer" in value:
        raise ConfigError(f"{where}.answer: is kept of the cap in the dialect instruct alone (dialect: instruct)")
    cap, thinking = (
        _tokens(found, f"{where}.{field}", least)
        for field, found, least in (("cap", value.get("cap"), 1), ("thinking", value.get("thinking", 0), 0))
    )
    answer = cap - thinking - (thinking > 0)
    if answer < 1:
        raise ConfigError(
            f"{where}.cap: {cap} tokens in all leave none for the answer beside {thinking} of thought and its end"
        )
    if effort is not None and not thinking:
        raise ConfigError(
            f"{where}.effort: is of a thought: say how many tokens of the cap it may have (thinking: 1024)"
        )
    return ThinkingTier(name, thinking, answer, effort)


def _price(value: Any, where: str) -> Price:
    if not isinstance(value, dict) or set(value) != {"prompt", "completion"}:
        raise ConfigError(
            f"{where}: must read {{prompt: 0.25, completion: 1.25}}, US dollars per million tokens, got {value!r}"
        )
    numbers = []
    for name in ("prompt", "completion"):
        given = value[name]
        try:
            if isinstance(given, bool) or not isinstance(given, int | float | str):
                raise InvalidOperation
            numbers.append(Decimal(str(given)))
        except InvalidOperation:
            raise ConfigError(f"{where}.{name}: must be US dollars per million tokens, got {given!r}") from None
    try:
        return Price(*numbers)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from None


def menu_solver(menus: Sequence[Menu], connection: endpoints.Connection, **options: Any) -> ByTier:
    """The solver of menus: every tier is asked of its own endpoint.

    :param options: of all of them, as in :func:`experiments.commands.endpoints.http_solver`.
    """
    from roi_env.answering.http import ByTier

    made: dict[tuple[Any, ...], HTTPSolver] = {}
    solvers = {}
    for seat in (seat for menu in menus for seat in menu.seats):
        place = (seat.endpoint, seat.model, seat.backend, seat.key_env, seat.speech, seat.tokenizer)
        if place not in made:
            own = replace(connection, key_env=seat.key_env, tokenizer=seat.tokenizer)
            spoken = seat.speech.at_endpoint(own, options.get("prompt"))
            made[place] = endpoints.http_solver(seat.endpoint, seat.model, seat.backend, own, spoken, **options)
        try:
            made[place].check([seat.tier])
        except ValueError as error:
            raise ConfigError(str(error)) from error
        solvers[seat.tier.name] = made[place]
    return ByTier(solvers)


def check_unit(unit: Unit, menus: Sequence[Menu], budget: str, where: str) -> None:
    """A budget counts what its tiers cost.

    :param budget: named in errors.
    :raises ConfigError: where it does not.
    """
    costs = menus[0].rates.unit if menus else "tokens"
    if costs == unit:
        return
    if unit == "tokens":
        raise ConfigError(
            f"{where}: the tiers have prices, and {budget} is tokens: write dollars (2.50usd), or take the prices out"
        )
    raise ConfigError(
        f"{where}: {budget} is {UNIT_NAMES[unit]}, and the tiers have no prices: give each `price: {{prompt: 0.25, completion: "
        "1.25}`, in a file of tiers"
    )
