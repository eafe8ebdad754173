"""Adapters to other packages, each of them an extra: import the module of the one that you use."""
