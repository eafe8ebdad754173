"""Language models as agents: tasks, prompts, a small model made from nothing."""
