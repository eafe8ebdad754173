"""Whoever takes the exam: importing this package registers the agents' names (not their modules)."""

from __future__ import annotations

import agents.planners  # noqa: F401 - registers
