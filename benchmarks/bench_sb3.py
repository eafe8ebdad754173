"""Stepping Stable-Baselines3's way: the adapter of the native vector environment against DummyVecEnv.

Claim: at 64 environments the adapter steps at least 10x as fast as `DummyVecEnv` of single environments. Both take the
same actions, with and without the masks that MaskablePPO asks for at every step. Peers run in turn, block by block. CPU
time, medians of blocks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import stable_baselines3
from bench_env import in_turn
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.sb3.vec_env import NativeVecEnv
from roi_env.envs.single import ROIReasoningEnv
from roi_env.envs.vector import ROIReasoningVectorEnv

CLAIM = 10.0


def stepping(env: VecEnv, calls: int, masks: bool) -> Callable[[], int]:
    """Step with actions drawn beforehand."""
    env.seed(0)
    env.reset()
    actions = np.random.default_rng(0).integers(0, env.action_space.n, (16, env.num_envs))

    def run() -> int:
        for call in range(calls):
            if masks:
                get_action_masks(env)
            env.step(actions[call % 16])
        return calls * env.num_envs

    return run


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=21, help="blocks per environment; medians are taken over them")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the claim fails")
    arguments = parser.parse_args()
    n = arguments.num_envs
    # Single environments as fast as they come: without gym.make's wrappers and without Monitor.
    adapter = NativeVecEnv(ROIReasoningVectorEnv(n, autoreset_mode="SAME_STEP"))
    dummy = DummyVecEnv([ROIReasoningEnv for _ in range(n)])
    seconds = in_turn(
        {
            "adapter": stepping(adapter, 200, masks=False),
            "DummyVecEnv": stepping(dummy, 20, masks=False),
            "adapter, masks": stepping(adapter, 200, masks=True),
            "DummyVecEnv, masks": stepping(dummy, 20, masks=True),
        },
        arguments.blocks,
    )
    print(f"stable-baselines3 {stable_baselines3.__version__}, {n} environments")
    failed = False
    for suffix, claim in (("", CLAIM), (", masks", None)):
        ratio = seconds[f"DummyVecEnv{suffix}"] / seconds[f"adapter{suffix}"]
        text = "" if claim is None else f" (claim {claim:g}x)"
        failed |= claim is not None and n == 64 and ratio < claim
        print(
            f"step{suffix}: adapter {seconds[f'adapter{suffix}'] * 1e6:.2f} us, DummyVecEnv "
            f"{seconds[f'DummyVecEnv{suffix}'] * 1e6:.2f} us an environment step: {ratio:.1f}x{text}"
        )
    sys.exit(arguments.check and failed)


if __name__ == "__main__":
    main()
