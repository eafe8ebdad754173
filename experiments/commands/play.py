"""One exam in the terminal, decision by decision."""

from __future__ import annotations

from rich.console import Console
from rich.prompt import IntPrompt
from rich.text import Text

from agents.base import DecisionView
from agents.one_pass import ExamTaker
from agents.watching import take_exam
from experiments.compare.plan import Setting, build_agent, setting_spec
from experiments.config import ConfigError
from experiments.options import ChosenExam
from experiments.terminal import Table
from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.config import ExamSpec
from roi_env.sources.units import COST_NAMES, cost_text

PERSON = "me"


def play_exam(console: Console, exam: ChosenExam, agent: str, exam_seed: int, exam_id: int) -> float:
    """Take one exam and return its score; ``agent`` is a registered name or ``"me"`` to be asked."""
    setting = Setting(0, exam.family.label, exam.family, exam.budget, exam.order)
    spec = setting_spec(setting)
    player = None if agent == PERSON else build_agent(agent, setting, spec, 0)
    if isinstance(player, ExamTaker):
        raise ConfigError(f"agent {agent!r} writes a whole exam in one pass; `roi play` goes task by task")
    env = ROIReasoningEnv(spec, render_mode="ansi")

    def ask(view: DecisionView) -> int:
        console.print(Text.from_ansi(env.render()))
        return _ask(console, spec, view)

    score = 0.0
    for info in take_exam(env, ask if player is None else player, exam_seed, exam_id):
        score = float(info.get("score", 0.0))
    console.print(Text.from_ansi(env.render()))
    return score


def _ask(console: Console, spec: ExamSpec, view: DecisionView) -> int:
    """What the person may know of the task, and the choice."""
    shown = Table(box=None)
    mean = f"mean {COST_NAMES[spec.source.unit]}"
    for column in ("action", "tier", "success", mean, ""):
        shown.add_column(column, justify="right" if column in ("success", mean) else "left")
    shown.add_row("0", "skip", "", cost_text(spec.decision_cost, spec.source.unit), "")
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
        tokens = cost_text(beliefs.expected_cost[group, k], spec.source.unit) if beliefs is not None else "?"
        shown.add_row(str(k + 1), tier.name, chance, tokens, legal)
    console.print(shown)
    choices = [str(a) for a in range(spec.num_tiers + 1)]
    return IntPrompt.ask("action", console=console, choices=choices)
