"""Comparisons: every agent takes the same exams."""
