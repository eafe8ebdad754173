"""What the commands that talk to endpoints share: their options, tiers and questions."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from experiments.config import ConfigError
from experiments.terminal import console, heard_or_not

if TYPE_CHECKING:
    from roi_env.answering.base import Question, ThinkingTier
    from roi_env.answering.dialect import Dialect
    from roi_env.answering.http import HTTPSolver

OPEN_TIERS = ("256=256", "512=512", "1024=1024")
"""The paper's levels, of models that reason in the open."""
Endpoint = Annotated[str | None, typer.Option(help="Base address of an endpoint, e.g. http://127.0.0.1:8000/v1")]
BackendName = Annotated[
    str,
    typer.Option(
        help="What the endpoint is: vllm, sglang, transformers, openai, openai-responses, anthropic, anthropic-adaptive, "
        "gemini, gemini-level, dashscope, deepseek, openrouter, llama.cpp or generic"
    ),
]
KeyEnv = Annotated[
    str | None,
    typer.Option(help="Environment variable that holds the key; default: the backend's, e.g. OPENAI_API_KEY"),
]
Tiers = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=THINKING[+ANSWER][@EFFORT] tokens, cheapest first; repeatable; thinking 0: answer at once. "
        "E.g. high=4096+512@high. In the dialect instruct NAME=CAP[+ANSWER]: a cap of all, of which ANSWER tokens are kept "
        "for the forced text and the answer, e.g. 256=256+32"
    ),
]
DialectName = Annotated[
    str,
    typer.Option(
        "--dialect",
        help="How the model speaks: thinking (in a block that is closed to cut it), instruct (in the open; a text that asks "
        "for the answer cuts it; at an endpoint too, with --tokenizer) or auto (by its tokenizer and chat template; an endpoint "
        "cuts thoughts by itself, as its --backend says)",
    ),
]
Force = Annotated[
    str | None,
    typer.Option(
        help="Text that cuts reasoning and forces an answer; default: the dialect's, in instruct two line breaks and "
        "'Final answer: \\boxed{'"
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Of a local model: float32, bfloat16 or auto (bfloat16 on a GPU and, in the dialect instruct, on CPUs that "
        "multiply it faster)"
    ),
]
Questions = Annotated[
    str | None,
    typer.Option(
        help="Questions: a file (.jsonl, .json, .csv, .parquet), hf:NAME[:CONFIG[:SPLIT]], gsm8k, math-500, aime-2024, "
        "aime-2025 (or gsm8k=FOLDER), rg:GENERATOR?size=100&seed=0"
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="OURS=THEIRS, e.g. text=problem, answer=final, text='{Body} {Question}'; repeatable"),
]
Limit = Annotated[int | None, typer.Option(help="The first so many questions", min=1)]
Concurrency = Annotated[int, typer.Option(help="Requests in flight at most", min=1)]
Deadline = Annotated[float, typer.Option(help="Seconds that one request may take", min=0.1)]
Patience = Annotated[
    float,
    typer.Option(help="Seconds that a question may wait for an endpoint that refuses it for now (429, 503)", min=0),
]
Retries = Annotated[int, typer.Option(help="Free repetitions of a request that generated nothing (429, 5xx)", min=0)]
Prompt = Annotated[
    str | None,
    typer.Option(help="What is asked; {question} stands for the text; default: the dialect's, else that alone"),
]
System = Annotated[str | None, typer.Option(help="System message")]
Body = Annotated[str | None, typer.Option(help="Further request fields as JSON, e.g. '{\"top_p\": 0.9}'")]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="Tokenizer of the model (folder or hub id): counts tokens where an endpoint says none, and in the dialect instruct "
        "what is forced"
    ),
]


@dataclass(frozen=True)
class Connection:
    """Options of how an endpoint is asked, whatever it is asked."""

    key_env: KeyEnv = None
    body: Body = None
    tokenizer: Tokenizer = None
    deadline: Deadline = 600.0
    retries: Retries = 6


@dataclass(frozen=True)
class Wording:
    """Options of what a model is told."""

    prompt: Prompt = None
    system: System = None


