"""Nothing hidden leaks: outcomes that are not realised change nothing that an agent sees before the end of an exam."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roi_env.envs.single import ROIReasoningEnv
from roi_env.envs.vector import ROIReasoningVectorEnv
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import draw_exams

WIDTH, STEPS = 2, 20
EXAMS, SEED = WIDTH * STEPS, 5  # more than a vector env of this WIDTH can begin in as many steps
Plan = npt.NDArray[np.int64]
"""(EXAMS, N) actions by exam id and position."""
Trace = dict[int, list[bytes]]
"""What is seen of each exam, decision by decision, up to the one that ends it."""


def with_outcomes(spec: ExamSpec, outcomes: npt.NDArray[np.uint32]) -> ExamSpec:
    """The same published laws and beliefs over other outcomes."""
    return dataclasses.replace(spec, source=dataclasses.replace(spec.source, outcomes=outcomes))


def perturbed(spec: ExamSpec, plan: Plan, noise: int) -> ExamSpec:
    """Every outcome is another, but for those that the plan realises."""
    numbered = with_outcomes(spec, np.arange(len(spec.source.outcomes), dtype=np.uint32))
    index = draw_exams(numbered, SEED, np.arange(EXAMS)).packed_outcomes().astype(np.int64)
    tried = plan > 0
    realised = np.take_along_axis(index, np.maximum(plan - 1, 0)[:, :, None], 2)[:, :, 0][tried]
    outcomes = spec.source.outcomes.copy()
    other = np.setdiff1d(np.arange(len(outcomes)), realised)
    rng = np.random.default_rng(noise)
    # Other tokens and the opposite correctness, so that every outcome differs.
    outcomes[other] = rng.integers(1, 2000, len(other)).astype(np.uint32) << 1 | (outcomes[other] & 1 ^ 1)
    return with_outcomes(spec, outcomes)


def see_single(spec: ExamSpec, plan: Plan) -> Trace:
    env = ROIReasoningEnv(spec, render_mode="ansi")
    trace: Trace = {}
    for exam in range(6):
        observation, info = env.reset(seed=SEED, options={"exam_ids": exam})
        trace[exam] = [seen(observation, env.action_masks(), info), env.render().encode()]
        for action in plan[exam]:
            observation, _, terminated, _, info = env.step(action)
            if terminated:
                break
            trace[exam] += [seen(observation, env.action_masks(), info), env.render().encode()]
    return trace


def seen(observation: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], info: dict[str, Any]) -> bytes:
    parts = [observation.tobytes(), mask.tobytes()]
    return b"|".join(parts + [f"{name}={np.asarray(info[name]).tobytes()!r}".encode() for name in sorted(info)])


def see_vector(mode: str, copy: bool) -> Callable[[ExamSpec, Plan], Trace]:
    def see(spec: ExamSpec, plan: Plan) -> Trace:
        envs = ROIReasoningVectorEnv(num_envs=WIDTH, family=spec, autoreset_mode=mode, copy=copy)
        observations, infos = envs.reset(seed=SEED)
        exam, position, starting = np.arange(WIDTH), np.zeros(WIDTH, np.int64), np.zeros(WIDTH, bool)
        trace: defaultdict[int, list[bytes]] = defaultdict(list)

        def note(i: int) -> None:
            """Everything in the infos that belongs to environment i while its exam is under way."""
            own = {
                name: value[i]
                for name, value in infos.items()
                if isinstance(value, np.ndarray) and name not in ("final_obs", "_final_obs")
            }
            trace[int(exam[i])].append(seen(observations[i], envs.action_masks()[i], own))

        for i in range(WIDTH):
            note(i)
        for _ in range(STEPS):
            actions = plan[exam, position]
            observations, _, terminated, _, infos = envs.step(actions)
            for i in range(WIDTH):
                if starting[i]:  # NEXT_STEP: this step only began the next exam
                    starting[i] = False
                    note(i)
                elif terminated[i]:
                    exam[i] += WIDTH
                    position[i] = 0
                    starting[i] = mode == "NEXT_STEP"
                    if mode == "SAME_STEP":
                        # The infos are of the exam that ended; of the next one only its start is seen.
                        mask = envs.action_masks()[i]
                        trace[int(exam[i])].append(
                            seen(observations[i], mask, {"action_mask": infos["action_mask"][i]})
                        )
                else:
                    position[i] += 1
                    note(i)
        return trace

    return see


@pytest.mark.parametrize(
    "see",
    [
        pytest.param(see_single, id="single"),
        # Every combination of options compiles a kernel of its own.
        pytest.param(see_vector("NEXT_STEP", True), id="vector next-step", marks=pytest.mark.slow),
        pytest.param(see_vector("SAME_STEP", True), id="vector same-step", marks=pytest.mark.slow),
        pytest.param(see_vector("NEXT_STEP", False), id="vector without copies", marks=pytest.mark.slow),
    ],
)
@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(["signal", "latent", "cap", "heavy", "paper"]),
    seed=st.integers(0, 2**32 - 1),
    budget=st.sampled_from([40, 300, 3000]),
    options=st.fixed_dictionaries(
        {
            "preview": st.booleans(),
            "beliefs": st.sampled_from(["published", "none"]),
            "feedback": st.sampled_from(["cost", "cost+correct"]),
            "reward": st.sampled_from(["score", "rational", "refusal_bonus(0.5)", "cost_shaped(1)"]),
            "order": st.sampled_from(["random", "easy_first", "hard_first"]),
            "coupling": st.sampled_from(["independent", "common"]),
            "decision_cost": st.integers(0, 2),
        }
    ),
)
def test_unrealised_outcomes_are_not_seen(
    see: Callable[[ExamSpec, Plan], Trace], family: str, seed: int, budget: int, options: dict[str, Any]
) -> None:
    spec = exam_spec(family, num_tasks=6, budget=budget, **options)
    plan = np.random.default_rng(seed).integers(0, spec.num_tiers + 1, (EXAMS, 6))
    expected = see(spec, plan)
    assert all(expected.values())
    assert see(perturbed(spec, plan, seed), plan) == expected


def test_the_perturbation_changes_what_is_not_realised() -> None:
    """The property above can fail: another plan sees the difference, in both environments."""
    spec = exam_spec("signal", num_tasks=6, budget=3000, feedback="cost+correct")
    plan = np.ones((EXAMS, 6), np.int64)
    other = perturbed(spec, plan, 0)
    for see in (see_single, see_vector("NEXT_STEP", True), see_vector("SAME_STEP", True)):
        assert see(other, plan) == see(spec, plan)
        assert see(other, plan + 1) != see(spec, plan + 1)


def test_the_environments_of_gymnasium_are_these() -> None:
    assert type(gym.make("roi_env:ROIReasoning-v0").unwrapped) is ROIReasoningEnv
    vector = gym.make_vec("roi_env:ROIReasoning-v0", num_envs=1, vectorization_mode="vector_entry_point")
    assert type(vector.unwrapped) is ROIReasoningVectorEnv
