"""CleanRL's own `ppo.py`, unchanged, on the environment; then what it learned as an agent.

    pip install tyro tensorboard
    curl -O https://raw.githubusercontent.com/vwxyzjn/cleanrl/master/cleanrl/ppo.py
    python examples/cleanrl_ppo.py ppo.py --env-id roi_env:ROIReasoning-v0 --no-cuda
    roi compare --family signal --budget 0.3 --agent examples/cleanrl_ppo.py:Mine

`python ppo.py --env-id roi_env:ROIReasoning-v0` trains as well, but `ppo.py` keeps nothing. So this file runs it with
the arguments that follow its name and saves the weights of its `agent`. Every id of `roi_env.IDS` can be trained on.

`ppo.py` knows no masks: in training an attempt that does not fit overspends and ends the exam, which teaches it not to.
Its log of returns is for Gymnasium 0.29; on a newer one it trains and stays silent about them.
"""

from __future__ import annotations

import runpy
import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from agents.foreign import from_policy

FILE = Path("runs/cleanrl.pt")


@cache
def actor() -> nn.Module:
    """The policy network of `ppo.py`, made of the saved weights; read once."""
    weights = torch.load(FILE, weights_only=True)
    weights = {name.removeprefix("actor."): w for name, w in weights.items() if name.startswith("actor.")}
    (hidden, size), actions = weights["0.weight"].shape, len(weights["4.bias"])
    network = nn.Sequential(
        nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, actions)
    )
    network.load_state_dict(weights)
    return network


def policy(observations: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(D,) most probable legal actions for (D, size) observations."""
    with torch.no_grad():
        logits = actor()(torch.from_numpy(np.ascontiguousarray(observations))).numpy()
    return np.where(mask, logits, -np.inf).argmax(1)


Mine = from_policy(policy)

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/cleanrl_ppo.py PPO.PY --env-id roi_env:ROIReasoning-v0 [its other arguments]")
    sys.argv = sys.argv[1:]
    trained = runpy.run_path(sys.argv[0], run_name="__main__")["agent"]
    FILE.parent.mkdir(parents=True, exist_ok=True)
    torch.save(trained.state_dict(), FILE)
    print(f"saved {FILE}")
