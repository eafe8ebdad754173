"""What agents are measured by: sampled episodes, reference values, regrets, intervals."""
