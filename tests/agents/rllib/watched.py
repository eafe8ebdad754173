"""A runner that is watched while it takes exams. Every process of it imports this module, and no test with all that tests need."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import ray

from agents.rllib.exam_runner import ExamRunner
from agents.rllib.rollouts import Job, Rollout

PAUSE = 0.15
"""Seconds that a job takes at least: long enough to be struck in the middle."""


class WatchedRunner(ExamRunner):
    """Leaves a file for every job before it answers, and takes its time."""

    def sample(self, *, job: Job, weights: Any = None, **kwargs: Any) -> Rollout:
        rollout = super().sample(job=job, weights=weights)
        node = ray.get_runtime_context().get_node_id()
        name = f"{job.exam_ids[0]}.{job.members[0]}.{os.getpid()}.{node}.{uuid.uuid4().hex}"
        (Path(self.config.env_config["watch"]) / name).touch()
        time.sleep(PAUSE)
        return rollout
