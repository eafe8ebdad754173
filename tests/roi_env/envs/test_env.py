"""The single environment: Gymnasium's and SB3's checkers, the rules, masks, and that nothing hidden leaks."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import itertools
import os
import pickle
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import roi_env
from roi_env.envs.single import ROIReasoningEnv
from roi_env.envs.vector import ROIReasoningVectorEnv
from roi_env.envs.wrappers import ActionMaskObservation, VectorActionMaskObservation
from roi_env.exams.config import ExamConfig, exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import tinylm_table

SYNTHETIC = [name for name in roi_env.IDS if "Recorded" not in name]
OPTIONS = [
    {"preview": False},
    {"beliefs": "none"},
    {"preview": False, "beliefs": "none"},
    {"feedback": "cost+correct"},
    {"reward": "rational"},
    {"reward": "refusal_bonus(0.1)"},
    {"reward": "overspend_penalty(1)"},
    {"reward": "cost_shaped(0.5)"},
    {"order": "easy_first"},
    {"order": "hard_first"},
    {"order": "given"},
    {"coupling": "common"},
    {"decision_cost": 1},
    {"enforcement": "tier_caps"},
    {"tiers": ["low", "high"]},
    {"num_tasks": 3, "budget": "tight"},
    {"num_tasks": 50, "budget": 0.6},
    {"budget": 11},
]


def checkers(env: gym.Env) -> None:
    """Gymnasium's checker, and SB3's where it is installed (not beside Gymnasium's newest release)."""
    check_env(env.unwrapped)
    if importlib.util.find_spec("stable_baselines3"):
        sb3 = importlib.import_module("stable_baselines3.common.env_checker")
        sb3.check_env(env.unwrapped)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_id_passes_both_checkers(name: str) -> None:
    checkers(gym.make(name, render_mode="rgb_array"))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_passes_both_checkers(options: dict) -> None:
    checkers(gym.make("ROIReasoning-v0", **options))


def test_rollout_stays_in_its_spaces_for_combinations_of_options() -> None:
    for preview, beliefs, feedback, order in itertools.product(
        (True, False), ("published", "none"), ("cost", "cost+correct"), ("random", "easy_first", "hard_first", "given")
    ):
        env = gym.make("ROIReasoning-Heavy-v0", preview=preview, beliefs=beliefs, feedback=feedback, order=order)
        observation, info = env.reset(seed=1)
        for action in np.random.default_rng(0).integers(0, 4, 60):
            assert env.observation_space.contains(observation)
            assert info["action_mask"].dtype == np.int8
            assert info["action_mask"][0] == 1
            observation, reward, terminated, truncated, info = env.step(action)
            assert type(reward) is float
            assert truncated is False
            if terminated:
                observation, info = env.reset()


def play(env: gym.Env, actions: list[int]) -> list:
    trace = []
    for action in actions:
        observation, reward, terminated, _, info = env.step(action)
        trace.append((observation.tobytes(), reward, terminated, info["tokens"], info["correct"]))
        if terminated:
            break
    return trace


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    exam_id=st.integers(0, 2**40),
    actions=st.lists(st.integers(0, 3), min_size=10, max_size=10),
    budget=st.integers(10, 700),
    decision_cost=st.integers(0, 3),
)
def test_the_rules_replayed_by_hand(
    seed: int, exam_id: int, actions: list[int], budget: int, decision_cost: int
) -> None:
    spec = exam_spec("heavy", budget=budget, decision_cost=decision_cost)
    env = ROIReasoningEnv("heavy", budget=budget, decision_cost=decision_cost)
    env.reset(seed=seed, options={"exam_ids": exam_id})
    batch = draw_exams(spec, seed, [exam_id])
    tokens, correct = batch.outcomes()
    remaining, score = budget, 0.0
    for n, action in enumerate(actions):
        cost = decision_cost + (int(tokens[0, n, action - 1]) if action else 0)
        fits = cost <= remaining
        gain = float(batch.weights[0, n]) if action and fits and correct[0, n, action - 1] else 0.0
        paid = cost if fits else remaining
        _, reward, terminated, truncated, info = env.step(action)
        remaining -= paid
        score += gain
        assert (reward, info["tokens"], info["overspent"]) == (gain, paid, not fits)
        assert terminated == (n == 9 or remaining == 0)
        assert not truncated
        if terminated:
            assert (info["score"], info["spent"]) == (score, budget - remaining)
            with pytest.raises(gym.error.ResetNeeded):
                env.step(0)
            break


