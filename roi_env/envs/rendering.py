"""Pictures of an exam under way: ``ansi`` text and ``rgb_array`` frames, one frame a decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from roi_env.exams.config import ExamSpec
from roi_env.sources.units import cost_text

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

RENDER_FPS = 2

# Okabe and Ito's colour-blind-safe palette: skip is grey, tiers run from light to dark effort.
_SKIP = (150, 150, 150)
_TIERS = ((86, 180, 233), (230, 159, 0), (0, 114, 178), (204, 121, 167), (240, 228, 66), (213, 94, 0))
_RIGHT, _WRONG, _INK, _FAINT, _PAPER = (0, 135, 95), (200, 60, 30), (40, 40, 40), (225, 225, 225), (255, 255, 255)
_ANSI_TIERS = (36, 33, 34, 35, 93, 31)
_WIDTH, _HEIGHT = 720, 360
_MARK = 11  # pixels between a bar and the middle of its mark


@dataclass(frozen=True)
class Decision:
    """One decision as it is drawn: action, tokens paid, whether it was right, whether it was cut at the budget."""

    action: int
    tokens: int
    correct: bool
    overspent: bool


@dataclass(frozen=True)
class Scene:
    """An exam so far: its published groups and the decisions taken."""

    spec: ExamSpec
    groups: tuple[int, ...]
    decisions: tuple[Decision, ...]

    def after(self, decision: Decision) -> Scene:
        """The scene one decision later."""
        return replace(self, decisions=(*self.decisions, decision))

    @property
    def remaining(self) -> int:
        """Tokens left."""
        return self.spec.budget - sum(decision.tokens for decision in self.decisions)

    @property
    def score(self) -> float:
        """Sum of the weights of right answers."""
        weights = self.spec.source.group_weight
        return float(sum(weights[g] for g, d in zip(self.groups, self.decisions, strict=False) if d.correct))

    @property
    def ended(self) -> bool:
        """Whether the exam is over."""
        return len(self.decisions) == self.spec.num_tasks or self.remaining == 0

    def action_name(self, action: int) -> str:
        """Name of an action."""
        return "skip" if action == 0 else self.spec.source.tiers[action - 1].name


def _mark(decision: Decision) -> str:
    if decision.action == 0:
        return "·"
    if decision.overspent:
        return "cut"
    return "✓" if decision.correct else "✗"


def _shown(cost: int, spec: ExamSpec, *, unit: bool = True) -> str:
    """A cost: tokens, or dollars."""
    if spec.source.unit != "tokens":
        return cost_text(cost, spec.source.unit)
    return f"{cost} tokens" if unit else str(cost)


def render_ansi(scene: Scene) -> str:
    """The exam as coloured text: one line a decision, the budget as a bar, the task to decide next."""
    spec = scene.spec
    lines = [f"{spec.source.name}: {spec.num_tasks} tasks, {_shown(spec.budget, spec)}"]
    left = spec.budget
    width = max(len(scene.action_name(a)) for a in range(spec.num_tiers + 1))
    for n, decision in enumerate(scene.decisions):
        left -= decision.tokens
        colour = 90 if decision.action == 0 else _ANSI_TIERS[(decision.action - 1) % len(_ANSI_TIERS)]
        full = round(30 * left / spec.budget)
        lines.append(
            f"{n + 1:3d}  {spec.source.group_names[scene.groups[n]]:<26.26s}  "
            f"\x1b[{colour}m{scene.action_name(decision.action):<{width}s}\x1b[0m  {_mark(decision):<3s} "
            f"{_shown(decision.tokens, spec):>14s}  {'█' * full}{'░' * (30 - full)} {_shown(left, spec, unit=False):>7s} left"
        )
    if scene.ended:
        lines.append(f"     exam over: score {scene.score:g}, {_shown(spec.budget - left, spec)} spent")
    else:
        n = len(scene.decisions)
        # Preview or not, the task to decide is public.
        lines.append(f"{n + 1:3d}  {spec.source.group_names[scene.groups[n]]:<26.26s}  ?")
    return "\n".join(lines)


def render_rgb(scene: Scene) -> npt.NDArray[np.uint8]:
    """The budget trajectory as a (360, 720, 3) uint8 picture: steps coloured by tier, right or wrong marked.

    :raises gymnasium.error.DependencyNotInstalled: without Pillow.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise gym.error.DependencyNotInstalled(
            'rgb_array rendering needs Pillow: pip install "roi-reasoning[report]"'
        ) from error
    image = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(image)
    _paint(draw, scene, ImageFont.load_default(13), ImageFont.load_default(17))
    return np.asarray(image, np.uint8).copy()


