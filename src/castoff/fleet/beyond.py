"""Which hosts of a large region have which layers, beside the neighbours that are asked for everything.

A host asks 24 others. A layer that only hosts beyond those have is in the region all the same, so of each layer the nearest few
that have it are named, from the lists that hosts tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from castoff.fleet.inventory import Inventory

__all__ = ["MOST_ROWS", "OF_ONE", "layers_beyond"]

OF_ONE = 4
"""Hosts that are named of one layer."""
MOST_ROWS = 200_000
"""Of all layers: what is more is left out, and asked of neighbours and the registry only."""
_LOOKED_AT = 4_000_000


def layers_beyond(hosts: Sequence[str], lists: Mapping[str, Inventory]) -> tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """Layers and hosts, a row for each host that is named of a layer; sorted by layer, then those that have it whole first.

    Args:
        hosts: The ids of those beyond the neighbours, nearest first; at most 65,535.
        lists: What each told.
    """
    layers: list[NDArray[np.uint64]] = []
    ranks: list[NDArray[np.uint32]] = []
    total = 0
    for place, host in enumerate(hosts):
        inventory = lists.get(host)
        if inventory is None or total + len(inventory) > _LOOKED_AT:
            continue
        total += len(inventory)
        for column, first in ((inventory.whole, place), (inventory.part, place + (1 << 16))):
            layers.append(column)
            ranks.append(np.full(len(column), first, np.uint32))
    if not total:
        return np.empty(0, np.uint64), np.empty(0, np.uint16)
    layer, rank = np.concatenate(layers), np.concatenate(ranks)
    order = np.lexsort((rank, layer))
    layer, rank = layer[order], rank[order]
    begins = np.flatnonzero(np.append(True, layer[1:] != layer[:-1]))
    nth = np.arange(len(layer)) - np.repeat(begins, np.diff(np.append(begins, len(layer))))
    kept = np.flatnonzero(nth < OF_ONE)[:MOST_ROWS]
    return layer[kept], (rank[kept] & 0xFFFF).astype(np.uint16)