def test_unaffordable_and_masked_actions_overspend_without_an_error() -> None:
    with pytest.warns(UserWarning, match="fraction was meant"):
        env = gym.make("ROIReasoning-v0", budget=1)
    _, info = env.reset(seed=3)
    assert info["action_mask"][3] == 0
    _, reward, terminated, _, info = env.step(3)
    assert (reward, terminated, info["overspent"], info["tokens"]) == (0.0, True, True, 1)


def test_seeds_exam_ids_and_replicates_name_exams() -> None:
    env = gym.make("ROIReasoning-v0").unwrapped
    env.reset(seed=7)
    env.reset()
    third, _ = env.reset()
    again, _ = env.reset(seed=7, options={"exam_ids": 2})
    assert third.tobytes() == again.tobytes()
    first = play(env, [2] * 10)
    env.reset(options={"exam_ids": 2, "replicates": 0})
    assert play(env, [2] * 10) == first
    other, _ = env.reset(options={"exam_ids": 2, "replicates": 1})
    assert other.tobytes() == again.tobytes()  # the same tasks
    assert play(env, [2] * 10) != first  # other outcomes
    following, _ = env.reset()
    assert following.tobytes() == env.reset(options={"exam_ids": 3, "replicates": 1})[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "budget must be an integer >= 1"),
        ({"budget": 0.0}, "fraction"),
        ({"budget": np.float32(0)}, "fraction"),
        ({"budget": np.bool_(True)}, "budget"),
        ({"budget": None}, "budget"),
        ({"budget": [0.3]}, "budget"),
        ({"budget": "30%"}, r"0\.3"),
        ({"budget": "²"}, "neither"),
        ({"budget": "nan"}, "fraction"),
        ({"budget": "512.0"}, "pass an int for tokens"),
        ({"budget": 2**31}, "below"),
        ({"budget": -0.5}, "fraction"),
        ({"budget": float("nan")}, "fraction"),
        ({"budget": 300.0}, "pass an int for tokens"),
        ({"budget": True}, "budget"),
        ({"budget": "plenty"}, "tight"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"order": "sideways"}, "order"),
        ({"beliefs": "some"}, "beliefs"),
        ({"feedback": "all"}, "feedback"),
        ({"reward": "glory"}, "reward"),
        ({"reward": "cost_shaped"}, "needs a coefficient"),
        ({"reward": "score(2)"}, "takes none"),
        ({"reward": "cost_shaped(x)"}, "cost_shaped"),
        ({"tiers": ["low", "turbo"]}, "turbo"),
        ({"coupling": "loose"}, "coupling"),
        ({"enforcement": "police"}, "enforcement"),
        ({"decision_cost": -1}, "decision_cost"),
        (
            {"family": "mystery"},
            "known.*signal.*heavy.*cap.*latent.*paper-synthetic.*tinylm.*math.*paper.*recorded.*mystery",
        ),
        ({"family": "recorded"}, "table"),
        ({"menu": "gpt"}, "table"),
        ({"preview": "yes"}, "preview"),
        ({"render_mode": "hologram"}, "render_mode"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ROIReasoningEnv(**arguments)


BAD_NUMBERS = [
    -1,
    0.5,
    1.0,
    True,
    "1",
    None,
    float("nan"),
    2**62,
    2**63,
    2**64,
    2**70,
    np.uint64(2**63),
    [True],
    [1, 2, 3],
]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0, "options": {"exam_ids": -3}}, "exam_ids"),
        *(({"seed": 0, "options": {name: n}}, name) for n in BAD_NUMBERS for name in ("exam_ids", "replicates")),
        *(({"seed": 0, "options": options}, "options") for options in ({"exam": 1}, {1: 2}, "exam_ids", 5, [3])),
    ],
)
def test_bad_resets_are_named(call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ROIReasoningEnv().reset(**call)
    with pytest.raises(ValueError, match=message):  # the vector environment says the same
        ROIReasoningVectorEnv(num_envs=2).reset(**call)


def test_integers_of_all_kinds_are_seeds() -> None:
    seeds = (2**64 - 1, np.uint64(2**64 - 1))
    assert len({ROIReasoningEnv().reset(seed=seed)[0].tobytes() for seed in seeds}) == 1  # type: ignore[arg-type]
    assert len({ROIReasoningVectorEnv().reset(seed=seed)[0].tobytes() for seed in seeds}) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("reward", value) for value in (None, 1, {"name": "score", "coefficient": 0.0}, "praise")),
        *(("num_tasks", value) for value in (0, 2.0, "3", True)),
        *(("decision_cost", value) for value in (-1, 0.5, "1")),
        ("order", "backwards"),
        ("budget", 0),
    ],
)
def test_a_changed_specification_is_checked_like_a_new_one(name: str, value: Any) -> None:
    for make in (ROIReasoningEnv, ROIReasoningVectorEnv, exam_spec().replace):
        with pytest.raises(ValueError, match=name):
            make(**{name: value})
    assert exam_spec().replace(reward="cost_shaped(0.5)") == exam_spec(reward="cost_shaped(0.5)")


