"""Formats that can be imported, as data: the first that matches a file's content reads it."""

from __future__ import annotations

from roi_env.sources.importing import (
    helm,
    inspect_logs,
    journals,
    lighteval,
    lm_eval,
    openai_evals,
    qwen_math,
    reasoning_gym,
    tabular,
)
from roi_env.sources.importing.files import CompanionError, LogFile
from roi_env.sources.importing.generations import Format, Options

TABULAR = Format("table", tabular.matches, tabular.read)
FORMATS = (
    Format("Inspect AI log", inspect_logs.matches, inspect_logs.read),
    Format("lm-evaluation-harness samples", lm_eval.matches, lm_eval.read),
    Format("reasoning-gym results", reasoning_gym.matches, reasoning_gym.read),
    Format("Qwen2.5-Math harness", qwen_math.matches, qwen_math.read),
    Format("OpenAI evals events", openai_evals.matches, openai_evals.read),
    Format("lighteval details", lighteval.matches, lighteval.read),
    Format("HELM run", helm.matches, helm.read),
    Format("router rewards and costs", tabular.router_matches, tabular.read_router),
    Format("journal of roi record", journals.matches, journals.read),
    TABULAR,
)


def find_format(file: LogFile, options: Options) -> Format:
    """The format of a file. Columns that a user maps make a table of any rows, unless they only name tiers.

    :raises LogError: where no format fits, with what is missing.
    """
    first = None if file.kind == "zip" else file.first()
    if first is None and file.kind != "zip":
        raise file.error("has no rows", is_log=True)
    if lm_eval.is_results(first):
        remedy = (
            "lighteval with --save-details and import details_*.parquet"
            if isinstance(first, dict) and "config_general" in first
            else "lm-evaluation-harness with --log_samples and import samples_*.jsonl"
        )
        raise CompanionError(str(file.path), f"is a results file: it has averages, and no answers. Run {remedy}")
    if helm.is_companion(first):
        raise CompanionError(
            str(file.path),
            "is a file of a HELM run that judges no answer: import the run's folder, with its per_instance_stats.json",
        )
    mapped = bool(options.columns.keys() - set(tabular.LABELS)) and file.kind != "zip"
    for one in (TABULAR,) if mapped else FORMATS:
        if one.matches(file, first):
            return one
    if file.kind == "zip":
        if any(member.filename in ("xl/workbook.xml", "content.xml") for member in file.members()):
            raise file.error("is a spreadsheet: save its sheet as CSV (UTF-8)", is_log=True)
        raise file.error(
            "is a zip without header.json or _journal/start.json: no log of Inspect. Unpack it, and import what is inside"
        )
    raise file.error("holds no objects: give JSON Lines with one object a row, a JSON list of objects, CSV or Parquet")
