"""The last seconds of all sensors, in memory, as they would stand in a file."""

from __future__ import annotations

from collections import deque

from lineside.channels import Block


class Ring:
    """Encoded blocks of the last `span_ns`, in at most `max_bytes`: the oldest go first, whichever sensor's they are.

    One order for all sensors, so that what is there reaches equally far back for each. `bytes` is what is held.
    """

    def __init__(self, span_ns: int, max_bytes: int) -> None:
        self._span_ns, self._max_bytes = span_ns, max_bytes
        self._blocks: deque[Block] = deque()
        self._newest_ns = 0
        self.bytes = 0

    def push(self, block: Block) -> None:
        """Take the next block; what has become too old, or too much, is forgotten."""
        if block.end_ns < self._newest_ns - self._span_ns:  # time was set back: what is held is of another time
            self._blocks.clear()
            self._newest_ns = self.bytes = 0
        self._blocks.append(block)
        self.bytes += len(block.data)
        self._newest_ns = max(self._newest_ns, block.end_ns)
        oldest_ns = self._newest_ns - self._span_ns
        while self._blocks and (self.bytes > self._max_bytes or self._blocks[0].end_ns < oldest_ns):
            self.bytes -= len(self._blocks.popleft().data)

    def within(self, start_ns: int, end_ns: int) -> list[Block]:
        """Blocks with something captured from `start_ns` until `end_ns`, in the order in which they came."""
        return [block for block in self._blocks if block.end_ns > start_ns and block.start_ns < end_ns]
