"""A KV cache for batched generation: rows leave it, and it grows without being copied for every token."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 16
"""Columns by which the memory of a batch grows: concatenation would copy all of it for every token."""


class GrowingLayer(DynamicLayer):
    """Keys and values (rows, heads, columns, dim) of a layer, at the beginning of buffers that have room for more."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self.buffers = (key_states, value_states)
            return self.keys, self.values
        begin, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self.buffers[0].shape[2]:
            more = max(_ROOM, end - begin)
            self.buffers = (_longer(self.keys, more), _longer(self.values, more))
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values


def _longer(state: torch.Tensor, more: int) -> torch.Tensor:
    """With room for ``more`` columns, not filled: nobody reads them before they are written."""
    rows, heads, columns, dim = state.shape
    out = state.new_empty(rows, heads, columns + more, dim)
    out[:, :, :columns] = state
    return out


def growing_cache() -> Cache:
    """An empty cache of :class:`GrowingLayer`."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def keep(cache: Cache, rows: torch.Tensor, first: int = 0) -> None:
    """Keep (or repeat) these rows, from column ``first``."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.buffers = (layer.keys[rows, :, first:], layer.values[rows, :, first:])  # type: ignore[attr-defined]
