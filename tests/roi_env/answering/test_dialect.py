"""How models speak, and the local solver in every dialect: caps, one reasoning for all tiers, agreement with `generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [llm]")

import torch
import transformers
from tokenizers import pre_tokenizers

from agents.llm.decisions.tag_logits import PromptEncoder
from agents.llm.one_pass.transcripts import Reader, exam_ids
from roi_env.answering.base import Ask, Generation, Question, Request, ThinkingTier
from roi_env.answering.dialect import (
    DIALECTS,
    INSTRUCT,
    THINKING,
    Dialect,
    DialectError,
    beginning,
    dialect_of,
    ids_after,
    named_dialect,
    unheeded_end,
)
from roi_env.answering.local import LocalLive, TransformersSolver
from tests.tiny_models import CHAT, SIZES, TEMPLATES, THINKING_CHAT, tiny_model, tiny_sentencepiece, tiny_tokenizer

QUESTIONS = [
    Question("sums", str(number), text, "")
    for number, text in enumerate(["What is 1 + 2?", "A cow has 4 legs. How many have 12 cows?", "x", "12 * 12"])
]
FORCE = "\n12: "
TIERS = [INSTRUCT.tier(name, cap, 12) for name, cap in (("now", 0), ("a", 20), ("b", 29), ("c", 60))]
CLOSED_TIERS = [ThinkingTier("now", 0, 5), ThinkingTier("a", 8, 5), ThinkingTier("b", 30, 5)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    return {
        (architecture, dialect): tiny_model(
            tmp_path_factory.mktemp(f"{architecture}-{dialect}"), architecture, dialect, seed
        )
        for seed, architecture in enumerate(SIZES)
        for dialect in TEMPLATES
    }


def requests(tiers: list[ThinkingTier], samples: int = 3) -> list[Request]:
    return [Request(question, tier, sample) for question in QUESTIONS for sample in range(samples) for tier in tiers]


def test_how_a_model_speaks_is_seen_from_tokenizer_and_template() -> None:
    marks = ("<think>", "</think>")
    assert dialect_of(tiny_tokenizer(CHAT)) == INSTRUCT
    assert dialect_of(tiny_tokenizer(None)) == INSTRUCT
    assert dialect_of(tiny_tokenizer(THINKING_CHAT, marks)) == THINKING
    # The vocabulary of a family that thinks, in a member that does not; and a template whose tokens are not there.
    assert dialect_of(tiny_tokenizer(CHAT, marks)) == INSTRUCT
    assert dialect_of(tiny_tokenizer(THINKING_CHAT)) == INSTRUCT
    several = tiny_tokenizer(CHAT, marks)
    several.chat_template = {"default": CHAT, "tool_use": THINKING_CHAT}
    assert dialect_of(several) == INSTRUCT, "the default template is the one that is used"
    other = dialect_of(tiny_tokenizer(CHAT + "[THINK]", ("[THINK]", "[/THINK]")))
    assert (other.name, other.opening, other.closing, other.force) == ("thinking", "[THINK]", "[/THINK]", "[/THINK]")
    both = tiny_tokenizer(THINKING_CHAT, marks)
    assert named_dialect("instruct", both) == INSTRUCT
    assert named_dialect("thinking", tiny_tokenizer(CHAT)) == THINKING
    with pytest.raises(DialectError, match="unknown dialect 'chatty'; there are auto, thinking, instruct"):
        named_dialect("chatty", both)


def test_a_template_that_ends_answers_by_a_token_at_which_nothing_stops_is_told() -> None:
    tokenizer = tiny_tokenizer(CHAT)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert unheeded_end(tokenizer, [end, 0]) is None
    assert unheeded_end(tokenizer, [0]) == "<|im_end|>"
    assert unheeded_end(tiny_tokenizer(None), [0]) is None
    assert unheeded_end(tiny_tokenizer("{{ raise_exception('no') }}"), [0]) is None
    assert unheeded_end(tiny_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"), [0]) is None


def test_numbers_of_tiers_are_whole_caps_in_the_open() -> None:
    assert INSTRUCT.tier("x", 256, 32).most_tokens == 256
    assert INSTRUCT.tier("x", 0, 32) == ThinkingTier("x", 0, 32)
    assert INSTRUCT.reasoning(INSTRUCT.tier("x", 256, 32)) == 224
    assert INSTRUCT.reasoning(INSTRUCT.tier("x", 0, 32)) == 0
    assert THINKING.tier("x", 256, 32) == ThinkingTier("x", 256, 32)
    assert THINKING.reasoning(ThinkingTier("x", 256, 32)) == 256
    with pytest.raises(ValueError, match=r"its 33 tokens .* give at least 34"):
        INSTRUCT.tier("x", 33, 32)
    with pytest.raises(DialectError, match=r"must hold \{question\}"):
        Dialect("x", "y", "no question")
    with pytest.raises(DialectError, match="must not be empty"):
        Dialect("x", "")


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("template", ["instruct", "bare"])
def test_caps_hold_and_all_is_counted(folders: dict[tuple[str, str], Path], architecture: str, template: str) -> None:
    # Hot, so that turns end now and then.
    solver = TransformersSolver(folders[architecture, template], force=FORCE, dtype="float32", temperature=5)
    forced = len(solver.tokenizer(FORCE).input_ids)
    asked = requests(TIERS, samples=6)
    made = dict(zip(asked, solver.generate(asked), strict=True))
    cuts, whole = 0, 0
    for question, tier, sample in asked:
        one = made[Request(question, tier, sample)]
        assert 1 <= one.tokens <= tier.most_tokens
        longest = made[Request(question, TIERS[-1], sample)]
        if FORCE in one.text:
            cuts += 1
            reasoning, _, _ = one.text.partition(FORCE)
            assert longest.text.startswith(reasoning.rstrip("\ufffd")), "one reasoning serves all tiers"
            assert one.cut == (tier.thinking > 0)
            cap = INSTRUCT.reasoning(tier)
            assert cap + forced < one.tokens <= cap + tier.answer
        else:
            whole += 1
            assert one == longest
            assert one.tokens <= INSTRUCT.reasoning(tier)
    assert cuts, "nothing was cut: the test shows nothing"
    assert whole, "everything was cut: the test shows nothing"


def plain(solver: TransformersSolver, prefix: list[int], length: int) -> list[int]:
    """What `generate` of transformers writes after the prefix."""
    ids = torch.tensor([prefix])
    out = solver.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, eos_token_id=solver._stops
    )
    made: list[int] = out[0, len(prefix) :].tolist()
    return made


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("template", ["instruct", "bare"])
def test_the_most_likely_texts_are_those_of_generate(
    folders: dict[tuple[str, str], Path], architecture: str, template: str
) -> None:
    solver = TransformersSolver(folders[architecture, template], force=FORCE, dtype="float32", temperature=0, batch=3)
    forced = solver.tokenizer(FORCE).input_ids
    asked = requests(TIERS, samples=1)
    prompts = {question: solver.prompt(question.text) for question in QUESTIONS}
    longest = {question: plain(solver, prompt, INSTRUCT.reasoning(TIERS[-1])) for question, prompt in prompts.items()}
    for (question, tier, _), one in zip(asked, solver.generate(asked), strict=True):
        prompt, ids = prompts[question], longest[question][: INSTRUCT.reasoning(tier)]
        if not ids or ids[-1] not in solver._stops:
            ids += forced + plain(solver, prompt + ids + forced, tier.answer - len(forced))
        assert one.tokens == len(ids)
        assert one.text == solver.tokenizer.decode(ids).removesuffix(solver.tokenizer.eos_token)


@pytest.mark.parametrize("architecture", SIZES)
def test_thoughts_in_a_block_are_cut_by_closing_it(folders: dict[tuple[str, str], Path], architecture: str) -> None:
    solver = TransformersSolver(folders[architecture, "thinking"], temperature=0)
    assert solver.dialect == THINKING
    assert solver.model.dtype == torch.float32
    end = solver.tokenizer.convert_tokens_to_ids("</think>")
    asked = requests(CLOSED_TIERS, samples=1)
    for (question, tier, _), one in zip(asked, solver.generate(asked), strict=True):
        prompt = solver.prompt(question.text)
        assert solver.tokenizer.decode(prompt[-1:]) == "<think>"
        ids = plain(solver, prompt, tier.thinking) if tier.thinking else []
        if end in ids or solver._stops[0] in ids:
            continue
        ids += [end, *plain(solver, [*prompt, *ids, end], tier.answer)]
        assert one.tokens == len(ids) - (tier.thinking == 0)
        assert one.text == solver.tokenizer.decode(ids).removesuffix(solver.tokenizer.eos_token)


def test_every_tier_of_a_thought_that_ended_by_itself_keeps_to_its_own_cap(
    folders: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = TransformersSolver(folders["qwen2", "thinking"], temperature=1)
    end, draw = solver.tokenizer.convert_tokens_to_ids("</think>"), solver._choose
    monkeypatch.setattr(solver, "_choose", lambda logits, noise: draw(logits, noise).masked_fill(noise < 0.15, end))
    tiers = [ThinkingTier("now", 0, 5), ThinkingTier("a", 8, 5), ThinkingTier("b", 12, 40), ThinkingTier("c", 30, 9)]
    asked = requests(tiers)
    made = solver.generate(asked)
    assert all(one.tokens <= request.tier.most_tokens for request, one in zip(asked, made, strict=True))
    assert made == [solver.generate([request])[0] for request in asked], "what other tiers take is of no account"
    assert any(one.tokens > 39 for one in made)


def test_a_longer_text_that_closes_a_block_is_paid_by_the_answer(folders: dict[tuple[str, str], Path]) -> None:
    folder, force = folders["qwen2", "thinking"], "\nSo</think>A:"
    solver = TransformersSolver(folder, temperature=0, force=force)
    counted = len(solver._force)
    assert counted > 4
    asked = requests([ThinkingTier("now", 0, 12), ThinkingTier("a", 6, 12)], samples=1)
    for (_, tier, _), one in zip(asked, solver.generate(asked), strict=True):
        assert one.tokens <= tier.most_tokens
        if one.cut or not tier.thinking:
            assert force in one.text
            assert one.tokens > tier.thinking + counted - 1
    with pytest.raises(ValueError, match=rf"tier 'now' keeps 3 tokens .* has {counted}, so at least {counted} are"):
        solver.check([ThinkingTier("now", 0, 3)])
    with pytest.raises(DialectError, match="must close the think block: write '</think>' in it, got 'Final"):
        TransformersSolver(folder, force="Final answer: ")


@pytest.mark.parametrize("template", ["instruct", "thinking"])
def test_questions_of_one_id_have_answers_of_their_own(folders: dict[tuple[str, str], Path], template: str) -> None:
    solver = TransformersSolver(folders["qwen2", template], temperature=0, dtype="float32")
    tier = INSTRUCT.tier("a", 40, 30) if template == "instruct" else ThinkingTier("a", 0, 12)
    asked = [Request(Question("sums", "1", text, "0"), tier, 0) for text in ("What is 1 + 2?", "x", "What is 1 + 2?")]
    together = solver.generate(asked)
    assert together == [solver.generate([request])[0] for request in asked]
    assert together[0] != together[1]


@pytest.mark.parametrize("architecture", SIZES)
def test_samples_do_not_depend_on_batches_or_company(folders: dict[tuple[str, str], Path], architecture: str) -> None:
    folder, asked = folders[architecture, "instruct"], requests(TIERS)
    together = TransformersSolver(folder, force=FORCE, dtype="float32").generate(asked)
    alone = TransformersSolver(folder, force=FORCE, dtype="float32", batch=2).generate(asked[::-1])[::-1]
    # The last bits of logits differ, and a draw that falls between two tokens may go either way.
    assert np.mean([one == other for one, other in zip(together, alone, strict=True)]) > 0.95
    few = TransformersSolver(folder, force=FORCE, dtype="float32").generate(asked[1::4])
    assert np.mean([one == other for one, other in zip(together[1::4], few, strict=True)]) > 0.95
    other = TransformersSolver(folder, force=FORCE, dtype="float32", seed=1).generate(asked)
    assert other != together


@pytest.mark.parametrize("template", ["instruct", "thinking"])
def test_samples_come_when_all_their_tiers_are_finished(folders: dict[tuple[str, str], Path], template: str) -> None:
    solver = TransformersSolver(folders["qwen2", template], dtype="float32", temperature=3, batch=2)
    asked = requests(TIERS, samples=3) * 2  # a request may come twice
    groups = list(solver.finished(asked))
    made = dict(one for ready in groups for one in ready)
    assert sum(map(len, groups)) == len(made) == len(asked)
    assert [made[place] for place in range(len(asked))] == solver.generate(asked)
    for ready in groups:
        together = {(asked[place].question, asked[place].sample) for place, _ in ready}
        assert len(ready) == 2 * len(TIERS) * len(together)
    assert template == "thinking" or len(groups) > 1, "the first need not wait for the last"


def test_a_prompt_is_read_once_for_all_samples_and_tiers(folders: dict[tuple[str, str], Path]) -> None:
    solver = TransformersSolver(folders["qwen2", "instruct"], force=FORCE, dtype="float32", batch=5)
    read: list[int] = []

    def count(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named["input_ids"]
        if ids.shape[1] > 1:
            read.append(len(ids))

    hook = solver.model.register_forward_pre_hook(count, with_kwargs=True)
    solver.generate(requests(TIERS, samples=7))
    hook.remove()
    assert sum(read) == len(QUESTIONS)


@pytest.mark.parametrize(("dtype", "vocabulary"), [("float32", 151_936), ("bfloat16", 151_936), ("bfloat16", 700)])
def test_tokens_are_drawn_from_the_models_distribution(
    folders: dict[tuple[str, str], Path], dtype: str, vocabulary: int
) -> None:
    """By inversion of the cumulative distribution, as double precision over the whole vocabulary computes it."""
    solver = TransformersSolver(folders["qwen2", "instruct"], temperature=0.7)
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 3, (40, vocabulary)), dtype=getattr(torch, dtype))
    logits[:, rng.integers(0, vocabulary, vocabulary // 2)] = -torch.inf
    noise = torch.tensor(rng.random(40))
    drawn = solver._choose(logits, noise).numpy()
    upto = (logits.double() / 0.7).softmax(-1).cumsum(-1).numpy()
    low = np.take_along_axis(np.pad(upto, ((0, 0), (1, 0))), drawn[:, None], 1)[:, 0]
    high = np.take_along_axis(upto, drawn[:, None], 1)[:, 0]
    assert (high > low).all(), "no token without any weight is drawn"
    assert (low - 1e-5 <= noise.numpy()).all()
    assert (noise.numpy() <= high + 1e-5).all()


def test_a_live_reply_is_the_recorded_generation(folders: dict[tuple[str, str], Path]) -> None:
    solver = TransformersSolver(folders["llama", "instruct"], force=FORCE, dtype="float32")
    live = LocalLive(solver)
    made: Generation = solver.generate([Request(QUESTIONS[0], TIERS[1], 2)])[0]
    reply = asyncio.run(live.answer(Ask(QUESTIONS[0], TIERS[1], 99, 2)))
    assert (reply.text, reply.tokens, reply.reasoning, reply.error) == (made.text, made.tokens, None, None)
    cut = asyncio.run(live.answer(Ask(QUESTIONS[0], TIERS[1], made.tokens - 1, 2)))
    assert (cut.text, cut.tokens, cut.finish) == ("", made.tokens - 1, "length")
    small = ThinkingTier("small", 0, 2)
    told = asyncio.run(live.answer(Ask(QUESTIONS[0], small, 99, 2)))
    assert told.tokens == 0
    assert "tier 'small' keeps 2 tokens for the forced text and the answer" in str(told.error)
    endless = Question("sums", "long", "1 + " * 1200, "")
    told = asyncio.run(live.answer(Ask(endless, TIERS[1], 99, 2)))
    assert "the prompt of question 'long' (sums) has" in str(told.error)
    assert "the model reads 2,048 at most" in str(told.error)
    with pytest.raises(ValueError, match="'long'"):
        solver.check(TIERS, [QUESTIONS[0], endless])


def test_settings_name_what_generations_depend_on(folders: dict[tuple[str, str], Path]) -> None:
    open_, closed = folders["qwen2", "instruct"], folders["qwen2", "thinking"]
    # Journals of models that think were begun before there were dialects.
    assert TransformersSolver(closed).settings == {}
    assert TransformersSolver(closed, prompt="{question}!").settings == {"prompt": "{question}!"}
    one = TransformersSolver(open_, dtype="float32").settings
    assert one == {"dialect": "instruct", "prompt": INSTRUCT.prompt, "force": INSTRUCT.force, "dtype": "float32"}
    for change in ({"force": FORCE}, {"prompt": "{question}"}, {"system": "Be brief."}, {"dtype": "bfloat16"}):
        assert TransformersSolver(open_, **{"dtype": "float32", **change}).settings != one  # type: ignore[arg-type]


def test_a_template_that_takes_no_system_message_says_so(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}" + CHAT
    )
    solver = TransformersSolver(folder, system="Be brief.")
    with pytest.raises(ValueError, match="chat template refuses the prompt: System role not supported"):
        solver.prompt("x")
    assert "Be brief." not in solver.tokenizer.decode(TransformersSolver(folder).prompt("x"))
    (folder / "chat_template.jinja").write_text(
        "{%- for message in messages if message.role == 'user' -%}\n{{ message.content | trim }}:{%- endfor -%}"
    )
    with pytest.raises(ValueError, match=r"does not write what the system message says: .* leave --system out"):
        TransformersSolver(folder, system="Be brief.").prompt("x")
    assert TransformersSolver(folder).prompt(" x \n")


def test_every_end_of_a_turn_ends_it(tmp_path: Path) -> None:
    """Llama 3 and Gemma end turns with other tokens than their tokenizer's end of text."""
    folder = tiny_model(tmp_path)
    solver = TransformersSolver(folder, force=FORCE, dtype="float32", temperature=0)
    (token,) = plain(solver, solver.prompt(QUESTIONS[0].text), 1)
    config = transformers.GenerationConfig.from_pretrained(folder)
    config.eos_token_id = [int(solver.tokenizer.eos_token_id), token]
    config.save_pretrained(folder)
    ended = TransformersSolver(folder, force=FORCE, dtype="float32", temperature=0)
    assert ended.generate([Request(QUESTIONS[0], TIERS[-1], 0)])[0].tokens == 1


