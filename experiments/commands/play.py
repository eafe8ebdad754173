"""One exam in the terminal, decision by decision."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.prompt import IntPrompt
from rich.table import Table
from rich.text import Text

from agents.base import DecisionView, Feedback, exams_view, public_problem
from agents.one_pass import ExamTaker
from agents.playing import pick_actions
from experiments.compare.comparison import Setting, build_agent, setting_spec
from experiments.config import ConfigError, VariantConfig
from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.exam import ExamSpec, draw_exams

PERSON = "me"


def play_exam(
    console: Console, variant: VariantConfig, budget: float | int, order: str, agent: str, seed: int, exam: int
) -> float:
    """Take one exam and return its score; ``agent`` is a registered name or ``"me"`` to be asked."""
    setting = Setting(0, variant.source, variant, budget, order)
    spec = setting_spec(setting)
    problem = public_problem(spec)
    batch = draw_exams(spec, seed, [exam])
    player = None if agent == PERSON else build_agent(agent, setting, spec, seed)
    if isinstance(player, ExamTaker):
        raise ConfigError(f"agent {agent!r} writes a whole exam in one pass; `roi play` goes task by task")
    env = ROIReasoningEnv(
        spec.source,
        num_tasks=spec.num_tasks,
        budget=spec.budget,
        order=spec.order,
        preview=spec.preview,
        beliefs=spec.beliefs,
        feedback=spec.feedback,
        decision_cost=spec.decision_cost,
        render_mode="ansi",
    )
    env.reset(seed=seed, options={"exam_ids": exam})
    state = player.start(exams_view(batch, problem)) if player else None
    zero = np.zeros(1, np.int64)
    last = (zero, zero, np.zeros(1, bool))
    position, remaining, terminated = 0, spec.budget, False
    while not terminated:
        view = DecisionView(problem, zero, np.array([position]), np.array([remaining]), *last, batch.groups)
        if player is None:
            console.print(Text.from_ansi(env.render()))
            action = _ask(console, spec, view)
        else:
            probs, state = player.act(view, state)
            action = int(pick_actions(probs, np.random.default_rng([seed, exam, position]).random(1))[0])
        _, _, terminated, _, info = env.step(action)
        paid, right = np.array([info["tokens"]]), np.array([info["correct"]])
        told = right if spec.feedback == "cost+correct" else np.zeros(1, bool)
        last = (np.array([action]), paid, told)
        if player is not None:
            correct = right if spec.feedback == "cost+correct" else None
            state = player.observe(Feedback(view, last[0], paid, correct, np.array([info["overspent"]])), state)
        position += 1
        remaining -= info["tokens"]
    console.print(Text.from_ansi(env.render()))
    return float(info["score"])


def _ask(console: Console, spec: ExamSpec, view: DecisionView) -> int:
    """What the person may know of the task, and the choice."""
    shown = Table(box=None)
    for column in ("action", "tier", "success", "mean tokens", ""):
        shown.add_column(column, justify="right" if column in ("success", "mean tokens") else "left")
    shown.add_row("0", "skip", "", str(spec.decision_cost), "")
    beliefs, group = view.problem.beliefs, int(view.group[0])
    for k, tier in enumerate(spec.source.tiers):
        legal = (
            ""
            if view.mask[0, k + 1]
            else "does not fit"
            if beliefs is None or beliefs.offered[group, k]
            else "not offered"
        )
        chance = f"{beliefs.success_probability[group, k]:.0%}" if beliefs is not None else "?"
        tokens = f"{beliefs.expected_cost[group, k]:.0f}" if beliefs is not None else "?"
        shown.add_row(str(k + 1), tier.name, chance, tokens, legal)
    console.print(shown)
    choices = [str(a) for a in range(spec.num_tiers + 1)]
    return IntPrompt.ask("action", console=console, choices=choices)
