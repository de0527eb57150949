"""One life of a member: what its polls and its journals ask whether they may go on."""

import asyncio

import httpx

from adapter.clock import lasting_time
from adapter.cluster.lease import Lease, Terms


class Term:
    """One life of a member, from its enlisting to its being struck out: what requests to the gateway wait for.

    Attributes:
        owner: How journals name it.
        lease: Its lease.
    """

    def __init__(self, owner: str, terms: Terms) -> None:
        self.owner = owner
        self.lease = Lease(terms)
        self._renewed = asyncio.Event()
        self._over = False

    async def wait(self) -> None:
        """Wait until a poll may start.

        Raises:
            httpx.ConnectError: None will.
        """
        while not self.valid():
            if self._over:
                raise httpx.ConnectError("another member polls this agent by now")
            self._renewed.clear()
            await self._renewed.wait()

    def valid(self) -> bool:
        """Say whether a poll may start: the lease outlives it."""
        return self.lease.outlives_a_poll(lasting_time())

    def holds(self) -> bool:
        """Say whether nobody else can own what is ours."""
        return self.lease.holds(lasting_time())

    def left_s(self) -> float:
        """Say for how many seconds the lease is good."""
        return self.lease.left_s(lasting_time())

    def grant(self, asked_at: float) -> None:
        """Take note that what was asked for at a moment has been granted."""
        self.lease.granted(asked_at)
        self._renewed.set()

    def end(self) -> None:
        """End it for good."""
        self._over = True
        self.lease.end()
        self._renewed.set()
