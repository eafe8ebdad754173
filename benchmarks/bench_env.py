"""Environment stepping against Gymnasium's native CartPole, side by side in one process.

Claims: `make_vec("ROIReasoning-v0")` x4096 with copies and preview steps at least 2x as fast as native CartPole x4096
(table in L2), at least 1.3x with an 8 MB outcome table; one environment through `gym.make` at least 1.5x CartPole.
Jumanji's Knapsack (rollouts compiled as a whole, first legal action) and envpool's CartPole (one thread) run beside them
where they are installed. Peers run in turn, block by block, so that ratios hold in every speed phase of the machine. CPU
time of all threads, medians of blocks.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np

import roi_env
from roi_env.exams.config import exam_spec
from roi_env.sources.source import Source


def large_table(megabytes: float) -> Source:
    """The signal source with its outcomes repeated (in another order per copy) up to a size."""
    source = exam_spec("signal").source
    copies = int(megabytes * 2**20 / source.outcomes.nbytes)
    cells = source.outcomes.reshape(len(source.outcome_start), -1)
    rng = np.random.default_rng(0)
    outcomes = np.stack([rng.permuted(np.tile(cell, copies)) for cell in cells])
    count = np.full(len(cells), outcomes.shape[1], np.int32)
    start = (np.arange(len(cells)) * outcomes.shape[1]).astype(np.int32)
    return dataclasses.replace(source, outcomes=outcomes.ravel(), outcome_start=start, outcome_count=count)


def in_turn(runs: dict[str, Callable[[], int]], blocks: int) -> dict[str, float]:
    """Median seconds of CPU per step of every run; a run returns the steps that it took."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(blocks):
        for name, run in runs.items():
            begin = time.process_time()
            steps = run()
            seconds[name].append((time.process_time() - begin) / steps)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def vector_run(env: gym.vector.VectorEnv, calls: int) -> Callable[[], int]:
    """Step with actions drawn beforehand."""
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, env.single_action_space.n, (16, env.num_envs))

    def run() -> int:
        for call in range(calls):
            env.step(actions[call % 16])
        return calls * env.num_envs

    return run


def single_run(env: gym.Env, steps: int) -> Callable[[], int]:
    """Whole episodes, resets included."""
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, env.action_space.n, steps).tolist()

    def run() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return steps

    return run


def jumanji_run(num_envs: int, calls: int) -> Callable[[], int]:
    """Jumanji's Knapsack-v1: no Python between its steps."""
    import jax
    import jumanji
    from jumanji.wrappers import VmapAutoResetWrapper

    env = VmapAutoResetWrapper(jumanji.make("Knapsack-v1"))

    def step(carry: tuple, _: None) -> tuple:
        state, timestep = carry
        carry = env.step(state, jax.numpy.argmax(timestep.observation.action_mask, -1))
        return carry, carry[1].reward.sum()

    roll = jax.jit(lambda carry: jax.lax.scan(step, carry, None, calls))
    carry = jax.jit(env.reset)(jax.random.split(jax.random.key(0), num_envs))

    def run() -> int:
        nonlocal carry
        carry, _ = jax.block_until_ready(roll(carry))
        return calls * num_envs

    return run


def envpool_run(num_envs: int, calls: int) -> Callable[[], int]:
    """CartPole of envpool, one thread, actions drawn beforehand."""
    import envpool

    env = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=num_envs, num_threads=1, seed=0)
    env.reset()
    actions = np.random.default_rng(0).integers(0, 2, (16, num_envs)).astype(np.int32)

    def run() -> int:
        for call in range(calls):
            env.step(actions[call % 16])
        return calls * num_envs

    return run


PEERS = {"Jumanji Knapsack": jumanji_run, "envpool CartPole": envpool_run}


def installed_peers(num_envs: int) -> dict[str, Callable[[], int]]:
    """Runs of the peers that are installed."""
    runs = {}
    for name, make in PEERS.items():
        try:
            runs[name] = make(num_envs, 10)
        except ModuleNotFoundError as error:
            print(f"{name}: not installed ({error.name})")
    return runs


def native(name: str, num_envs: int, **kwargs: object) -> gym.vector.VectorEnv:
    """A native vector environment."""
    return gym.make_vec(name, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=4096)
    parser.add_argument("--blocks", type=int, default=21, help="blocks per environment; medians are taken over them")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a claim fails")
    arguments = parser.parse_args()
    n = arguments.num_envs
    peers = installed_peers(n)
    vector = in_turn(
        {
            "CartPole": vector_run(native("CartPole-v1", n), 10),
            "table in L2": vector_run(native("ROIReasoning-v0", n), 10),
            "8 MB table": vector_run(native("ROIReasoning-v0", n, family=large_table(8)), 10),
            "zero-copy": vector_run(native("ROIReasoning-v0", n, copy=False), 10),
            **peers,
        },
        arguments.blocks,
    )
    single = in_turn(
        {
            "CartPole": single_run(gym.make("CartPole-v1"), 4000),
            "ROIReasoning": single_run(gym.make("ROIReasoning-v0"), 4000),
        },
        arguments.blocks,
    )
    failed = False
    print(f"roi_env {roi_env.__version__}, gymnasium {gym.__version__}, numpy {np.__version__}")
    print(f"native CartPole x{n}: {vector['CartPole'] * 1e9:.1f} ns a step")
    for name, claim in (("table in L2", 2.0), ("8 MB table", 1.3), ("zero-copy", None)):
        ratio = vector["CartPole"] / vector[name]
        failed |= claim is not None and ratio < claim
        text = f" (claim {claim:g}x)" if claim else ""
        print(f"ROIReasoning x{n}, {name}: {vector[name] * 1e9:.1f} ns a step, {ratio:.2f}x CartPole{text}")
    for name in peers:
        print(f"{name} x{n}: {vector[name] * 1e9:.1f} ns a step, {vector['CartPole'] / vector[name]:.2f}x CartPole")
    ratio = single["CartPole"] / single["ROIReasoning"]
    failed |= ratio < 1.5
    print(
        f"one environment, whole episodes: {single['ROIReasoning'] * 1e6:.2f} us a step, CartPole "
        f"{single['CartPole'] * 1e6:.2f} us: {ratio:.2f}x (claim 1.5x)"
    )
    code = "import sys, time; t = time.perf_counter(); import roi_env; print(time.perf_counter() - t); " + (
        "sys.exit(bool({'torch', 'ray', 'stable_baselines3'} & set(sys.modules)))"
    )
    took = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(5)
    ]
    failed |= float(np.median(took)) >= 1
    print(f"import roi_env: {np.median(took):.2f} s, without torch, ray or SB3 (claim: under 1 s)")
    sys.exit(arguments.check and failed)


if __name__ == "__main__":
    main()
