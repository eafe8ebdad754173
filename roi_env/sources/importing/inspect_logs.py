"""Inspect AI: ``.eval`` (a zip) and JSON logs, of all versions that wrote ``eval`` and ``samples``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from roi_env.sources.importing.files import LogFile, printable
from roi_env.sources.importing.generations import (
    Generation,
    Options,
    Report,
    choose,
    dict_of,
    settings_text,
    text_of,
    with_options,
)

_ATTACHMENT = re.compile(r"attachment://([0-9a-f]{32})")
_GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


def matches(file: LogFile, first: Any) -> bool:
    """A zip with a header or the journal of a run; or a document with ``eval`` and how it ended."""
    if file.kind == "zip":
        return any(member.filename in ("header.json", "_journal/start.json") for member in file.members())
    return isinstance(first, dict) and isinstance(first.get("eval"), dict) and ("samples" in first or "status" in first)


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Generations of a log's samples; errors, and scorers that were not chosen, are counted."""
    header, samples = _open(file)
    spec = header["eval"]
    status = header.get("status")
    if status != "success":
        report.note(f"{file.path.name}: the run did not end as it should (status {text_of(status) or 'unknown'})")
    found = 0
    for place, sample in samples:
        if not isinstance(sample, dict) or "input" not in sample:
            raise file.error(f"{place} is no sample of Inspect (an object with id, input, scores)")
        found += 1
        if options.filter is None:
            # The first scored sample decides for all: another scorer of a later one is another judgement.
            options = replace(options, filter=_score(_scores(sample), options, report)[1])
        if (made := _generation(file, spec, header, sample, place, options, report)) is not None:
            yield made
    if not found:
        raise file.error(
            "has no samples (a log without them, or only its header): run the evaluation with log_samples", is_log=True
        )


def _open(file: LogFile) -> tuple[dict[str, Any], Iterator[tuple[str, Any]]]:
    if file.kind != "zip":
        document = file.only()
        samples = document.get("samples") or []
        if not isinstance(samples, list):
            raise file.error("'samples' is no list")
        return document, ((f"sample {number}", sample) for number, sample in enumerate(samples, 1))
    members = {member.filename: member for member in file.members()}
    name = "header.json" if "header.json" in members else "_journal/start.json"
    [(_, header)] = file.unpack([members[name]])
    if not isinstance(header, dict) or not isinstance(header.get("eval"), dict):
        raise file.error(f"{name!r} inside it has no 'eval': not a log of Inspect, or of an unknown version")
    wanted = [member for path, member in members.items() if path.startswith("samples/") and path.endswith(".json")]
    if any(member.filename.endswith("/sample.json") for member in wanted):
        raise file.error(
            "has samples in pieces (version 3), which are not read: `inspect log convert` writes each as one"
        )
    return header, file.unpack(wanted)