def _paint(
    draw: ImageDraw.ImageDraw,
    scene: Scene,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    title: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    spec = scene.spec
    left, right, top, bottom = 70, _WIDTH - 20, 84, _HEIGHT - 40
    step = (right - left) / spec.num_tasks

    def y(tokens: float) -> float:
        return bottom - (bottom - top) * tokens / spec.budget

    draw.text((left, 12), f"{spec.source.name}   score {scene.score:g}   {_shown(scene.remaining, spec, unit=False)} of {_shown(spec.budget, spec)} left",
              fill=_INK, font=title)  # fmt: skip
    at = float(left)
    for action in range(spec.num_tiers + 1):
        name = scene.action_name(action)
        draw.rectangle((at, 46, at + 12, 58), fill=_colour(action))
        draw.text((at + 17, 44), name, fill=_INK, font=font)
        at += 30 + draw.textlength(name, font=font)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        draw.line((left, y(share * spec.budget), right, y(share * spec.budget)), fill=_FAINT)
        label = _shown(round(share * spec.budget), spec, unit=False).removesuffix(" USD")
        draw.text((left - 8, y(share * spec.budget)), label, fill=_INK, font=font, anchor="rm")
    # Beyond about 25 tasks the labels would touch: name every second, fifth, ... one.
    stride = next(s for s in (1, 2, 5, 10, 20, 50, 100, spec.num_tasks) if s * step >= 24 or s >= spec.num_tasks)
    for n in range(0, spec.num_tasks, stride):
        draw.text((left + (n + 0.5) * step, bottom + 12), str(n + 1), fill=_INK, font=font, anchor="mm")
    draw.text((right, bottom + 28), "task", fill=_INK, font=font, anchor="rm")
    tokens = spec.budget
    for n, decision in enumerate(scene.decisions):
        after = tokens - decision.tokens
        x0, x1 = left + n * step, left + (n + 1) * step
        pad = min(3.0, step / 8)
        # A skip or a cheap attempt still shows as a sliver.
        end = max(y(after), y(tokens) + 3)
        draw.rectangle((x0 + pad, y(tokens), x1 - pad, end), fill=_colour(decision.action))
        # Below the bar; above it where the mark would run into the axis' labels.
        mark = end + _MARK if end + _MARK + 5 < bottom else y(tokens) - _MARK
        _draw_mark(draw, (x0 + x1) / 2, mark, min(5.0, step / 4), decision)
        tokens = after
    if not scene.ended:
        x = left + (len(scene.decisions) + 0.5) * step
        draw.polygon([(x - 5, y(tokens) - 12), (x + 5, y(tokens) - 12), (x, y(tokens) - 4)], fill=_INK)


def _colour(action: int) -> tuple[int, int, int]:
    return _SKIP if action == 0 else _TIERS[(action - 1) % len(_TIERS)]


def _draw_mark(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, decision: Decision) -> None:
    """A tick, a cross, or a bar through for an attempt cut at the budget; drawn, so that no font is needed."""
    if decision.action == 0:
        return
    if decision.correct:
        draw.line((x - size, y, x - size / 3, y + size * 0.8, x + size, y - size), fill=_RIGHT, width=3)
    elif decision.overspent:
        draw.rectangle((x - size, y - 1, x + size, y + 2), fill=_WRONG)
    else:
        draw.line((x - size, y - size, x + size, y + size), fill=_WRONG, width=3)
        draw.line((x - size, y + size, x + size, y - size), fill=_WRONG, width=3)
