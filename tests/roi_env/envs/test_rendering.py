"""Rendering: what is drawn is what happened, frame by frame."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import HumanRendering, RenderCollection

from roi_env.envs import rendering
from roi_env.envs.rendering import Decision, Scene, render_ansi, render_rgb
from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams

ESCAPE = re.compile(r"\x1b\[\d+m")


def scene(*decisions: Decision, family: str = "heavy", num_tasks: int = 4, budget: int = 200) -> Scene:
    spec = exam_spec(family, num_tasks=num_tasks, budget=budget)
    return Scene(spec, tuple(draw_exams(spec, 0, [0]).groups[0].tolist()), decisions)


def colours(frame: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, np.unique(frame.reshape(-1, 3), axis=0).tolist()))


def area(frame: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of a colour between the axes (text is grey at its edges, like a skip)."""
    return int((frame[84:321, 70:701] == colour).all(2).sum())


def test_ansi_of_a_known_exam() -> None:
    """The decisions and their outcomes, read back from the text, are those of the exam."""
    spec = exam_spec("signal", budget=400)
    tokens, correct = draw_exams(spec, 11, [3]).outcomes()
    names = ["skip", *(tier.name for tier in spec.source.tiers)]
    groups = draw_exams(spec, 11, [3]).groups[0]
    env = ROIReasoningEnv("signal", budget=400, render_mode="ansi")
    env.reset(seed=11, options={"exam_ids": 3})
    left, score = 400, 0
    for n, action in enumerate([1, 0, 2, 3, 1, 2, 3, 3, 3, 3]):
        before = ESCAPE.sub("", env.render()).splitlines()
        assert before[0] == "signal: 10 tasks, 400 tokens"
        assert before[-1].split() == [str(n + 1), *spec.source.group_names[groups[n]].split(), "?"]
        _, _, terminated, _, info = env.step(action)
        paid = 0 if action == 0 else min(int(tokens[0, n, action - 1]), left)
        cut = action > 0 and int(tokens[0, n, action - 1]) > left
        right = action > 0 and not cut and bool(correct[0, n, action - 1])
        left, score = left - paid, score + right
        text = env.render()
        line = ESCAPE.sub("", text).splitlines()[n + 1]
        mark = "·" if action == 0 else "cut" if cut else "✓" if right else "✗"
        found = re.fullmatch(r" *(\d+)  (.*?) +(\w+) +(·|cut|✓|✗) +(\d+) tokens  (█*)(░*) +(\d+) left", line)
        assert found is not None
        assert found.group(1, 2, 3, 4) == (str(n + 1), spec.source.group_names[groups[n]], names[action], mark)
        assert (int(found[5]), int(found[8])) == (paid, left)
        assert len(found[6]) == round(30 * left / 400)
        assert len(found[6] + found[7]) == 30
        if terminated:
            assert ESCAPE.sub("", text).splitlines()[-1].split() == (
                f"exam over: score {info['score']:g}, {info['spent']} tokens spent".split()
            )
            assert (info["score"], info["spent"]) == (score, 400 - left)
            break
    assert terminated


def test_ansi_tells_tiers_apart_by_colour_and_name() -> None:
    lines = render_ansi(scene(*(Decision(a, 10, False, False) for a in range(4)))).splitlines()[1:5]
    used = [re.search(r"\x1b\[(\d+)m(\w+)", line) for line in lines]
    assert [m and m[2] for m in used] == ["skip", "low", "medium", "high"]
    assert len({m and m[1] for m in used}) == 4


def test_ansi_hides_what_is_ahead() -> None:
    """Two exams with one first task look alike until they differ."""
    spec = exam_spec("signal", num_tasks=3)
    first, other = Scene(spec, (7, 1, 2), ()), Scene(spec, (7, 5, 9), ())
    step = Decision(1, 5, True, False)
    assert render_ansi(first) == render_ansi(other)
    assert render_ansi(first.after(step)) != render_ansi(other.after(step))


def test_frame_shape_and_type_through_every_id() -> None:
    for name in ("ROIReasoning-v0", "ROIReasoning-Paper-v0", "ROIReasoning-Latent-v0"):
        env = gym.make(name, render_mode="rgb_array")
        env.reset(seed=0)
        frame = env.render()
        assert frame.shape == (360, 720, 3)
        assert frame.dtype == np.uint8
        assert frame.flags.writeable


def test_one_frame_a_decision() -> None:
    env = RenderCollection(gym.make("ROIReasoning-v0", render_mode="rgb_array"), pop_frames=False, reset_clean=False)
    env.reset(seed=2)
    steps, terminated = 0, False
    while not terminated:
        _, _, terminated, _, _ = env.step(steps % 3 + 1)
        steps += 1
    frames = env.render()
    assert len(frames) == steps + 1
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    np.testing.assert_array_equal(frames[-1], env.unwrapped.render())


