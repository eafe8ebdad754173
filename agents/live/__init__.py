"""Agents at work on real questions under a real budget."""
