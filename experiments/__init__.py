"""What a person runs: the `roi` command, comparisons, reports."""
