"""Stable-Baselines3: the native vector environment as an SB3 ``VecEnv``, and SB3's algorithms as agents.

* :mod:`agents.sb3.vec_env`: the adapter;
* :mod:`agents.sb3.algorithms`: PPO, A2C, DQN and MaskablePPO behind the agents' interface;
* :mod:`agents.sb3.training`: one training run: progress, checkpoints, random numbers.
"""

from __future__ import annotations

try:
    import sb3_contrib  # noqa: F401 - the check
    import stable_baselines3  # noqa: F401
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"agents of Stable-Baselines3 need the package {error.name!r}: pip install 'roi-reasoning[sb3]'",
        name=error.name,
    ) from error