@dataclass(frozen=True)
class Dialects:
    """Options of how a model speaks."""

    dialect: DialectName = "auto"
    force: Force = None

    def at_endpoint(self, connection: Connection, prompt: str | None = None) -> Dialect | None:
        """How the model behind an endpoint speaks; None: it cuts thoughts itself, as its backend says.

        :param prompt: what a question is asked with; default: the dialect's.
        :raises ConfigError: naming an option that is for a model in this process, or is missing.
        """
        from roi_env.answering.dialect import INSTRUCT, DialectError, named_dialect

        own = {field.name for field in fields(Dialects)}
        for field in fields(self):
            if field.name not in own and getattr(self, field.name) != field.default:
                raise ConfigError(f"--{field.name} belongs to a model in this process: an endpoint decides that itself")
        try:
            spoken = INSTRUCT if self.dialect == "auto" else named_dialect(self.dialect)
            if self.dialect == INSTRUCT.name:
                if connection.tokenizer is None:
                    raise ConfigError(
                        f"--dialect {self.dialect} at an endpoint needs --tokenizer FOLDER, that of the model (or its hub id): "
                        "the text that forces an answer is counted with it, and reasonings are cut"
                    )
                return replace(spoken, prompt=prompt or spoken.prompt, force=self.force or spoken.force)
        except DialectError as error:
            raise ConfigError(str(error)) from error
        if self.dialect != "auto":
            raise ConfigError(
                f"--dialect {self.dialect} belongs to a model in this process: an endpoint cuts thoughts in a block itself, as "
                "its --backend says"
            )
        if self.force is not None:
            raise ConfigError("--force at an endpoint needs --dialect instruct (reasoning in the open) and --tokenizer")
        return None


@dataclass(frozen=True)
class Speech(Dialects):
    """Options of how a model in this process speaks and computes."""

    dtype: Dtype = "auto"


def report(text: str) -> None:
    """Tell the user something that needs attention."""
    with heard_or_not():
        console.print(f"[yellow]{escape(text)}[/]", highlight=False, soft_wrap=True)


class Judge:
    """Judges answers one by one; what cannot be judged counts as wrong, and is told at once the first time, then counted.

    :param seconds: time limit of one answer.
    :raises ConfigError: for a grader that there is not.
    """

    def __init__(self, grader: str, seconds: float = 10.0) -> None:
        from roi_env.answering.grading import GradingError, GradingPool

        try:
            self._pool = GradingPool(grader, seconds=seconds)
        except GradingError as error:
            raise ConfigError(str(error)) from error
        self.unjudged = 0

    def __call__(self, question: Question, text: str) -> bool:
        """Whether an answer is right."""
        grade = self._pool.grade([(question, text)])[0]
        if grade.problem is not None:
            self.unjudged += 1
            if self.unjudged == 1:
                report(f"an answer to {question.question_id!r} was not judged and counts as wrong: {grade.problem}")
        return grade.correct

    def close(self) -> None:
        """End its worker, and say how many answers it could not judge."""
        self._pool.close()
        if self.unjudged > 1:
            report(f"{self.unjudged:,} answers were not judged and count as wrong")


def chosen_tiers(
    tier: Sequence[str] | None, answer: int | None, spoken: Dialect | None, default: Sequence[str], default_answer: int
) -> list[ThinkingTier]:
    """Tiers of the options; where they say nothing those of the dialect, else a command's own.

    :param tier: ``--tier``; ``answer``: ``--answer-tokens``.
    :param spoken: how the model speaks; None: an endpoint cuts thoughts itself.
    :param default: tiers of models that think in a block, which keep ``default_answer`` tokens for the answer.
    :raises ConfigError: see :func:`parse_tiers`.
    """
    from roi_env.answering.dialect import OPEN_ANSWER_TOKENS

    if spoken is not None and spoken.whole_caps:
        default, default_answer = OPEN_TIERS, OPEN_ANSWER_TOKENS
    return parse_tiers(tier or default, answer or default_answer, spoken)


def parse_tiers(texts: Sequence[str], answer: int, dialect: Dialect | None = None) -> list[ThinkingTier]:
    """Tiers as the options write them.

    :param answer: answer tokens of a tier that names none.
    :param dialect: says what their numbers are caps of; default: of the thought.
    :raises ConfigError: for a text that cannot be read, repeated names or caps that do not grow.
    """
    from roi_env.answering.base import SKIP
    from roi_env.answering.dialect import THINKING

    tiers, numbers = [], []
    for text in texts:
        match = re.fullmatch(r"([\w.-]+)=([0-9]{1,18})(?:\+([0-9]{1,18}))?(?:@([\w-]+))?", text)
        if match is None:
            raise ConfigError(
                f"--tier {text!r} must read NAME=TOKENS, e.g. short=48, short=48+24 or high=4096+512@high"
            )
        if match[1] == SKIP:
            raise ConfigError(
                f"--tier {text!r}: {SKIP!r} is what becomes of a question that is not asked: name it otherwise"
            )
        try:
            numbers.append(int(match[2]))
            tiers.append((dialect or THINKING).tier(match[1], numbers[-1], int(match[3] or answer), match[4]))
        except ValueError as error:
            raise ConfigError(f"--tier {text!r}: {error}") from None
        if tiers[-1].most_tokens >= 2**30:
            raise ConfigError(f"--tier {text!r} must stay below 2**30 tokens")
    # Tiers of equal thoughts differ in what may follow: answers without a thought, cut at several lengths.
    caps = [(number, entry.answer) for number, entry in zip(numbers, tiers, strict=True)]
    if caps != sorted(set(caps)) or len({entry.name for entry in tiers}) < len(tiers):
        named = ", ".join(f"{entry.name}={number}+{entry.answer}" for number, entry in zip(numbers, tiers, strict=True))
        raise ConfigError(
            "--tier: tiers must have different names and growing caps, or growing answers where their caps are "
            f"equal, got {named}"
        )
    return tiers