def _generation(
    file: LogFile,
    spec: Mapping[str, Any],
    header: Mapping[str, Any],
    sample: dict[str, Any],
    place: str,
    options: Options,
    report: Report,
) -> Generation | None:
    if sample.get("invalidation"):
        report.dropped["declared invalid in the log"] += 1
        return None
    if not (scores := _scores(sample)):
        report.dropped["ended in an error" if sample.get("error") else "no score (see `inspect score`)"] += 1
        return None
    value, scorer = _score(scores, options, report)
    if scorer is None:
        names = ", ".join(printable(str(name)) for name in scores)
        report.dropped[f"no scorer {options.filter!r} ({names})"] += 1
        return None
    attachments = sample.get("attachments", dict_of(sample.get("transcript")).get("content"))

    def resolved(text: str) -> str:
        found: Mapping[str, Any] = attachments if isinstance(attachments, dict) else {}
        return _ATTACHMENT.sub(lambda match: str(found.get(match[1], match[0])), text)

    output = dict_of(sample.get("output"))
    message = _message(output)
    content = message.get("content") if message else output.get("completion")
    text, thought = _content(content)
    config = {**dict_of(dict_of(header.get("plan")).get("config")), **dict_of(spec.get("model_generate_config"))}
    tokens, usd, thought_tokens = _usage(spec, sample, output, file, report)
    if tokens is None and isinstance(content, list) and any(dict_of(part).get("redacted") for part in content):
        report.warn(
            f"HIDDEN THOUGHTS: {file.path.name} has thoughts that are encrypted and no counts of them: its tokens are far too few"
        )
    # A solver's calls that leave no message (a critique, a vote) were paid too.
    calls = [_output_text(call) for call in _calls_before_scoring(sample)]
    turns = calls if len(calls) > 1 else _generated(sample)
    shown = "\n".join(turns) if len(turns) > 1 else text
    return Generation(
        score=_GRADES.get(value, value) if isinstance(value, str) else value,
        dataset=text_of(spec.get("task")).rpartition("/")[2],
        question_id=text_of(sample.get("id")),
        question=with_options(resolved(_question(sample["input"])), sample.get("choices")),
        answer=resolved(text_of(sample.get("target"))),
        model=text_of(spec.get("model")),
        effort=_effort(config),
        tokens=tokens,
        usd=usd,
        text=resolved(shown) if shown is not None else None,
        thought=thought,
        thought_tokens=thought_tokens,
        name=_name(spec, sample),
        condition=_condition(spec, config),
        error=text_of(dict_of(sample.get("error")).get("message")),
        place=place,
    )


