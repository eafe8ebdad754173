"""Whoever takes the exam: importing this package registers the agents' names (not their modules)."""

from __future__ import annotations

import agents.planners  # noqa: F401 - registers
from agents.base import Agent, load_agent, make_agent, public_problem, register, save_agent, use_file
from roi_env.plugins import named_files as _named_files

# Registered here: importing the packages of learners needs extras.
register("sb3-ppo", "agents.sb3.algorithms:SB3PPO", "SB3's proximal policy optimisation")
register("sb3-maskable-ppo", "agents.sb3.algorithms:SB3MaskablePPO", "sb3-contrib's PPO, masked in training as well")
register("sb3-a2c", "agents.sb3.algorithms:SB3A2C", "SB3's advantage actor-critic")
register("sb3-dqn", "agents.sb3.algorithms:SB3DQN", "SB3's deep Q-learning, greedy over the legal actions")

_PPO, _GRPO = "agents.rllib.agent:RLlibPPO", "agents.rllib.agent:RLlibGRPO"
register("rllib-ppo", _PPO, "PPO (RLlib) on batched exams")
register("rllib-ppo-gru", _PPO, "PPO (RLlib) with a GRU that remembers the exam so far", memory=32)
register("rllib-grpo", _GRPO, "GRPO (RLlib): replicates of an exam compared with one another, by return-to-go")
register("rllib-grpo-gru", _GRPO, "GRPO (RLlib) with a GRU that remembers the exam so far", memory=32)

register(
    "llm", "agents.llm.decisions.agent:LMAgent", "a language model that reads the questions (parameter model=FOLDER)"
)
register(
    "predicted-levels",
    "agents.llm.decisions.predicted:PredictedLevels",
    "a planner (parameter planner=resolve) on a language model's predicted levels (model=FOLDER)",
)
register(
    "llm-ppo", "agents.llm.reinforcement:LMPPOAgent", "a language model trained by PPO (RLlib) on exams' questions"
)
register(
    "llm-grpo", "agents.llm.reinforcement:LMGRPOAgent", "a language model trained by GRPO (RLlib) on exams' questions"
)
register(
    "rarl",
    "agents.llm.reinforcement:RARLAgent",
    "a language model trained by token-level GRPO (RLlib) on one-pass exams",
)
_TAKER = "agents.llm.one_pass.exam_taker:LMExamTaker"
register("exam-taker", _TAKER, "a language model that takes the whole exam in one pass (parameter model=FOLDER)")
for _strategy in ("base", "plan-and-solve", "least-to-most"):
    _summary = "the same for a model that follows instructions: the prompt explains the form"
    register(f"exam-{_strategy}", _TAKER, _summary, strategy=_strategy)
# Models that come with the package, by name.
for _name, _model, _summary in (
    ("tinylm-base", "tinylm", "the small language model as it was pre-trained, its levels untaught"),
    ("tinylm-mcft", "tinylm-mcft", "the small language model, fine-tuned to announce levels (roi mcft)"),
    ("tinylm-grpo", "tinylm-grpo", "the same, trained by GRPO on exams (roi train grpo --policy llm)"),
):
    register(_name, "agents.llm.decisions.agent:LMAgent", _summary, model=_model, bits=4)

# What the process that started this one imported: its workers know the same agents.
for _file in _named_files():
    use_file(_file)

__all__ = ["Agent", "load_agent", "make_agent", "public_problem", "register", "save_agent", "use_file"]
