"""Who can step through an exam: single, vector and live environments, wrappers, pictures."""