@pytest.mark.parametrize(("name", "value"), [("table", 5), ("table", ["a.csv"]), ("tiers", 3), ("tiers", {"low"})])
def test_arguments_of_another_type_are_named(name: str, value: Any) -> None:
    for make in (ROIReasoningEnv, ROIReasoningVectorEnv):
        with pytest.raises(ValueError, match=name):
            make(**{name: value})


def test_the_largest_exam_is_an_exam() -> None:
    single, envs = ROIReasoningEnv(num_tasks=2), ROIReasoningVectorEnv(num_envs=1, num_tasks=2)
    for n in (2**62 - 1, np.int64(2**62 - 1), np.uint64(7), [5], np.array(6)):
        single.reset(seed=2**64 - 1)
        envs.reset(seed=2**64 - 1)
        first, _ = single.reset(options={"exam_ids": n})
        assert first.tobytes() == envs.reset(options={"exam_ids": n})[0][0].tobytes()
        for _ in range(2):
            single.step(0)
            envs.step([0])
        # The next one follows, in both.
        assert single.reset()[0].tobytes() == envs.step([0])[0][0].tobytes()


@pytest.mark.parametrize(
    "action",
    [
        *(1.0, 1.7, np.float64(1), "1", b"1", None, float("nan"), True, np.bool_(True), 1 + 0j, [1], (1,), {1}, -1, 4),
        *(2**70, np.array([1]), np.array(1.0), np.array(True), np.array("1"), np.uint64(2**64 - 1), np.int64(-1)),
    ],
    ids=repr,
)
def test_what_is_no_action_is_refused_and_changes_nothing(action: Any) -> None:
    env, twin = ROIReasoningEnv(), ROIReasoningEnv()
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must .*0\.\.3, got"):
        env.step(action)
    assert env.step(2)[0].tobytes() == twin.step(2)[0].tobytes()


def test_integers_of_all_kinds_are_actions() -> None:
    kinds = (int, np.int64, np.int8, np.uint8, np.uint64, np.array)
    envs = [ROIReasoningEnv() for _ in kinds]
    for env in envs:
        env.reset(seed=0)
    assert len({env.step(kind(2))[0].tobytes() for env, kind in zip(envs, kinds, strict=True)}) == 1
    with pytest.raises(gym.error.ResetNeeded):
        ROIReasoningEnv().step(0)


def test_few_tokens_are_probably_a_fraction() -> None:
    for budget, num_tasks in ((1, 10), ("1", 10), (np.int64(1), 10), (np.array(1), 10), (1, 1), (2, 10), (9, 10)):
        with pytest.warns(UserWarning, match=r"if a fraction was meant, write \d\.0") as told:
            env = ROIReasoningEnv(budget=budget, num_tasks=num_tasks)
        assert len(told) == 1
        assert env.exam_spec.budget == int(budget)
        with pytest.warns(UserWarning, match="fraction was meant"):
            ROIReasoningVectorEnv(budget=budget, num_tasks=num_tasks)
    # No warning, which would be an error here: a budget of some tokens where tasks cost as many.
    assert exam_spec("known", budget=9, tiers="low").budget == 9
    # What reads as an integer counts tokens.
    assert [exam_spec(budget=text).budget for text in ("+512", "5_12", "0512")] == [512] * 3
    fractions = {exam_spec(budget=budget).budget for budget in ("tight", "0.15", " .15 ", 0.15, np.float64(0.15))}
    assert len(fractions) == 1
    assert [exam_spec(budget=b).budget for b in (10, "512", np.int32(512), np.array(512))] == [10, 512, 512, 512]
    whole = exam_spec(budget=1.0)
    assert exam_spec(budget="1.0").budget == exam_spec(budget=np.float32(1)).budget == whole.budget == 1000
    assert whole.replace(budget=0.15).budget in fractions
    with pytest.raises(ValueError, match="budget"):
        whole.replace(budget=-3)


