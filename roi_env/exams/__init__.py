"""What an exam is: its specification, random numbers, rules, rewards, observation, and what is known of tasks to come."""
