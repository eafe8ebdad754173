"""Adapters that put agents to work in other packages, each an extra; those that need no agent are in :mod:`roi_env.integrations`."""
