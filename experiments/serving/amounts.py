"""Budgets as people write them: amounts, and the file that names the budgets of a team."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from experiments.config import ConfigError
from experiments.serving.webhooks import is_address
from roi_env.sources.units import UNIT_NAMES, Unit, read_cost

PERIODS = ("once", "hour", "day", "month")
KEEP = 90
"""Days for which settled requests are kept where a file does not say."""
NAME = re.compile("[A-Za-z0-9_-]{1,64}")


def parse_amount(text: Any, where: str) -> tuple[int, Unit]:
    """An amount and its unit: tokens (50000, 50k, 1.5m, 1e6) or dollars (2.50usd, $2.50, 300 micro-usd).

    :param where: named in errors.
    :raises ConfigError: for all others.
    """
    try:
        named = read_cost(str(text))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    number = re.fullmatch(r"[0-9]{1,18}(?:\.[0-9]{1,6})?(?:e[0-9]{1,2})?", str(text).strip().lower(), re.ASCII)
    tokens = Decimal(number[0] if number else 0)
    read: tuple[int, Unit] = named or (int(tokens) if tokens == int(tokens) else 0, "tokens")
    if not 0 < read[0] < 10**18:
        raise ConfigError(
            f"{where}: {text!r} must be a positive whole number of tokens: 50000, 50k, 1.5m or 1e6; or dollars: 2.50usd; "
            "below 10^18"
        )
    return read


@dataclass(frozen=True)
class Plan:
    """One budget of a file.

    :param amount: of every period, in ``unit``.
    :param period: after which it begins anew.
    :param carry_over: whether what is left is added to the next period.
    :param key: SHA-256 of the key that opens it; None: the proxy's.
    :param most_per_request: tokens that one answer may take at most; dollars that one request may cost at most.
    :param warn_at: share of the budget; from there on answers have the header ``x-roi-warning``.
    :param webhook: told once a period when ``warn_at`` is reached.
    :param models: menus that its key may ask; none: all.
    :param keep: days for which its settled requests are kept.
    """

    name: str
    amount: int
    period: Literal["once", "hour", "day", "month"] = "once"
    carry_over: bool = False
    key: bytes | None = None
    most_per_request: int | None = None
    warn_at: float | None = None
    unit: Unit = "tokens"
    models: tuple[str, ...] = ()
    webhook: str | None = None
    keep: int = KEEP


_FIELDS = ("amount", "tokens", "period", "carry_over", "key_env", "key_sha256", "most_per_request", "warn_at", "webhook",
           "models")  # fmt: skip
PARTS = ("budgets", "tiers", "menus", "keep")


def read_file(path: Path) -> dict[Any, Any]:
    """The parts of a configuration file.

    :raises ConfigError: naming the file, for what cannot be used.
    """
    from omegaconf import OmegaConf

    try:
        text = path.read_text(encoding="utf-8")
        found = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except Exception as error:  # OmegaConf's and YAML's own kinds
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(found, dict) or (unknown := [str(part) for part in found if part not in PARTS]):
        there = f", not `{unknown[0]}:`" if isinstance(found, dict) else ""
        raise ConfigError(f"{path} must hold {', '.join(f'`{part}:`' for part in PARTS)}{there}")
    _check_readings(path, text)
    return found


def _check_readings(path: Path, text: str) -> None:
    """YAML reads ``0123`` as octal and ``1:30`` as sixties, and a name like ``no`` as false.

    :raises ConfigError: for a number that means another than is written, and a name that is none.
    """
    import yaml

    def wrong(node: yaml.Node, what: str) -> ConfigError:
        return ConfigError(f"{path}, line {node.start_mark.line + 1}: YAML reads {node.value} as {what}")

    nodes: list[Any] = [yaml.compose(text, yaml.SafeLoader)]
    for node in nodes:  # grows
        if isinstance(node, yaml.MappingNode):
            nodes += [part for pair in node.value for part in pair]
            for name, _ in node.value:
                if name.tag == "tag:yaml.org,2002:bool":
                    raise wrong(name, f"true or false: write the name in quotes, '{name.value}'")
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node is not None and node.tag == "tag:yaml.org,2002:int" and re.search(r"^[-+]?0.|:", node.value):
            raise wrong(node, "another number: write it in decimal digits")


def check_names(found: Mapping[Any, Any], where: str) -> None:
    """YAML tells ``1.0`` and ``'1.0'`` apart, names do not.

    :raises ConfigError: for two names that read the same.
    """
    names = [str(name) for name in found]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(f"{where}: {twice[0]!r} is named twice")


def read_plans(path: Path, parts: Mapping[Any, Any] | None = None) -> list[Plan]:
    """The budgets of a file.

    :param parts: what :func:`read_file` gave, so that all parts are of one state of the file; None: it is read now.
    :raises ConfigError: naming the file and the field, for what cannot be used.
    """
    found = (read_file(path) if parts is None else parts).get("budgets")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: budgets: must hold a budget a name")
    if not found:
        raise ConfigError(f"{path}: budgets: there is none")
    check_names(found, f"{path}: budgets")
    plans = [_plan(str(name), value, f"{path}: budgets.{name}") for name, value in found.items()]
    check_units(plans, str(path))
    return plans


def keeping(plans: Sequence[Plan], path: Path | None, parts: Mapping[Any, Any]) -> list[Plan]:
    """Budgets whose settled requests are kept for as long as a file says.

    :raises ConfigError: for what is no number of days.
    """
    given = parts.get("keep", f"{KEEP}d")
    if (days := re.fullmatch("([1-9][0-9]{0,4})d", str(given))) is None:
        raise ConfigError(
            f"{path}: keep: must be a number of days for which settled requests are kept: 90d; got {given!r}"
        )
    return [replace(plan, keep=int(days[1])) for plan in plans]


def check_units(plans: Sequence[Plan], where: str) -> None:
    """One proxy counts one unit.

    :raises ConfigError: naming budgets of two.
    """
    first = plans[0]
    for plan in plans:
        if plan.unit != first.unit:
            raise ConfigError(
                f"{where}: the budget {first.name!r} is {UNIT_NAMES[first.unit]}, {plan.name!r} is {UNIT_NAMES[plan.unit]}: "
                "budgets of one proxy have one unit"
            )


def _plan(name: str, value: Any, where: str) -> Plan:
    if NAME.fullmatch(name) is None or name == "v1":
        raise ConfigError(f"{where}: a name has up to 64 letters (a to z, A to Z), digits, - and _, and is not v1")
    given = value if isinstance(value, dict) else {"amount": value}
    if unknown := [str(field) for field in given if field not in _FIELDS]:
        raise ConfigError(f"{where}.{unknown[0]}: there is no such field, but {', '.join(_FIELDS)}")
    if len(named := [field for field in ("amount", "tokens") if field in given]) != 1:
        raise ConfigError(f"{where}: give amount (50k or 2.50usd)" + (", not tokens too" if named else ""))
    amount, unit = parse_amount(given[named[0]], f"{where}.{named[0]}")
    if named == ["tokens"] and unit != "tokens":
        raise ConfigError(f"{where}.tokens: {given['tokens']!r} is money: write amount: {given['tokens']}")
    period = given.get("period", "once")
    if period not in PERIODS:
        raise ConfigError(f"{where}.period: must be one of {', '.join(PERIODS)}, got {period!r}")
    carry = given.get("carry_over", False)
    if not isinstance(carry, bool):
        raise ConfigError(f"{where}.carry_over: must be true or false, got {carry!r}")
    if carry and period == "once":
        raise ConfigError(f"{where}.carry_over: needs a period: hour, day or month")
    warn = given.get("warn_at")
    if warn is not None and (isinstance(warn, bool) or not isinstance(warn, (int, float)) or not 0 < warn <= 1):
        raise ConfigError(f"{where}.warn_at: must be a share of the budget, above 0 and at most 1, got {warn!r}")
    webhook = given.get("webhook")
    if webhook is not None and (warn is None or not is_address(webhook)):
        raise ConfigError(f"{where}.webhook: must be an http(s) address without credentials, and needs warn_at")
    most, most_unit = None, unit
    if given.get("most_per_request") is not None:
        most, most_unit = parse_amount(given["most_per_request"], f"{where}.most_per_request")
    if most_unit != unit:
        raise ConfigError(
            f"{where}.most_per_request: is {UNIT_NAMES[most_unit]}, and the budget {UNIT_NAMES[unit]}: give one unit"
        )
    models = given.get("models", [])
    if not isinstance(models, list) or not all(isinstance(one, str) for one in models) or given.get("models") == []:
        raise ConfigError(f"{where}.models: must be a list of names of menus, got {models!r}")
    return Plan(name, amount, period, carry, _key(given, where), most, warn, unit, tuple(models), webhook)


def _key(given: dict[Any, Any], where: str) -> bytes | None:
    """The key's hash."""
    if "key_env" in given and "key_sha256" in given:
        raise ConfigError(f"{where}: key_env and key_sha256 cannot both be given")
    if "key_sha256" in given:
        if re.fullmatch("[0-9a-fA-F]{64}", str(given["key_sha256"])) is None:
            raise ConfigError(f"{where}.key_sha256: must be 64 hexadecimal digits: printf %s KEY | sha256sum")
        return bytes.fromhex(str(given["key_sha256"]))
    if "key_env" not in given:
        return None
    secret = os.environ.get(str(given["key_env"]), "").strip()
    if not secret:
        raise ConfigError(f"{where}.key_env: the environment variable {given['key_env']!r} is empty")
    return digest(os.fsencode(secret))


def digest(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()
