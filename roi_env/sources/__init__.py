"""Where tasks come from: synthetic families, tables of recorded outcomes, packaged recordings."""
