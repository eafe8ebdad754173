"""Stable-Baselines3 on the environment: the native vector environment as a `VecEnv`, masked actions.

python examples/train_sb3.py
"""

from __future__ import annotations

import gymnasium as gym
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy

from agents.sb3.vec_env import NativeVecEnv
from roi_env.envs.vector import ROIReasoningVectorEnv

if __name__ == "__main__":
    train = NativeVecEnv(ROIReasoningVectorEnv(16, autoreset_mode="SAME_STEP", family="signal", budget=0.3))
    model = MaskablePPO("MlpPolicy", train, n_steps=128, batch_size=256, seed=0, device="cpu")
    model.learn(60_000, progress_bar=True)
    exams = gym.make("roi_env:ROIReasoning-v0", budget=0.3)
    # No Monitor is needed: exams are whole.
    mean, deviation = evaluate_policy(model, exams, n_eval_episodes=100, warn=False)
    print(f"score {mean:.2f} +- {deviation:.2f} an exam")