def test_environments_are_made_again_from_their_specification() -> None:
    for made in (
        gym.make("ROIReasoning-Heavy-v0", num_tasks=4),
        ActionMaskObservation(gym.make("ROIReasoning-v0", num_tasks=4)),
        gym.wrappers.RecordEpisodeStatistics(ActionMaskObservation(gym.make("ROIReasoning-v0", budget="tight"))),
    ):
        spec = gym.envs.registration.EnvSpec.from_json(made.spec.to_json())
        for again in (gym.make(made.spec), gym.make(spec), pickle.loads(pickle.dumps(made))):
            assert str(again) == str(made)
            first, second = made.reset(seed=3)[0], again.reset(seed=3)[0]
            assert gym.utils.env_checker.data_equivalence(first, second)
    envs = gym.make_vec("ROIReasoning-v0", num_envs=2, num_tasks=4, autoreset_mode="SAME_STEP")
    for outer in (envs, VectorActionMaskObservation(envs)):
        spec = gym.envs.registration.EnvSpec.from_json(outer.spec.to_json())
        for again in (gym.make_vec(outer.spec), gym.make_vec(spec)):
            assert again.reset(seed=1)[0].tobytes() == envs.reset(seed=1)[0].tobytes()
            assert again.metadata == envs.metadata
    # As Gymnasium's own wrappers do, so that code that makes them again can.
    assert VectorActionMaskObservation(envs)._saved_kwargs == {}


