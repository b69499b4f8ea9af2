"""Short work on the event loop, a few pieces of it in each of the loop's turns.

Sixty-four tasks that each compute for half a millisecond are, all ready at once, a loop that answers nobody for thirty.
"""

from __future__ import annotations

import anyio.lowlevel


class TurnLimit:
    """Lets `most` pieces of work run in one turn of the event loop; further ones wait for the next.

    It counts and has no clock, so that a simulated run takes the same course each time. Where fewer than `most` are asked for in a turn, now and then one
    passes through the loop for nothing.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"TurnLimit: most must be at least 1, not {most}")
        self._most = most
        self._done = 0
        self._turn = 0

    async def wait(self) -> None:
        """Returns when a piece of work may run, at once if one may now."""
        while self._done >= self._most:
            turn = self._turn
            await anyio.lowlevel.checkpoint()
            if self._turn == turn:  # the first to come back: the loop has begun a new turn
                self._turn += 1
                self._done = 0
        self._done += 1
