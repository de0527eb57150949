"""One agent's way from the gateway to the outbox: poll, take in, store, pause, poll again.

```
session.poll -> presence.add_event (mask, seq, id, state) -> outbox.commit -> pause -> session.poll
```

Rules of this file:
1. One task per agent does all of its requests, one after the other: none can overlap another (P1).
2. What an answer brought is on disk before the agent's next request (P8, P12).
3. A request under way is never cut for a command or a stop: its answer may hold an event (C2, D7).
4. One agent's trouble stays its own.
"""

import asyncio
import logging
from datetime import UTC, datetime

from adapter.agent.mailbox import Mailbox
from adapter.agent.pace import Pace
from adapter.agent.presence import Presence, Shared
from adapter.agent.session import Session
from adapter.agent.signing import Signing, describe
from adapter.catalogue import SHUTDOWN, SIGNED_OUT_RETCODES, SUCCESS
from adapter.command import Order
from adapter.config import AgentConfig
from adapter.errors import CommandError, GatewayConnectionError, GatewayError, GatewayProtocolError, RetcodeError
from adapter.gateway import Reply
from adapter.store.records import AgentRecord, Change, CommandRecord, Unreadable

_ORDERS = 4
"""How many sign-ins and sign-outs may wait: as many as call data (C2)."""

_STATUS_TRIES = 3
"""How often the state is asked for in vain before it stays what it was."""


