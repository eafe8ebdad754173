"""A small language model made from nothing: tasks, worked solutions, tokenizer, pre-training."""
