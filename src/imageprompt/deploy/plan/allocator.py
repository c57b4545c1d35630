"""How much of a card PyTorch reserves for a sequence of tensors: its caching allocator, in numbers.

Memory comes from the card in segments and stays reserved. Freed blocks merge with free neighbours
of the same segment only, so blocks of growing sizes leave the earlier segments unused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 2**20
ROUND = 512
"""Bytes that sizes are rounded up to."""
SMALL = MIB
"""Up to here a block lies in a segment for small ones."""
SMALL_SEGMENT, MIDDLE_SEGMENT = 2 * MIB, 20 * MIB
LARGE = 10 * MIB
"""From here on a block has a segment of its size, rounded up to SMALL_SEGMENT."""


@dataclass(eq=False)
class Block:
    """A part of a segment."""

    size: int
    small: bool
    free: bool = True
    before: Block | None = None
    after: Block | None = None


@dataclass
class CachingAllocator:
    """Reserved bytes never shrink: nothing here runs out of memory."""

    reserved: int = 0
    _free: dict[bool, list[Block]] = field(default_factory=lambda: {True: [], False: []})

    def take(self, size: int) -> Block:
        """The smallest free block that holds `size` bytes, cut to that, or one of a new segment."""
        size = _rounded(max(size, 1), ROUND)
        small = size <= SMALL
        pool = self._free[small]
        block = min((one for one in pool if one.size >= size), key=_size, default=None)
        if block is None:
            block = self._segment(size, small)
        else:
            pool.remove(block)
        rest = block.size - size
        if rest >= ROUND if small else rest > SMALL:
            cut = Block(rest, small, before=block, after=block.after)
            if cut.after is not None:
                cut.after.before = cut
            block.after, block.size = cut, size
            pool.append(cut)
        block.free = False
        return block

    def give_back(self, block: Block) -> None:
        """Free a block, and merge it with its free neighbours."""
        pool = self._free[block.small]
        if block.after is not None and block.after.free:
            pool.remove(block.after)
            _merge(block)
        if block.before is not None and block.before.free:
            block = block.before
            pool.remove(block)
            _merge(block)
        block.free = True
        pool.append(block)

    def _segment(self, size: int, small: bool) -> Block:
        if not small:
            segment = MIDDLE_SEGMENT if size < LARGE else _rounded(size, SMALL_SEGMENT)
        else:
            segment = SMALL_SEGMENT
        self.reserved += segment
        return Block(segment, small)


def _merge(block: Block) -> None:
    """A block swallows the one after it."""
    after = block.after
    assert after is not None
    block.size += after.size
    block.after = after.after
    if block.after is not None:
        block.after.before = block


def _size(block: Block) -> int:
    return block.size


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step
