"""Meta-cognitive fine-tuning: labels from a model's own samples, training, and how well it knows itself."""
