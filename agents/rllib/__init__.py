"""Agents trained through RLlib: PPO and GRPO on batched exams."""