def _name(spec: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """What no other sample is called: older versions gave no uuid, but every run of a task an id, which a retry keeps."""
    if uuid := text_of(sample.get("uuid")):
        return uuid
    task = text_of(spec.get("task_id"))
    return f"{task} {text_of(sample.get('id'))} {text_of(sample.get('epoch'))}" if task else ""


def _scores(sample: Mapping[str, Any]) -> dict[str, Any]:
    scores = sample.get("scores")
    if isinstance(scores, dict) and scores:
        return scores
    return {"score": sample["score"]} if sample.get("score") is not None else {}  # version 1


def _score(scores: Mapping[str, Any], options: Options, report: Report) -> tuple[Any, str | None]:
    name = choose(list(map(str, scores)), options.filter, "scorer", report)
    if name is None:
        # A scorer with several values: scorer.value
        for scorer, score in scores.items():
            values = score.get("value") if isinstance(score, dict) else None
            parts = {f"{scorer}.{key}": one for key, one in dict_of(values).items()}
            if options.filter in parts:
                return parts[str(options.filter)], options.filter
        return None, None
    value = scores[name].get("value") if isinstance(scores[name], dict) else scores[name]
    if isinstance(value, dict) and value:
        part = choose([f"{name}.{key}" for key in value], None, "value", report)
        return value[str(part).removeprefix(f"{name}.")], part
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value, name


def _message(output: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = output.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return dict_of(choices[0].get("message"))
    return {}


def _content(content: Any) -> tuple[str | None, str | None]:
    """``(text, thought)`` of a message's content: a text, or parts of kinds."""
    if isinstance(content, str) or content is None:
        return content, None
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = [str(part.get("text") or "") for part in parts if part.get("type") == "text"]
    # What a provider encrypted is no text of a thought.
    reasoning = [part for part in parts if part.get("type") == "reasoning" and not part.get("redacted")]
    thoughts = [str(part.get("reasoning") or "") for part in reasoning]
    return "\n".join(texts), "\n".join(thoughts) if any(thoughts) else None


def _generated(sample: Mapping[str, Any]) -> list[str]:
    """Texts of all turns that the model wrote."""
    messages = sample.get("messages")
    return [
        _content(message.get("content"))[0] or ""
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and message.get("role") == "assistant" and message.get("source") != "input"
    ]


def _output_text(call: Mapping[str, Any]) -> str:
    output = dict_of(call.get("output"))
    text, thought = _content(_message(output).get("content", output.get("completion")))
    return "\n".join(filter(None, (thought, text)))


def _question(given: Any) -> str:
    if isinstance(given, str):
        return given
    messages = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    asked = [one for one in messages if one.get("role") == "user"] or messages
    return "\n\n".join(_content(one.get("content"))[0] or "" for one in asked)


def _effort(config: Mapping[str, Any]) -> str:
    """How much the run was told to think."""
    named = ("reasoning_effort", "effort", "reasoning_tokens", "max_tokens")
    found = [(name, text_of(config[name])) for name in named if config.get(name) is not None]
    return " ".join(value if "effort" in name else f"{name}={value}" for name, value in found)


def _condition(spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Settings of a run under which its answers are no samples of another run's."""
    limits = dict_of(spec.get("config"))
    return settings_text(
        {f"task {name}": value for name, value in dict_of(spec.get("task_args")).items()}
        | {name: spec.get(name) for name in ("solver", "solver_args", "model_args")}
        | {name: config.get(name) for name in ("temperature", "top_p", "top_k", "system_message", "extra_body")}
        | {name: limits.get(name) for name in ("message_limit", "token_limit", "time_limit", "working_limit")}
    )


def _usage(
    spec: Mapping[str, Any], sample: Mapping[str, Any], output: Mapping[str, Any], file: LogFile, report: Report
) -> tuple[Any, Any, Any]:
    """``(tokens, dollars, tokens of the thought)`` of what the model wrote until it was scored; graders are left out."""
    last = dict_of(output.get("usage"))
    calls = _calls_before_scoring(sample)
    if len(calls) > 1:
        used = [dict_of(dict_of(call.get("output")).get("usage")) for call in calls]
        if all(_tokens(one) is not None for one in used):
            costs = [one.get("total_cost") for one in used]
            thoughts = [one.get("reasoning_tokens") or 0 for one in used]
            counts = list(map(_tokens, used))
            return (
                sum(counts) if all(type(one) in (int, float) for one in counts) else counts,
                sum(costs) if all(isinstance(cost, int | float) for cost in costs) else None,
                sum(thoughts) if all(isinstance(one, int) for one in thoughts) else None,
            )
    if len(_generated(sample)) > 1 and len(calls) < 2 and last:
        report.warn(
            f"{file.path.name}: samples have several turns but no record of their calls: tokens are those of the last turn, "
            "too few"
        )
    tokens = _tokens(last)
    if tokens is None and not calls:
        # Without graders, the model's use in all is that of its answers.
        total = dict_of(sample.get("model_usage"))
        if list(total) == [spec.get("model")]:
            last = dict_of(total[spec["model"]])
            tokens = _tokens(last)
            if tokens is not None:
                report.note("tokens of a sample whose last output counts none are its model's use in all")
    return tokens, last.get("total_cost"), last.get("reasoning_tokens")


def _tokens(usage: Mapping[str, Any] | None) -> Any:
    usage = usage or {}
    found = usage.get("output_tokens", usage.get("completion_tokens"))
    thought, given, total = (usage.get(name) for name in ("reasoning_tokens", "input_tokens", "total_tokens"))
    if not (isinstance(found, int) and isinstance(thought, int)):
        return found
    # Some providers count the thought apart: then it is more, or the total holds it once more, what was cached beside or not.
    cached = sum(usage.get(f"input_tokens_cache_{how}") or 0 for how in ("read", "write"))
    rest = total - found - thought if isinstance(total, int) else None
    apart = thought > found or (thought > 0 and isinstance(given, int) and rest in (given, given + cached))
    return found + thought if apart else found


def _calls_before_scoring(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = []
    events = sample.get("events", dict_of(sample.get("transcript")).get("events"))  # versions of 2024 had a transcript
    for event in events if isinstance(events, list) else []:
        if not isinstance(event, dict):
            continue
        kind = event.get("event")
        if kind in ("span_begin", "step") and event.get("type") in ("scorer", "scorers"):
            if event.get("action", "begin") == "begin":
                break
        elif kind == "score":
            break
        elif kind == "model" and not event.get("pending") and not event.get("error") and event.get("role") is None:
            calls.append(event)
    return calls
