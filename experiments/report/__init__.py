"""From a run folder to numbers, pictures and pages."""