class Poller:
    """Polls one agent until it is told to end.

    Args:
        takes_over: Whether another has polled the agent until now: the state is known, and is asked for after a poll.

    Attributes:
        presence: The agent as others see it.
    """

    def __init__(
        self, agent: AgentConfig, session: Session, record: AgentRecord, shared: Shared, *, takes_over: bool = False
    ) -> None:
        gateway = shared.config.gateway
        self._shared = shared
        self._counters = shared.counters
        self._session = session
        self._pace = Pace(gateway.interval_s, gateway.error_backoff)
        self.presence = Presence(agent, session, record, shared)
        self._mailbox = Mailbox(self.presence, shared.topics)
        self._signing = Signing(session, self.presence, self._pace, self._mailbox, shared)
        self._orders: list[Order] = []
        self._polls_first = False
        self._guid_file_changed = False
        self._takes_over = takes_over
        self._status_tries = 0 if takes_over else _STATUS_TRIES
        self._last_retcode: str | None = None

    # What others ask of it.

    def give(self, command: CommandRecord) -> None:
        """Take call data for one of the next polls (C2).

        Raises:
            CommandError: The agent is signed out, or enough waits already.
        """
        if self._session.guid is None:
            raise CommandError("the agent is signed out")
        self._mailbox.put(command)

    def order(self, order: Order) -> None:
        """Take a sign-in or sign-out; it is done when the request under way is over (C6).

        Raises:
            CommandError: Enough wait already.
        """
        if len(self._orders) >= _ORDERS:
            raise CommandError("queue full")
        self._orders.append(order)
        self._pace.wake()

    def read_guid_file(self) -> None:
        """Have the GUID file read again, when the request under way is over."""
        self._guid_file_changed = True
        self._pace.wake()

    def end(self) -> None:
        """Have `run` return when the request under way is over; what it brings is still stored."""
        self._pace.end()

    def waiting(self) -> list[CommandRecord]:
        """List the commands that have no result yet, when `run` has returned."""
        orders = [order.command for order in self._orders if order.command is not None]
        return [*self._mailbox.waiting, *orders]

    # The loop.

    async def run(self, delay_s: float) -> None:
        """Poll until `end` is called.

        Args:
            delay_s: Seconds before the first request: agents start staggered, so that a start is no stampede.
        """
        self._pace.begin(delay_s)
        await self._pace.pause()
        try:
            if not self._pace.ending:
                await self._signing.start()
            while not self._pace.ending:
                try:
                    await self._step()
                except GatewayError as error:
                    await self._failed(error)
                await self._pace.pause()
        except asyncio.CancelledError:  # in a hurry, or after `hold` and a grace (D7)
            self._pace.cut()
            raise

    async def close(self, *, sign_out: bool) -> None:
        """Let go of everything, when `run` has ended; sign out before, where that is wanted and configured."""
        self._mailbox.close()
        try:
            await self.presence.keep_session()
            if sign_out:
                await self._signing.sign_out_at_exit()
            # A restart, or the next poller of a changed agent, knows nothing of our last request.
            await self._pace.leave()
        finally:
            await self._session.close()
            await self.presence.close()

    async def _step(self) -> None:
        """Make one request, or wait for a reason to make one."""
        if self._guid_file_changed:
            self._guid_file_changed = False
            self._status_tries = _STATUS_TRIES
            await self._signing.read_guid_file()
        elif self._orders and not (self._polls_first and self._session.guid is not None):
            # However many orders come, a session is polled in between: the gateway ends one that is not.
            self._polls_first = True
            self._status_tries = _STATUS_TRIES
            await self._signing.obey(self._orders.pop(0))
        elif self._session.guid is None:
            self._status_tries = _STATUS_TRIES
            await self._signing.wait()
        elif self._status_tries and not self._pace.failures:
            await self._read_state()
        elif await self.presence.has_room():
            self._polls_first = False
            await self._poll()

    async def _poll(self) -> None:
        """Poll once (`getAgentEvent`), with call data where some waits (P2)."""
        change = Change()
        self._counters.polls += 1
        try:
            reply = await self._session.poll(self._mailbox.take())
        except GatewayProtocolError:
            self._mailbox.sent(change, retcode=None, reason="the gateway's answer could not be read")
            await self.presence.store_if_changed(change)
            raise
        except GatewayError:
            self._mailbox.not_sent()
            raise
        self._mailbox.sent(change, retcode=reply.answer.retcode, reason=reply.answer.message or None)
        await self._take_in(reply, change)

    async def _take_in(self, reply: Reply, change: Change) -> None:
        """Store what an answer brought, and see what it means for the session."""
        answer = reply.answer
        received_at = datetime.now(UTC)
        self._pace.answered(reply.received_at, hurry=bool(answer.events))
        for event in answer.events:
            self.presence.add_event(event, received_at, change)
        if answer.retcode in SIGNED_OUT_RETCODES:
            await self._signing.ended(change, retcode=answer.retcode, message=answer.message)
        elif any(event.event_type == SHUTDOWN for event in answer.events):
            await self._signing.ended(change, retcode=None, message="the gateway signed the agent out")
        elif answer.retcode == SUCCESS:
            self._signing.proven()
            self._recovered(change)
            await self.presence.store_if_changed(change)
        else:
            await self.presence.store_if_changed(change)
            raise RetcodeError(answer.retcode, answer.message)

    async def _read_state(self) -> None:
        """Ask for the state, at the start and after a lost answer; refused, it stays what it was."""
        self._status_tries -= 1
        change = Change()
        try:
            state = await self._session.state()
        except GatewayError as error:
            self.presence.say(logging.DEBUG, "agentstatus: %s", error)
            self._pace.failed()
        else:
            self._pace.answered()
            self._status_tries = 0
            if state is not None:
                self.presence.settle(state, change)
        await self.presence.store_if_changed(change)

    # What goes wrong, and how it heals.

    async def _failed(self, error: GatewayError) -> None:
        """Note a failed poll, and leave P5's pause before the next."""
        change = Change()
        retcode = None
        self._pace.failed()
        if isinstance(error, RetcodeError):
            retcode = error.retcode
            if retcode != self._last_retcode:
                self.presence.say(logging.WARNING, "getAgentEvent: %s", describe(retcode, error.message))
            self._shared.gateway_outage.ends(self.presence.subject)
        else:
            self._counters.poll_errors += 1
            self._shared.gateway_outage.begins(self.presence.subject, f"getAgentEvent: {error}")
        self._last_retcode = retcode
        if isinstance(error, GatewayProtocolError):
            self._counters.unreadable += 1
            self._status_tries = _STATUS_TRIES
            self.presence.say(logging.WARNING, "getAgentEvent: %s; it may have held an event", error)
            change.unreadable = Unreadable(
                work_no=self.presence.agent.work_no,
                reason=error.reason,
                head=error.head if self._shared.mask is None else b"",
                size_bytes=error.size_bytes,
                at=datetime.now(UTC).timestamp(),
            )
        elif isinstance(error, GatewayConnectionError) and error.answer_lost:
            self._counters.lost_answers += 1
            self._status_tries = _STATUS_TRIES
        self.presence.enter("retrying", change, retcode=retcode, message=str(error), attempt=self._pace.failures)
        await self.presence.store(change)

    def _recovered(self, change: Change) -> None:
        """Note a good answer: the next failure begins anew (P5)."""
        if self._takes_over:
            self._takes_over = False
            self._status_tries = _STATUS_TRIES
        self._last_retcode = None
        self._pace.recovered()
        self._shared.gateway_outage.ends(self.presence.subject)
        if self.presence.phase != "polling":
            self.presence.enter("polling", change)