def local_dialect(model: str, name: str) -> Dialect:
    """How the model in this process speaks; only its tokenizer is read.

    :raises ConfigError: where there is none, or no such dialect.
    """
    from agents.llm.decisions.policy import model_source
    from roi_env.answering.dialect import named_dialect
    from roi_env.answering.tokenizer import open_tokenizer

    source = model_source(model)
    try:
        return named_dialect(name, open_tokenizer(source))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r}: {error}") from error


def parse_columns(texts: Sequence[str] | None) -> dict[str, str]:
    """The column mapping that the options write."""
    columns = {}
    for text in texts or ():
        ours, given, theirs = text.partition("=")
        if not given:
            raise ConfigError(f"--column {text!r} must read OURS=THEIRS, e.g. text=problem")
        columns[ours] = theirs
    return columns


def load_questions(
    source: str, columns: Sequence[str] | None, limit: int | None, *, answers: bool = True, distinct: bool = True
) -> list[Question]:
    """The questions of a source; rows that repeat others are reported.

    :param distinct: see :func:`roi_env.answering.questions.read_questions`.
    :raises ConfigError: where they cannot be read.
    """
    from roi_env.answering.questions import QuestionError, read_questions

    try:
        return read_questions(
            source, parse_columns(columns), limit=limit, answers=answers, distinct=distinct, say=report
        )
    except QuestionError as error:
        raise ConfigError(str(error)) from error


def grader_of(source: str | None, named: str | None) -> str:
    """The grader named, else the source's own, else ``exact``."""
    from roi_env.answering.questions import preset_grader

    return named or (source and preset_grader(source)) or "exact"


def http_solver(
    endpoint: str,
    model: str,
    backend: str,
    connection: Connection,
    dialect: Dialect | None = None,
    tiers: Sequence[ThinkingTier] = (),
    **options: Any,
) -> HTTPSolver:
    """The solver that the options describe.

    :param dialect: in which answers are forced, see :meth:`Dialects.at_endpoint`.
    :param tiers: that are checked then.
    :raises ConfigError: where aiohttp is not installed or the options do not fit.
    """
    try:
        from roi_env.answering.http import HTTPSolver
    except ImportError as error:
        raise ConfigError(f'{error}; endpoints need: pip install "roi-reasoning[live]"') from None
    settings = asdict(connection) | options
    tokenizer, body, read = settings.pop("tokenizer"), settings.pop("body"), None
    if tokenizer is not None:
        from roi_env.answering.tokenizer import open_tokenizer

        try:
            read = open_tokenizer(tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--tokenizer {tokenizer}: {error}") from error
        settings["count"] = lambda text: len(read(text, add_special_tokens=False).input_ids)
    try:
        settings["extra"] = json.loads(body) if body else {}
        if not isinstance(settings["extra"], dict):
            raise ConfigError(f"--body must be a JSON object, got {body!r}")
        prompt = settings.pop("prompt", None) or "{question}"
        if dialect is None:
            solver = HTTPSolver(endpoint, model, backend, prompt=prompt, **settings)
        else:
            from roi_env.answering.forcing import ForcingSolver

            solver = ForcingSolver(endpoint, model, backend, tokenizer=read, dialect=dialect, **settings)
        solver.check(tiers)
        return solver
    except json.JSONDecodeError as error:
        raise ConfigError(f"--body is not JSON: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from error


def refuse_beside_tiers(connection: Connection, where: str, **options: Any) -> None:
    """Refuse options whose place a file of tiers takes.

    :raises ConfigError: naming the option.
    """
    options |= {"key_env": connection.key_env, "tokenizer": connection.tokenizer}
    if given := [name for name, value in options.items() if value]:
        raise ConfigError(f"--{given[0].replace('_', '-')}: {where} say this for every tier, leave it out")


def only_model(endpoint: str, backend: str, connection: Connection) -> str:
    """The model of an endpoint that has one.

    :raises ConfigError: where it lists none or several.
    """
    from roi_env.answering.http import EndpointError

    async def ask() -> list[str]:
        solver = http_solver(endpoint, "", backend, connection)
        try:
            return await solver.models()
        finally:
            await solver.close()

    try:
        names = asyncio.run(ask())
    except EndpointError as error:
        raise ConfigError(
            f"the endpoint does not tell its model ({error}): start it, or correct its address; where it lists none, --model is needed"
        ) from error
    if len(names) != 1:
        raise ConfigError(f"--model is needed: the endpoint lists {names}")
    return names[0]
