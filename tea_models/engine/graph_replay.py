"""The memory allocator of ggml, replayed: which tensors of a graph share memory, and how much it takes at its peak.

Rules: `ggml-alloc.c` (inputs get their place first, a result may take over the memory of its only reader's source,
best fit over free blocks, free neighbours merge).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tea_models.engine.formula import pad

_ALIGNMENT = 32


@dataclass(slots=True)
class _Node:
    size: int
    sources: tuple[int, ...]
    in_place: bool = False
    keep: bool = False
    is_input: bool = False


@dataclass(slots=True)
class Graph:
    """Nodes in the order in which the engine computes them."""

    nodes: list[_Node] = field(default_factory=list)

    def input(self, size: int) -> int:
        """Add an input; inputs get their place before anything else."""
        self.nodes.append(_Node(size, (), is_input=True))
        return len(self.nodes) - 1

    def op(self, size: int, *sources: int, in_place: bool = False, keep: bool = False) -> int:
        """Add a tensor of `size` bytes that is computed from others; `in_place` may take over a source's memory."""
        self.nodes.append(_Node(size, sources, in_place=in_place, keep=keep))
        return len(self.nodes) - 1

    def peak(self) -> int:
        """Bytes that the engine's allocator reserves for the graph."""
        allocator = _Allocator()
        children = [0] * len(self.nodes)
        for node in self.nodes:
            for source in node.sources:
                children[source] += 1
        places: dict[int, int] = {}
        for index, node in enumerate(self.nodes):
            if node.is_input:
                places[index] = allocator.allocate(node.size)
        for index, node in enumerate(self.nodes):
            if node.is_input:
                continue
            reused = self._reusable(node, children, places) if node.in_place else None
            if reused is not None:
                places[index] = places.pop(reused)
            elif node.size:
                places[index] = allocator.allocate(node.size)
            for source in node.sources:
                children[source] -= 1
                if children[source] == 0 and source in places and not self.nodes[source].keep:
                    allocator.free(places.pop(source), self.nodes[source].size)
        return allocator.peak

    def _reusable(self, node: _Node, children: list[int], places: dict[int, int]) -> int | None:
        for source in node.sources:
            other = self.nodes[source]
            if source in places and not other.keep and other.size == node.size and children[source] == 1:
                return source
        return None


class _Allocator:
    """Best fit over free blocks, the last one without end (`ggml_dyn_tallocr`)."""

    def __init__(self) -> None:
        self.peak = 0
        self._free: list[list[int]] = [[0, 1 << 62]]  # offset and size, sorted

    def allocate(self, size: int) -> int:
        size = pad(size, _ALIGNMENT)
        fitting = [block for block in self._free[:-1] if block[1] >= size]
        # Of equal blocks the engine takes the last.
        block = min(reversed(fitting), key=lambda block: block[1]) if fitting else self._free[-1]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if not block[1]:
            self._free.remove(block)
        self.peak = max(self.peak, offset + size)
        return offset

    def free(self, offset: int, size: int) -> None:
        self._free.append([offset, pad(size, _ALIGNMENT)])
        self._free.sort()
        merged: list[list[int]] = []
        for block in self._free:
            if merged and sum(merged[-1]) == block[0]:
                merged[-1][1] += block[1]
            else:
                merged.append(block)
        self._free = merged
