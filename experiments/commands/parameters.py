"""Hyper-parameters on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import ConfigError


def read_parameters(texts: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that ``--param name=value`` and options of their own name.

    :param options: values of options that stand for a parameter; None: not given.
    :raises ConfigError: for what cannot be read, and for a parameter that is given twice.
    """
    found = {name: value for name, value in options.items() if value is not None}
    for text in texts:
        name, given, written = text.partition("=")
        name = name.strip()
        if not given or not name:
            raise ConfigError(f"--param {text!r} must read name=value")
        if name in found:
            raise ConfigError(f"parameter {name} is given twice: {found[name]!r} and {written!r}")
        try:
            found[name] = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={written}"]), resolve=True)["value"]  # type: ignore[index,call-overload]
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--param {text!r}: the value cannot be read ({' '.join(str(error).split())})") from error
    return found
