"""How one agent's session begins and ends: sign-in, sign-out, and what follows when the gateway ends it (P6, C6).

Rules of this file: never two sign-in calls at once; a sign-in by itself only where it is configured, and never
again after a refusal that could lock the account.
"""

import logging
from collections.abc import Iterator

from adapter.agent.mailbox import Mailbox
from adapter.agent.pace import Pace
from adapter.agent.presence import Presence, Shared
from adapter.agent.session import Session, needs_force
from adapter.catalogue import ALREADY_SIGNED_IN, NEVER_RETRY_SIGN_IN, SUCCESS, retcode_meaning
from adapter.command import Order, finish
from adapter.errors import CommandError, GatewayConnectionError, GatewayError, RetcodeError
from adapter.payloads import Status
from adapter.store.records import Change

_FORGOTTEN_S = 150.0
"""After how long the gateway has surely ended a session whose GUID never reached us: it does after 120 s without a
poll."""


class Signing:
    """One agent's sign-ins and sign-outs, for its poller's task."""

    def __init__(self, session: Session, presence: Presence, pace: Pace, mailbox: Mailbox, shared: Shared) -> None:
        self._session = session
        self._presence = presence
        self._pace = pace
        self._mailbox = mailbox
        self._topics = shared.topics
        self._outage = shared.gateway_outage
        self._again = shared.timing.again
        self._delays: Iterator[float] = self._again.delays()
        self._sign_in_at: float | None = None
        self._began_at = 0.0
        self._on_trial = True
        self._forgotten_at = 0.0

    async def start(self) -> None:
        """Begin with the stored or the configured GUID, with a sign-in, or by waiting for one."""
        self._session.adopt_configured()
        change = Change()
        self._presence.show_state(change)
        if self._session.guid is not None:
            self._began_at = self._pace.now()
            self._presence.enter("polling", change)
        elif self._presence.agent.sign_in is not None and not self._session.stay_out:
            self._sign_in_at = self._pace.now()
        else:
            waits_for_file = self._presence.agent.guid_file is not None
            message = "waiting for a GUID in the GUID file" if waits_for_file else "waiting for a sign_in command"
            self._presence.settle("signed_out", change)
            self._presence.enter("signed_out", change, message=message)
        await self._presence.store(change)

    def proven(self) -> None:
        """Note that the gateway accepted the GUID: a later refusal is the end of a session, not a bad start."""
        self._on_trial = False

    async def ended(self, change: Change, *, retcode: str | None, message: str) -> None:
        """Take note that the gateway ended the session: say so, poll no further, wait for a new sign-in (P6, P13)."""
        text = message if retcode is None else describe(retcode, message)
        self._presence.say(logging.WARNING, "getAgentEvent: %s: signed out", text)
        last_guid, own = self._session.guid, self._session.own
        lasted_s = self._pace.now() - self._began_at
        self._end(change, retcode=retcode, message=text)
        sign_in = self._presence.agent.sign_in
        if sign_in is not None and self._on_trial and retcode is not None:
            # A stored GUID is refused at the start: the one sign-in that replaces it is no repetition (C6).
            self._sign_in_at = self._pace.now()
        elif sign_in is not None and sign_in.again:
            if lasted_s > self._again.maximum_s:
                self._delays = self._again.delays()
            self._sign_in_at = self._pace.now() + next(self._delays)
        self._on_trial = False
        await self._presence.store(change)
        if own and last_guid is not None:
            await self._pace.hold_off()
            try:
                await self._session.sign_out(last_guid)
            except GatewayError as error:
                self._presence.say(logging.INFO, "sign-out after the end of the session: %s", error)
                self._pace.refused(error)
            else:
                self._pace.answered()

    async def wait(self) -> None:
        """Sit out, until something wakes the pace, or the time of a sign-in by itself has come."""
        if self._sign_in_at is None or self._sign_in_at > self._pace.now():
            await self._pace.sleep(self._sign_in_at)
            return
        change = Change()
        try:
            await self._sign_in()
        except RetcodeError as error:
            self._sign_in_at = self._next_try(error)
            text = self._refusal(error)
            self._presence.say(logging.ERROR, "%s", text)
            self._end(change, retcode=error.retcode, message=text)
            self._pace.refused(error)
            await self._presence.store(change)
        except GatewayError as error:
            self._pace.failed()
            self._outage.begins(self._presence.subject, f"sign-in: {error}")
            self._presence.enter("retrying", change, message=str(error), attempt=self._pace.failures)
            await self._presence.store(change)

    async def read_guid_file(self) -> None:
        """Go on with the GUID of the GUID file, where it holds another one."""
        if self._session.adopt_configured():
            await self._begun("goes on with another GUID from the GUID file")

    async def obey(self, order: Order) -> None:
        """Do what a command asks, and answer it (C6). One that needs no request of its own delays no poll (P4)."""
        change = Change()
        status: Status = "rejected"
        retcode: str | None = None
        reason: str | None = None
        try:
            reason = await (self._obey_sign_in(order) if order.action == "sign_in" else self._obey_sign_out(change))
            status, retcode = "applied", SUCCESS
        except CommandError as error:
            reason = error.reason
        except RetcodeError as error:
            retcode = error.retcode
            reason = self._refusal(error) if order.action == "sign_in" else describe(error.retcode, error.message)
            self._pace.refused(error)
            if error.retcode in NEVER_RETRY_SIGN_IN:
                self._sign_in_at = None
        except GatewayError as error:
            reason = f"{error}; send it again"
            self._pace.refused(error)
        if self._presence.phase == "signing_in":
            self._end(change, retcode=retcode, message=reason)
        if order.command is not None:
            finish(change, order.command, self._topics, status=status, retcode=retcode, reason=reason)
        await self._presence.store(change)

    async def sign_out_at_exit(self) -> None:
        """Sign out where the configuration asks for it and this program signed in; when the poller has ended (D7)."""
        sign_in = self._presence.agent.sign_in
        if sign_in is None or not sign_in.sign_out_at_exit or not self._session.own or self._session.guid is None:
            return
        await self._pace.leave()
        try:
            await self._session.sign_out(self._session.guid)
        except GatewayError as error:
            self._presence.say(logging.WARNING, "sign-out at exit: %s", error)
            await self._presence.store_if_changed(Change())
            return
        change = Change()
        self._end(change, message="signed out as the adapter stopped")
        await self._presence.store(change)

    async def _obey_sign_in(self, order: Order) -> str | None:
        self._delays = self._again.delays()
        if order.guid is not None:
            self._session.adopt(order.guid)
            await self._begun("goes on with a GUID by command")
            return None
        if self._session.guid is not None:
            return "already signed in"
        if self._presence.agent.sign_in is None:
            raise CommandError('no sign_in is configured for this agent; send the "guid" of a session begun elsewhere')
        await self._sign_in()
        return None

    async def _obey_sign_out(self, change: Change) -> str | None:
        if self._session.guid is None:
            self._stay_out()
            return "already signed out"
        await self._session.sign_out(self._session.guid)
        self._pace.answered()
        self._stay_out()
        self._presence.say(logging.INFO, "signed out by command")
        self._end(change, message="signed out by command")
        return None

    def _stay_out(self) -> None:
        """Switch the sign-in by itself off, until somebody asks for one."""
        self._session.stay_out = True
        self._sign_in_at = None

    async def _sign_in(self) -> None:
        """Sign in with the configured credentials; by force only where that is configured, and needed."""
        sign_in = self._presence.agent.sign_in
        change = Change()
        self._presence.enter("signing_in", change)
        await self._presence.store(change)
        try:
            await self._ask_for_session(force=False)
        except RetcodeError as error:
            if not needs_force(error) or sign_in is None or not sign_in.force:
                raise
            self._pace.answered()
            await self._pace.hold_off()
            await self._ask_for_session(force=True)
        await self._begun("signed in")
        self._pace.answered()

    async def _ask_for_session(self, *, force: bool) -> None:
        try:
            await self._session.sign_in(force=force)
        except GatewayError as error:
            refused = isinstance(error, RetcodeError) and error.retcode != SUCCESS
            unsent = isinstance(error, GatewayConnectionError) and not error.answer_lost
            if not refused and not unsent:
                self._forgotten_at = self._pace.now() + _FORGOTTEN_S
            raise

    def _next_try(self, error: RetcodeError) -> float | None:
        """Say when a refused sign-in is tried again by itself; `None` for never (C6)."""
        sign_in = self._presence.agent.sign_in
        again = sign_in is not None and sign_in.again
        if error.retcode in NEVER_RETRY_SIGN_IN or not (again or self._is_ours(error)):
            return None
        return self._pace.now() + next(self._delays)

    def _is_ours(self, error: RetcodeError) -> bool:
        """Say whether the session that is in the way may be that of a sign-in of ours whose answer was lost."""
        return error.retcode in (ALREADY_SIGNED_IN, SUCCESS) and self._pace.now() < self._forgotten_at

    def _refusal(self, error: RetcodeError) -> str:
        """Say what a person can do about a refused sign-in."""
        if needs_force(error) and self._is_ours(error):
            return "100-002: already signed in, perhaps by a sign-in whose answer was lost: that ends within 2 minutes"
        if needs_force(error):
            return "100-002: already signed in elsewhere: sign out there, or set sign_in.force: true"
        hint = "; not tried again by itself, since that locks accounts" if error.retcode in NEVER_RETRY_SIGN_IN else ""
        return f"sign-in refused: {describe(error.retcode, error.message)}{hint}"

    async def _begun(self, how: str) -> None:
        """Have polls begin with a new GUID, which is on disk before the first of them (P8)."""
        change = Change()
        self._sign_in_at = None
        self._began_at = self._pace.now()
        self._on_trial = False
        self._forget_failures()
        self._presence.say(logging.INFO, "%s", how)
        self._presence.enter("polling", change)
        await self._presence.store(change)

    def _end(self, change: Change, *, retcode: str | None = None, message: str | None) -> None:
        """Note in a change that the agent is signed out."""
        self._session.end()
        self._forget_failures()
        self._mailbox.reject_all(change, "the agent is signed out")
        self._presence.settle("signed_out", change)
        self._presence.enter("signed_out", change, retcode=retcode, message=message)

    def _forget_failures(self) -> None:
        self._pace.recovered()
        self._outage.ends(self._presence.subject)


def describe(retcode: str, message: str) -> str:
    """Name a retcode as the vendor's log does, with what it means."""
    meaning = message or retcode_meaning(retcode)
    return f"{retcode} ({meaning})" if meaning else retcode