def test_a_template_that_closes_the_block_at_once_is_refused(tmp_path: Path) -> None:
    template = CHAT + "{%- if add_generation_prompt -%}</think>{%- endif -%}"  # DeepSeek V3.1's, unless told to think
    closed = tiny_tokenizer(template, ("<think>", "</think>"))
    with pytest.raises(DialectError, match=r"closes the think block before the model thinks .*say dialect instruct"):
        dialect_of(closed).rendered(closed, [{"role": "user", "content": "?"}])


@pytest.mark.parametrize("template", ["instruct", "bare"])
def test_sentencepiece_puts_a_space_before_a_texts_beginning_alone(template: str) -> None:
    tokenizer = tiny_sentencepiece(TEMPLATES[template])
    first = [] if template == "instruct" else [tokenizer.bos_token_id]
    assert beginning(tokenizer) == first
    assert ids_after(tokenizer, "\n\nFinal") == tokenizer("a\n\nFinal", add_special_tokens=False).input_ids[2:]
    encoder = PromptEncoder(tokenizer)
    prompt = [*encoder.questions(["1 + 2"])[0], *encoder.states(np.array([9]), np.array([1]))[0]]
    assert prompt[: len(first)] == first
    assert "1 + 2\n\nDo not answer yet" in tokenizer.decode(prompt)
    assert exam_ids(tokenizer, ["1 + 2"], 9)[: len(first)] == first
    said = r"so \boxed{12 cows} and \boxed{5}"
    papers = Reader(tokenizer).papers(np.array([tokenizer(said, add_special_tokens=False).input_ids], np.int32), 2)
    assert papers.answers == (("12 cows", "5"),)


@pytest.mark.parametrize("text", ["\n\nFinal answer: ", "Answer: ", " So: "])
def test_a_text_that_goes_on_stands_as_it_is_said(text: str) -> None:
    spaced = tiny_tokenizer(None)
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for tokenizer in (tiny_tokenizer(None), spaced, tiny_sentencepiece(None)):
        before = tokenizer("abc", add_special_tokens=False).input_ids
        assert tokenizer.decode([*before, *ids_after(tokenizer, text)]).strip(" ") == f"abc{text}".strip(" ")


def test_a_template_that_names_the_date_asks_the_same_every_day() -> None:
    dated = tiny_tokenizer("{{ strftime_now('%Y-%m-%d') if strftime_now is defined }}" + CHAT)
    text = INSTRUCT.rendered(dated, [{"role": "user", "content": "?"}])
    assert text == "26 Jul 2024" + INSTRUCT.rendered(tiny_tokenizer(CHAT), [{"role": "user", "content": "?"}])


def test_all_dialects_have_names() -> None:
    assert set(DIALECTS) == {"thinking", "instruct"}