def test_what_is_missing_is_named() -> None:
    for make in (gym.make, gym.make_vec):
        with pytest.raises(gym.error.MissingArgument, match="table"):
            make("ROIReasoning-Recorded-v0")
        with pytest.raises(gym.error.MissingArgument, match=r"questions.*tiers.*solver"):
            make("ROIReasoning-Live-v0", **({"vectorization_mode": "sync"} if make is gym.make_vec else {}))
        with pytest.raises(gym.error.MissingArgument, match=r"menu.*table"):
            make("ROIReasoning-v0", menu="gpt")
    rows = tinylm_table().rows
    other = rows.set_column(rows.column_names.index("menu"), "menu", pa.array(["other"] * len(rows)))
    with pytest.raises(gym.error.MissingArgument, match=r"menu= one of \['tinylm', 'other'\]"):
        gym.make(
            "ROIReasoning-Recorded-v0", table=OutcomeTable.from_arrow(pa.concat_tables([rows, other.cast(rows.schema)]))
        )
    with pytest.raises(gym.error.MissingArgument, match=r"needs solver:"):
        gym.make("ROIReasoning-Live-v0", questions=[], tiers=[])


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize("kind", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
def test_wrappers_of_gymnasium_around_and_in_its_vector_environments(kind: Any, mode: str) -> None:
    def make() -> gym.Env:
        env: Any = gym.make("ROIReasoning-v0", num_tasks=3, render_mode="rgb_array")
        for wrapper, arguments in (
            (gym.wrappers.RecordEpisodeStatistics, ()),
            (gym.wrappers.NormalizeReward, ()),
            (gym.wrappers.TransformReward, (float,)),
            (gym.wrappers.FlattenObservation, ()),
            (gym.wrappers.NormalizeObservation, ()),
            (gym.wrappers.TimeLimit, (2,)),
            (gym.wrappers.RenderCollection, ()),
        ):
            env = wrapper(env, *arguments)
        return env

    envs = kind([make, make], autoreset_mode=gym.vector.AutoresetMode[mode])
    envs.reset(seed=0)
    ended = 0
    for _ in range(6):
        _, _, terminated, truncated, infos = envs.step(np.array([0, 0]))
        ended += int((terminated | truncated).sum())
        assert infos["_action_mask"].all()
    envs.close()
    assert ended >= 4


def test_blind_mode_hides_later_tasks_and_preview_shows_them() -> None:
    shown = gym.make("ROIReasoning-v0").unwrapped
    blind = gym.make("ROIReasoning-v0", preview=False).unwrapped
    first, _ = shown.reset(seed=4)
    hidden, _ = blind.reset(seed=4)
    tasks = first[shown.observation_layout["tasks"]]
    assert len(tasks) == 10
    for n in range(10):
        assert hidden[blind.observation_layout["tasks"]] == tasks[n]
        if n < 9:
            hidden = blind.step(0)[0]


def test_masks_agree_with_the_published_minimum() -> None:
    env = ROIReasoningEnv("signal", budget=40)
    observation, info = env.reset(seed=2)
    spec = env.exam_spec
    group = draw_exams(spec, 2, [0]).groups[0, 0]
    expected = [True, *(spec.source.beliefs.min_cost[group] <= 40)]
    assert info["action_mask"].tolist() == expected == env.action_masks().tolist()
    unknown = ROIReasoningEnv("signal", budget=11, beliefs="none")
    assert unknown.reset(seed=2)[1]["action_mask"].tolist() == [1, 1, 1, 1]
    assert env.action_space.sample(info["action_mask"]) in range(4)
    assert observation.dtype == np.float32


def test_observation_dictionary_for_rllib() -> None:
    env = ActionMaskObservation(gym.make("ROIReasoning-v0"))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert set(observation) == {"observations", "action_mask"}
    assert env.observation_space.contains(env.step(1)[0])


def test_environments_pickle_and_copy_mid_exam() -> None:
    env = ROIReasoningEnv(feedback="cost+correct")
    env.reset(seed=11)
    env.step(1)
    twin, clone = pickle.loads(pickle.dumps(env)), copy.deepcopy(env)
    expected = play(env, [1, 2, 3, 1, 2, 3, 1, 2, 3])
    assert play(twin, [1, 2, 3, 1, 2, 3, 1, 2, 3]) == expected == play(clone, [1, 2, 3, 1, 2, 3, 1, 2, 3])


def test_observations_are_not_shared_between_steps() -> None:
    env = ROIReasoningEnv()
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second = env.step(1)[0]
    assert first.tobytes() == kept.tobytes()
    second[:] = -1.0
    assert env.step(1)[0].min() >= 0


def test_another_process_draws_the_same_bytes() -> None:
    code = (
        "import gymnasium as gym; env = gym.make('roi_env:ROIReasoning-v0'); o, _ = env.reset(seed=9);"
        "print(o.tobytes().hex(), *(env.step(2)[0].tobytes().hex() for _ in range(2)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    env = gym.make("ROIReasoning-v0")
    observation, _ = env.reset(seed=9)
    assert other.stdout.split() == [observation.tobytes().hex(), *(env.step(2)[0].tobytes().hex() for _ in range(2))]


def test_import_is_light() -> None:
    code = "import sys, roi_env; print(sorted({'torch', 'ray', 'stable_baselines3', 'pyarrow', 'pandas', 'matplotlib'} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert out.stdout.strip() == "[]"


def test_shaped_rewards_report_the_score_at_the_end() -> None:
    env = ROIReasoningEnv(reward="cost_shaped(1)")
    env.reset(seed=1)
    total, terminated = 0.0, False
    while not terminated:
        _, reward, terminated, _, info = env.step(2)
        total += reward
    assert total == pytest.approx(info["score"] - info["spent"] / env.exam_spec.budget)


def test_tier_caps_cut_attempts() -> None:
    spec = exam_spec("heavy", enforcement="tier_caps")
    tokens, correct = draw_exams(spec, 0, range(500)).outcomes()
    free, right = draw_exams(exam_spec("heavy"), 0, range(500)).outcomes()
    caps = np.array([tier.cap for tier in spec.source.tiers])
    assert (tokens == np.minimum(free, caps)).all()
    assert (correct == (right & (free <= caps))).all()
    assert dataclasses.replace(spec).source.published.cost.max() <= caps.max()


def test_arguments_are_named_with_the_defaults_that_hold() -> None:
    of_env = inspect.signature(ROIReasoningEnv).parameters
    assert all(p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) for p in of_env.values())
    of_exams = inspect.signature(ExamConfig).parameters
    assert list(of_exams) == [name for name in of_env if name != "render_mode"]
    assert all(of_env[name].default == of_exams[name].default for name in of_exams)
    spelled_out = ROIReasoningEnv(**{name: p.default for name, p in of_env.items()})
    assert spelled_out.exam_spec == exam_spec()
    assert ROIReasoningEnv("tinylm", num_tasks=3).exam_spec.decision_cost == tinylm_table().decision_cost == 1
    with pytest.raises(TypeError, match="budgets"):
        ROIReasoningEnv(budgets=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "argument",
    [{"budget": 50}, {"order": "given"}, {"decision_cost": 0}, {"table": tinylm_table()}, {"preview": False}],
)
def test_a_complete_specification_is_not_changed(argument: dict[str, Any]) -> None:
    spec = exam_spec("heavy", budget=77)
    assert ROIReasoningEnv(spec).exam_spec == spec
    for make in (ROIReasoningEnv, ROIReasoningVectorEnv):
        with pytest.raises(ValueError, match=f"complete.*{next(iter(argument))}"):
            make(family=spec, **argument)


def test_exams_are_the_same_however_many_are_drawn_at_a_time() -> None:
    """Exams that follow each other are drawn in growing blocks, exams that are named one by one."""
    env, named = (ROIReasoningEnv("heavy", num_tasks=3) for _ in range(2))
    env.reset(seed=3)
    for exam_id in range(1, 600):
        first, again = env.reset()[0], named.reset(seed=3, options={"exam_ids": exam_id})[0]
        assert first.tobytes() == again.tobytes()
        assert play(env, [3, 2, 1]) == play(named, [3, 2, 1])
