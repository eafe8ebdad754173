"""ROI-Reasoning: budget-aware reasoning as a Gymnasium environment.

Importing this package registers the environments; ``gym.make("roi_env:ROIReasoning-v0")`` does both at once.
"""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register

__version__ = "0.1.0"

VARIANTS: dict[str, dict[str, Any]] = {
    "ROIReasoning-v0": {},
    "ROIReasoning-Known-v0": {"source": "known"},
    "ROIReasoning-Heavy-v0": {"source": "heavy"},
    "ROIReasoning-Cap-v0": {"source": "cap"},
    "ROIReasoning-Latent-v0": {"source": "latent", "feedback": "cost+correct"},
    "ROIReasoning-Recorded-v0": {"source": "recorded"},
    "ROIReasoning-TinyLM-v0": {"source": "tinylm", "num_tasks": 8, "group_by": "kind"},
    "ROIReasoning-Paper-v0": {"source": "paper", "num_tasks": 3, "budget": 1024, "order": "easy_first"},
}
"""Registered ids and the arguments that set them apart."""

for _id, _kwargs in VARIANTS.items():
    # No max_episode_steps: exams end by themselves, and TimeLimit would add a truncation to their last step.
    register(
        _id,
        entry_point="roi_env.envs.single:ROIReasoningEnv",
        vector_entry_point="roi_env.envs.vector:ROIReasoningVectorEnv",
        kwargs=_kwargs,
    )

# Its arguments are questions, tiers, a solver and a grader: there is nothing to batch.
register("ROIReasoning-Live-v0", entry_point="roi_env.envs.live:ROIReasoningLiveEnv")