def test_bars_have_their_tiers_colour_and_their_tokens_length() -> None:
    empty = render_rgb(scene())
    for action in range(4):
        colour = rendering._colour(action)
        assert colour in colours(empty)  # the legend
        assert area(empty, colour) == 0
        frame = render_rgb(scene(Decision(action, 100, True, False)))
        for other in range(4):
            assert (area(frame, rendering._colour(other)) > 0) == (other == action)
        longer = render_rgb(scene(Decision(action, 200, True, False)))
        assert area(longer, colour) / area(frame, colour) == pytest.approx(2, rel=0.05)
    several = render_rgb(scene(*(Decision(a, 20, False, False) for a in range(4))))
    assert {rendering._colour(a) for a in range(4)} <= colours(several[70:])


def test_the_trajectory_steps_down_from_left_to_right() -> None:
    frame = render_rgb(scene(Decision(1, 60, True, False), Decision(2, 100, False, False), Decision(3, 40, True, True)))
    places = [np.argwhere((frame[70:] == rendering._colour(a)).all(2)) for a in (1, 2, 3)]
    for left, right in itertools.pairwise(places):
        assert left[:, 1].max() < right[:, 1].min()
        assert left[:, 0].max() <= right[:, 0].min() + 1  # a bar starts where the one before ended


def test_right_wrong_and_cut_look_different() -> None:
    right, wrong, cut, skip = (
        render_rgb(scene(Decision(action, 50, correct, overspent)))
        for action, correct, overspent in ((2, True, False), (2, False, False), (2, False, True), (0, False, False))
    )
    assert area(right, rendering._RIGHT) > 0 == area(right, rendering._WRONG)
    assert area(wrong, rendering._WRONG) > 0 == area(wrong, rendering._RIGHT)
    assert area(cut, rendering._WRONG) > 0 == area(cut, rendering._RIGHT)
    assert area(skip, rendering._WRONG) == 0 == area(skip, rendering._RIGHT)
    assert (wrong[70:] != cut[70:]).any()


@pytest.mark.parametrize("before", [0, 1, 100, 190])
@pytest.mark.parametrize(("correct", "overspent"), [(True, False), (False, False), (False, True)])
def test_marks_stay_off_the_axis_labels(before: int, correct: bool, overspent: bool) -> None:
    """An attempt that takes the last tokens ends at the axis, whatever was spent before it."""
    first = Decision(1, before, True, False)
    frame = render_rgb(scene(first, Decision(2, 200 - before, correct, overspent)))
    colour = rendering._RIGHT if correct else rendering._WRONG
    bottom = rendering._HEIGHT - 40
    assert (frame[62:bottom] == colour).all(2).sum() > 20
    assert not (frame[bottom:] == colour).all(2).any()
    assert not (frame[:62] == colour).all(2).any(), "nor on the legend"


@pytest.mark.parametrize("num_tasks", [1, 26, 120])
def test_exams_of_any_length_fit(num_tasks: int) -> None:
    decisions = [Decision(n % 4, n % 2, n % 3 == 0, False) for n in range(num_tasks)]
    frame = render_rgb(scene(*decisions, num_tasks=num_tasks))
    assert (frame[:, -4:] == 255).all()  # nothing runs into the margin


def test_equal_exams_give_equal_frames() -> None:
    frames = []
    for _ in range(2):
        env = ROIReasoningEnv(render_mode="rgb_array")
        env.reset(seed=5)
        env.step(2)
        frames.append(env.render())
        assert env.render() is not frames[-1]
    np.testing.assert_array_equal(*frames)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def by_gymnasium() -> gym.Env:
    with pytest.warns(UserWarning, match="HumanRendering wrapper is being applied"):
        return gym.make("ROIReasoning-v0", render_mode="human", num_tasks=3, budget=0.6)


def by_hand() -> gym.Env:
    return HumanRendering(gym.make("ROIReasoning-v0", render_mode="rgb_array", num_tasks=3, budget=0.6))


@pytest.mark.usefixtures("screen")
@pytest.mark.parametrize("make", [by_gymnasium, by_hand])
def test_human_through_gymnasiums_wrapper(make: Callable[[], gym.Env]) -> None:
    """The window shows the frame of every decision."""
    import pygame

    env = make()
    assert isinstance(env, HumanRendering)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, _ = env.step(1)
        shown = pygame.surfarray.array3d(env.window).swapaxes(0, 1)
        np.testing.assert_array_equal(shown, env.unwrapped.render())
    env.close()


def test_dollars_are_shown_as_dollars() -> None:
    drawn = scene(Decision(0, 0, False, False), Decision(2, 60, True, False), budget=200)
    source = replace(drawn.spec.source, unit="micro-usd")
    drawn = replace(drawn, spec=replace(drawn.spec, source=source))
    shown = ESCAPE.sub("", render_ansi(drawn))
    assert "4 tasks, 0.0002000 USD" in shown
    assert "0.0000600 USD" in shown
    assert "0.0001400 USD left" in shown
    assert "micro" not in shown
    assert render_rgb(drawn).shape == (360, 720, 3)
