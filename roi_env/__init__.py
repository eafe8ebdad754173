"""ROI-Reasoning: budget-aware reasoning as a Gymnasium environment.

Importing this package registers the environments; ``gym.make("roi_env:ROIReasoning-v0")`` does both at once.
"""

from __future__ import annotations

from gymnasium.envs.registration import register

import roi_env.compiling  # noqa: F401 - before all that is compiled
from roi_env.exams.config import OWN_DEFAULTS, ExamConfig, ExamSpec, exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.sources.build import Group, make_source
from roi_env.sources.source import Source
from roi_env.sources.synthetic import register_family

__version__ = "0.1.0"
__all__ = [
    "IDS",
    "ExamBatch",
    "ExamConfig",
    "ExamSpec",
    "Group",
    "Source",
    "draw_exams",
    "exam_spec",
    "make_source",
    "register_family",
]

IDS: dict[str, ExamConfig] = {
    "ROIReasoning-v0": ExamConfig(),
    "ROIReasoning-Known-v0": OWN_DEFAULTS["known"],
    "ROIReasoning-Heavy-v0": OWN_DEFAULTS["heavy"],
    "ROIReasoning-Cap-v0": OWN_DEFAULTS["cap"],
    "ROIReasoning-Latent-v0": OWN_DEFAULTS["latent"],
    "ROIReasoning-Recorded-v0": OWN_DEFAULTS["recorded"],
    "ROIReasoning-TinyLM-v0": OWN_DEFAULTS["tinylm"],
    "ROIReasoning-Math-v0": OWN_DEFAULTS["math"],
    "ROIReasoning-Paper-v0": OWN_DEFAULTS["paper"],
}
"""Registered ids and what they are set to; ``gym.make`` takes every field of it."""

for _id, _exam in IDS.items():
    # No max_episode_steps: exams end by themselves, and TimeLimit would add a truncation to their last step.
    register(
        _id,
        entry_point="roi_env.envs.single:ROIReasoningEnv",
        vector_entry_point="roi_env.envs.vector:ROIReasoningVectorEnv",
        kwargs=_exam.differing(),
    )

# Its arguments are questions, tiers, a solver and a grader: there is nothing to batch.
register("ROIReasoning-Live-v0", entry_point="roi_env.envs.live:ROIReasoningLiveEnv")
