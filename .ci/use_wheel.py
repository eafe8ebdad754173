"""Uses the installed packages as somebody does who never saw the repository: `make test-wheel`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym

import roi_env

PACKAGES = Path(roi_env.__file__).parents[1]
RUN = Path("runs/wheel")


def main(listing: Path) -> None:
    """Check that every file of the packages came along, take exams, compare packaged agents."""
    assert "site-packages" in PACKAGES.parts, f"not the installed package: {PACKAGES}"
    missing = [name for name in listing.read_text().split() if not (PACKAGES / name).exists()]
    assert not missing, f"not in the wheel: {missing}"

    for name in sorted(roi_env.IDS.keys() - {"ROIReasoning-Recorded-v0"}):  # that one needs a table of one's own
        env = gym.make(name)
        env.reset(seed=0)
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(0)
        assert info["score"] == 0, "who skips all tasks has no point"
        envs = gym.make_vec(name, num_envs=4, vectorization_mode="vector_entry_point")
        envs.reset(seed=0)
        envs.step(envs.action_space.sample() * 0)

    # A packaged trained agent of either library, and the language model on the packaged recording.
    roi = [str(Path(sys.executable).with_name("roi")), "compare", "--workers", "1", "training_seeds=[0]"]
    signal = ["--family", "signal", "--budget", "0.3", "--agent", "sb3-ppo", "--agent", "rllib-grpo", "exams=5"]
    tinylm = ["--family", "tinylm", "--budget", "0.3", "--agent", "tinylm-grpo", "exams=2"]
    for name, arguments in (("signal", signal), ("tinylm", tinylm)):
        subprocess.run(
            [*roi, *arguments, "--out", str(RUN / name)], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        assert (RUN / name / "report.html").stat().st_size > 100_000
        print(json.dumps(sorted(path.name for path in (RUN / name).iterdir())))
    print(f"Python {sys.version.split()[0]}: {len(listing.read_text().split())} files, every id, both comparisons")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
