"""What members of a fleet tell and ask each other over the servers, stored nowhere."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from adapter.cluster.servers import reason_of
from adapter.errors import ClusterUnavailableError


class Talk:
    """Hints and questions of one fleet.

    Args:
        root: What their subjects begin with.
    """

    def __init__(self, client: Client, root: str) -> None:
        self._client = client
        self._root = root

    # Questions to all members.

    async def ask(self, what: str, data: bytes, enough: Callable[[list[bytes]], bool], within_s: float) -> list[bytes]:
        """Ask all members something; give what they answer.

        Args:
            what: What `serve` names it.
            data: The question.
            enough: Whether no more answers are waited for.
            within_s: For how long.

        Raises:
            ClusterUnavailableError: Nobody can be asked.
        """
        inbox, given = self._client.new_inbox(), list[bytes]()
        try:
            heard = await self._client.subscribe(inbox)
            try:
                await self._client.publish(f"{self._root}.ask.{what}", data, reply=inbox)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        while not enough(given):
                            given.append((await heard.next_msg(timeout=within_s)).data)
            finally:
                await heard.unsubscribe()
        except nats.errors.TimeoutError:
            pass
        except nats.errors.Error as err:
            raise ClusterUnavailableError(reason_of(err)) from err
        return given

    async def serve(self, what: str, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Answer a question that is asked of all members."""

        async def asked(message: Msg) -> None:
            given = await answer(message.data)
            with contextlib.suppress(nats.errors.Error):
                await message.respond(given)

        await self._client.subscribe(f"{self._root}.ask.{what}", cb=asked)

    # Hints: what one member tells the others so that they need not wait; any of it may be lost.

    async def tell(self, what: str, data: bytes) -> None:
        """Send a hint to all members."""
        with contextlib.suppress(nats.errors.Error):
            await self._client.publish(f"{self._root}.hint.{what}", data)

    async def listen(self, what: str, take: Callable[[bytes], None]) -> None:
        """Have hints of others and our own taken."""

        async def taken(message: Msg) -> None:
            take(message.data)

        await self._client.subscribe(f"{self._root}.hint.{what}", cb=taken)
