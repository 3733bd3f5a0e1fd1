"""Where `step` declares the buffers between its kernels: in nested blocks, so that those of two blocks share memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from isobit.targets.nest import Kernel, Nest

TRIED = 32
"""Places at which it is tried to cut a block."""


@dataclass(frozen=True)
class Block:
    """Buffers, and what runs while they live, in order.  bytes: of all buffers that live at once, at most."""

    buffers: tuple[str, ...]
    parts: tuple[Block | Kernel, ...]
    bytes: int


@dataclass(frozen=True)
class Life:
    """A buffer is in use from kernel `first` to kernel `last`."""

    buffer: str
    bytes: int
    first: int
    last: int


def blocks(nest: Nest) -> Block:
    """All kernels.  A block is cut in two, at a kernel: it keeps the buffers in use on both sides."""
    lives = [_life(nest, v) for v in nest.scratch]

    def within(start: int, end: int) -> list[Life]:
        return [b for b in lives if start <= b.first and b.last < end]

    @cache
    def cut(start: int, end: int) -> tuple[int, int]:
        """Bytes of the block from kernel `start` to before kernel `end`, and where it is cut; `end` where it is not."""
        own = within(start, end)
        least, best = sum(b.bytes for b in own), end
        for across, k in _cuts(own, start, end):
            if across < least:
                found = across + max(cut(start, k)[0], cut(k, end)[0])
                least, best = (found, k) if found < least else (least, best)
        return least, best

    def parts(start: int, end: int, room: int) -> Iterator[Block | Kernel]:
        """What a block is made of: cut no further than `room` bytes ask for; one without buffers is none."""
        own, inner = within(start, end), tuple[Block | Kernel, ...](nest.kernels[start:end])
        if sum(b.bytes for b in own) > room:
            _, k = cut(start, end)
            own = [b for b in own if b.first < k <= b.last]
            left = room - sum(b.bytes for b in own)
            inner = (*parts(start, k, left), *parts(k, end, left))
        if own:
            most = max((p.bytes for p in inner if isinstance(p, Block)), default=0)
            yield Block(tuple(b.buffer for b in own), inner, sum(b.bytes for b in own) + most)
        else:
            yield from inner

    made = tuple(parts(0, len(nest.kernels), cut(0, len(nest.kernels))[0]))
    if len(made) == 1 and isinstance(made[0], Block):
        return made[0]
    return Block((), made, max((p.bytes for p in made if isinstance(p, Block)), default=0))


def _life(nest: Nest, buffer: str) -> Life:
    used = [i for i, k in enumerate(nest.kernels) if buffer in (*k.reads, *k.writes)]
    return Life(buffer, nest.type(buffer).bytes, used[0], used[-1])


def _cuts(own: list[Life], start: int, end: int) -> list[tuple[int, int]]:
    """(bytes in use on both sides, kernel to cut before), best first: with the larger half's, these are least."""
    begin, done = [0] * (end + 1), [0] * (end + 1)
    for b in own:
        begin[b.first + 1] += b.bytes
        done[b.last + 1] += b.bytes
    begun, ended = list(accumulate(begin)), list(accumulate(done))
    found = []
    for k in range(start + 1, end):
        across = begun[k] - ended[k]
        found.append((across + max(ended[k], begun[end] - begun[k]), across, k))
    return [(across, k) for _, across, k in sorted(found)[:TRIED]]
