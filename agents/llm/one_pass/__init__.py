"""A language model that writes a whole exam in one pass."""
