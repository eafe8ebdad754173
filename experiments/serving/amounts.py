"""Budgets as people write them: amounts, and the file that names the budgets of a team."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from experiments.config import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
PERIODS = ("once", "hour", "day", "month")
NAME = re.compile("[A-Za-z0-9_-]{1,64}")


def parse_tokens(text: Any, where: str) -> int:
    """A number of tokens: 50000, 50k, 1.5m, 1e6.

    :param where: named in errors.
    :raises ConfigError: for all others, also dollars, which need prices that are not known here.
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,6})?(?:e[0-9]{1,2})?)([kmg]?)", str(text).strip().lower(), re.ASCII)
    amount = Decimal(0) if match is None or isinstance(text, bool) else Decimal(match[1]) * _UNITS[match[2]]
    if not 0 < amount < 10**18 or amount != int(amount):
        raise ConfigError(f"{where}: {text!r} must be a positive whole number of tokens: 50000, 50k, 1.5m or 1e6")
    return int(amount)


@dataclass(frozen=True)
class Plan:
    """One budget of a file.

    :param tokens: of every period.
    :param period: after which it begins anew.
    :param carry_over: whether what is left is added to the next period.
    :param key: SHA-256 of the key that opens it; None: the proxy's.
    :param most_per_request: tokens that one answer may take at most.
    :param warn_at: share of the budget; from there on answers have the header ``x-roi-warning``.
    """

    name: str
    tokens: int
    period: Literal["once", "hour", "day", "month"] = "once"
    carry_over: bool = False
    key: bytes | None = None
    most_per_request: int | None = None
    warn_at: float | None = None


_FIELDS = ("tokens", "period", "carry_over", "key_env", "key_sha256", "most_per_request", "warn_at")


def read_plans(path: Path) -> list[Plan]:
    """The budgets of a file.

    :raises ConfigError: naming the file and the field, for what cannot be used.
    """
    from omegaconf import OmegaConf

    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # OmegaConf's and YAML's own kinds
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(found, dict) or set(found) != {"budgets"} or not isinstance(found["budgets"], dict):
        raise ConfigError(f"{path} must hold `budgets:` with a budget a name, and nothing else")
    if not found["budgets"]:
        raise ConfigError(f"{path}: budgets: there is none")
    return [_plan(str(name), value, f"{path}: budgets.{name}") for name, value in found["budgets"].items()]


def _plan(name: str, value: Any, where: str) -> Plan:
    if NAME.fullmatch(name) is None or name == "v1":
        raise ConfigError(f"{where}: a name has up to 64 letters, digits, - and _, and is not v1")
    given = value if isinstance(value, dict) else {"tokens": value}
    if unknown := [str(field) for field in given if field not in _FIELDS]:
        raise ConfigError(f"{where}.{unknown[0]}: there is no such field, but {', '.join(_FIELDS)}")
    if "tokens" not in given:
        raise ConfigError(f"{where}.tokens: is missing")
    period = given.get("period", "once")
    if period not in PERIODS:
        raise ConfigError(f"{where}.period: must be one of {', '.join(PERIODS)}, got {period!r}")
    carry = given.get("carry_over", False)
    if not isinstance(carry, bool):
        raise ConfigError(f"{where}.carry_over: must be true or false, got {carry!r}")
    warn = given.get("warn_at")
    if warn is not None and (isinstance(warn, bool) or not isinstance(warn, (int, float)) or not 0 < warn <= 1):
        raise ConfigError(f"{where}.warn_at: must be a share of the budget, above 0 and at most 1, got {warn!r}")
    most = given.get("most_per_request")
    return Plan(
        name,
        parse_tokens(given["tokens"], f"{where}.tokens"),
        period,
        carry,
        _key(given, where),
        None if most is None else parse_tokens(most, f"{where}.most_per_request"),
        warn,
    )


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
