"""OpenAI's evals: lines of events, in which what was sampled and how it was judged stand apart, joined by ``sample_id``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from roi_env.sources.importing.files import LogFile
from roi_env.sources.importing.generations import Generation, Options, Report, dict_of, text_of


def matches(file: LogFile, first: Any) -> bool:
    """Lines that begin with what was run, and on what."""
    return isinstance(first, dict) and isinstance(first.get("spec"), dict) and "eval_name" in first["spec"]


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """One generation a ``match``: all that was sampled for it before is paid.

    :raises LogError: where nothing was matched: graders by a model are sampled like answers, and cannot be told from them.
    """
    spec = file.first()["spec"]
    sampled: dict[str, list[dict[str, Any]]] = {}
    answered: set[str] = set()
    matched = 0
    for place, record in file.records():
        event = dict_of(record)
        name, data = text_of(event.get("sample_id")), dict_of(event.get("data"))
        if event.get("type") == "sampling":
            sampled.setdefault(name, []).append(data)
        elif event.get("type") == "match":
            matched += 1
            calls = sampled.pop(name, [])
            if not calls and name in answered:
                report.dropped["another match of the same answer: the first is taken"] += 1
                continue
            if calls:
                answered.add(name)
            counts = [dict_of(call.get("usage")).get("completion_tokens") for call in calls]
            texts = [text_of(call.get("sampled")) for call in calls] or [text_of(data.get("sampled"))]
            yield Generation(
                score=data.get("correct"),
                dataset=text_of(spec["eval_name"]),
                question_id=name,
                question=_question(calls[0].get("prompt") if calls else data.get("prompt")),
                answer=text_of(data.get("expected")),
                model=text_of(spec.get("completion_fns")),
                tokens=sum(counts) if counts and all(type(one) is int for one in counts) else None,
                text=texts[0],
                texts=tuple(texts[1:]),
                place=place,
            )
    if not matched:
        raise file.error("has no events 'match', which say whether an answer was right", is_log=True)
    if sampled:
        report.dropped["no match: an answer that was not judged"] += len(sampled)


def _question(prompt: Any) -> str:
    """The text of a prompt, or of what a user said in a conversation."""
    if not isinstance(prompt, list):
        return text_of(prompt)
    asked = [dict_of(turn) for turn in prompt]
    return "\n\n".join(text_of(turn.get("content")) for turn in asked if turn.get("role") != "system")
