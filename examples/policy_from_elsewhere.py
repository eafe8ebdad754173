"""A policy that was trained elsewhere becomes an agent. Here: SB3's own PPO, saved as a .zip.

    python examples/policy_from_elsewhere.py                                               # trains it for a few seconds
    roi compare --family signal --budget 0.3 --agent examples/policy_from_elsewhere.py:Mine

A CleanRL or TorchRL `state_dict` is the same five lines: build the network, load it, return its actions.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3 import PPO

from agents.foreign import from_policy

FILE = Path("runs/ppo.zip")


@cache
def model() -> PPO:
    """The saved policy; read once."""
    return PPO.load(FILE, device="cpu")


def policy(observations: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(D,) actions for (D, size) observations."""
    return np.asarray(model().predict(observations, deterministic=True)[0])


Mine = from_policy(policy, illegal="skip")

if __name__ == "__main__":
    env = gym.make("roi_env:ROIReasoning-v0", budget=0.3)
    PPO("MlpPolicy", env, seed=0, device="cpu").learn(20_000, progress_bar=True).save(FILE)
    print(f"saved {FILE}")
