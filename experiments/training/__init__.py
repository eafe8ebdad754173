"""Training runs, the search for their settings, and the worker processes of long commands."""
