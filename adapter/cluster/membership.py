"""One member's place in the fleet: its lease, what it sees of the others', and when it may poll.

```
enlist -> renew, look at the others, strike out who is gone -> ... -> leave
             |
             +-> the lease permits a poll, or it waits
```

Rules of this file: a lease that could not be renewed in time is not over before somebody has struck it out; until that
is known nothing is polled and nothing given up. Who was struck out begins anew, with another term and no agents.
A server may say what was true a while ago, also one that leads, or led: it may have been cut off. So nobody is taken
for gone who was only not seen: what was seen has to hold a renewal of our own that was asked for since, and with it all
that was written before. A term that is gone never comes back.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable

import msgspec

from adapter.clock import lasting_time
from adapter.cluster.answers import Stored
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.entry import Entry, content_of, entry_of, outline, replace_entry
from adapter.cluster.lease import Census, Terms
from adapter.cluster.servers import heed_cancellation
from adapter.cluster.term import Term
from adapter.config import Config
from adapter.errors import ClusterConflictError, ClusterUnavailableError, StartError
from adapter.outage import Outage

_log = logging.getLogger(__name__)

_SILENT_S = 4.0
"""How long renewing the lease may fail before another server is asked: one that is cut off from the others does not say
so. Choosing another leader may take as long."""
_PROOF_S = 2.0
"""How long it may take to find out that an owner is gone, before that counts as not known."""
_REMEMBERED = 1000
"""So many owners that are gone are remembered; one that is not costs another renewal."""
_TELL_S = 1.0
"""How long a member that leaves waits until the others can know it, before it hands its agents over."""


class Membership:
    """This process as a member.

    Args:
        engine: The servers.
        codec: Has the keys.
        config: The configuration.
        storage: Says where the outbox lies, the same over restarts.

    Attributes:
        name: The member's name, which is `instance`.
        term: Its life by now.
        strikes: How often it was struck out.
        others: What was last seen of all members, itself included.
        struck_out: Called when a term turns out to be over.
        begun: Called when another one has begun.
        changed: Set whenever there are other members than before.
    """

    def __init__(self, engine: Engine, codec: Codec, config: Config, *, storage: str) -> None:
        self._codec = codec
        self.name = config.instance
        self.strikes = 0
        self.others: dict[str, Entry] = {}
        self.struck_out: Callable[[], None] = lambda: None
        self.begun: Callable[[], None] = lambda: None
        self.changed = asyncio.Event()
        self.agents: Callable[[], int] = lambda: 0
        self._engine = engine
        self._terms = Terms.of(config.gateway.hold_s)
        self._census = Census(self._terms)
        self._outage = Outage("cluster")
        self._revision = 0
        self._asked_at: dict[int, float] = {}
        self._silent_since: float | None = None
        self._at_once = asyncio.Event()
        self._looked = asyncio.Event()
        self._unreadable: set[str] = set()
        self._shown = -1
        self._gone: set[str] = set()
        self._told = asyncio.Event()
        self._ends = False
        self._turned = False
        self._entry = Entry(term=_new_name(), count=0, content=content_of(config), proof=codec.proof(), storage=storage)
        self.term = self._new_term()

    def _new_term(self) -> Term:
        return Term(f"{self.name}/{self._entry.term}", self._terms)

    @property
    def sharing(self) -> list[str]:
        """The members that agents are shared among: those with our configuration who stay."""
        return sorted(name for name in self._staying if self.others[name].content == self._entry.content)

    @property
    def _staying(self) -> list[str]:
        return [
            name
            for name, entry in self.others.items()
            if not entry.leaving and not (name == self.name and self._entry.leaving)
        ]

    @property
    def unlike(self) -> list[str]:
        """The members that have another configuration than this one."""
        return sorted(name for name, entry in self.others.items() if entry.content != self._entry.content)

    @property
    def speaker(self) -> str | None:
        """The member that speaks for the fleet: it changes only when that one goes.

        Whatever its configuration: while members reload theirs one after the other, all have to see the same one.
        """
        return min(self._staying, key=lambda name: (self.others[name].since, name), default=None)

    @property
    def leaving(self) -> bool:
        """Whether this member hands its agents over."""
        return self._entry.leaving

    async def enlist(self, *, patiently: bool = False) -> None:
        """Become a member; waits where one of our name is still there.

        Args:
            patiently: Whether to wait, too, until we have the others' configuration, or they ours: another file may be
                read meanwhile.

        Raises:
            StartError: The others have another configuration.
        """
        outage = Outage("cluster")
        while True:
            heed_cancellation()
            self._see_that_we_are_wanted()
            try:
                before = await self._engine.member(self.name)  # where nobody leads, no look counts: none could renew
                await self._look()
                if not await self._fits():
                    pass
                elif before is not None and not self._is_over(before):
                    outage.begins(self.name, "another member has this name: waiting for the end of its lease")
                else:
                    await self._begin(0 if before is None else before.revision)
                    outage.is_over()
                    return
            except ClusterConflictError:
                pass
            except ClusterUnavailableError as error:
                outage.begins(self.name, str(error))
            except StartError as error:
                if not patiently:
                    raise
                outage.begins("configuration", str(error).removeprefix("cluster: "), grave=True)
            await asyncio.sleep(self._terms.renew_s)

    def _see_that_we_are_wanted(self) -> None:
        if self._engine.closed:
            raise StartError("cluster: the servers have closed the connection for good", exit_code=1)

    def _is_over(self, before: Stored) -> bool:
        """Say whether a lease of our name is of a process that is surely gone."""
        entry = entry_of(before.value)
        ours = entry is not None and entry.storage == self._entry.storage
        return ours or self._census.expired(lasting_time()).get(self.name) == before.revision

    async def _fits(self) -> bool:
        """Say whether this member goes with those that are there; `False` while that is not known.

        Raises:
            StartError: It does not go with one that lives.
        """
        others = {name: entry for name, entry in self.others.items() if name != self.name}
        strangers = {name: entry for name, entry in others.items() if not self._codec.knows(entry.proof)}
        if not strangers and all(entry.content != self._entry.content for entry in others.values()):
            strangers = others
        for name in strangers.keys() & self._census.expired(lasting_time()).keys():
            await self._strike(name, self._census.expired(lasting_time())[name])
        living = strangers.keys() & self._census.renewed()
        if living:
            raise StartError(self._unlike(min(living)), exit_code=2)
        return not strangers

    def _unlike(self, name: str) -> str:
        if not self._codec.knows(self.others[name].proof):
            return f"cluster: member {name} has another cluster.key"
        theirs, ours = self.others[name].content[:8], self._entry.content[:8]
        return (
            f"cluster: member {name} has another configuration of gateway, agents or topics ({theirs}, here {ours}): "
            "give all members the same, and have those that run reload it"
        )

    async def _begin(self, replacing: int) -> None:
        self._entry = replace_entry(self._entry, term=_new_name(), count=0, since=time.time())
        asked_at = lasting_time()
        self._revision = await self._engine.enlist(self.name, msgspec.json.encode(self._entry), replacing)
        self._asked_at = {}
        self._census = Census(self._terms)  # others may have been looked at while nobody could renew
        self.term = self._new_term()
        self.term.grant(asked_at)
        self.begun()
        _log.info("cluster: member %s", self.term.owner)

    async def run(self) -> None:
        """Keep the lease, see who else is there, and heed what we are told, until cancelled."""
        await self._engine.talk.listen("members", lambda _: self._at_once.set())
        await self._engine.talk.listen("drain", lambda name: self._turn(name, leaving=True))
        await self._engine.talk.listen("undrain", lambda name: self._turn(name, leaving=False))
        while True:
            self._at_once.clear()
            self._see_that_we_are_wanted()
            await self._keep()
            heed_cancellation()
            if self._turned:
                self._turned = False
                await self._engine.talk.tell("members", self.name.encode())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._terms.renew_s):
                    await self._at_once.wait()

    async def _keep(self) -> None:
        began_at = lasting_time()
        try:
            await self._renew()
            await self._look()
            for name, revision in self._census.expired(lasting_time()).items():
                if name != self.name:
                    await self._strike(name, revision)
        except ClusterUnavailableError as error:
            if not self.term.valid():
                self._outage.begins(self.name, f"no quorum: {error}; nothing is polled meanwhile")
            await self._look_elsewhere(began_at)
        except ClusterConflictError:
            await self._begin_again()
        else:
            self._silent_since = None
            self._outage.is_over()

    async def _look_elsewhere(self, failed_at: float) -> None:
        """Ask another server, where this one has had no answer for long."""
        if self._silent_since is None:
            self._silent_since = failed_at
        elif lasting_time() - self._silent_since > _SILENT_S:
            self._silent_since = None
            await self._engine.change_server()

    async def _renew(self) -> None:
        """Renew the lease; an answer that was lost shows in what is there.

        Raises:
            ClusterConflictError: This member was struck out.
            ClusterUnavailableError: It is not known whether it was renewed.
        """
        entry = self._entry = replace_entry(self._entry, count=self._entry.count + 1, agents=self.agents())
        asked_at = self._asked_at[entry.count] = lasting_time()
        try:
            self._revision = await self._engine.enlist(self.name, msgspec.json.encode(entry), self._revision)
        except ClusterConflictError:
            found = await self._engine.member(self.name)
            there = None if found is None else entry_of(found.value)
            if found is None or there is None or there.term != entry.term or there.count not in self._asked_at:
                raise
            self._revision, asked_at = found.revision, self._asked_at[there.count]
        self._asked_at = {count: at for count, at in self._asked_at.items() if at >= asked_at}
        self.term.grant(asked_at)
        if entry.leaving:
            self._told.set()

    async def _look(self) -> None:
        found = await self._engine.members()
        self._census.look({name: stored.revision for name, stored in found.items()}, lasting_time())
        others = {name: entry for name, stored in found.items() if (entry := entry_of(stored.value)) is not None}
        if outline(others) != outline(self.others):
            self.changed.set()
        self.others, self._unreadable = others, found.keys() - others.keys()
        ours = others.get(self.name)
        self._shown = -1 if ours is None or ours.term != self._entry.term else ours.count
        self._looked.set()

    async def _strike(self, name: str, revision: int) -> None:
        try:
            await self._engine.strike(name, revision)
        except ClusterConflictError:
            return  # it is alive, or somebody else was first
        _log.warning("cluster: member %s is gone; its agents are taken over", name)
        if (struck_out := self.others.pop(name, None)) is not None:
            self._bury(f"{name}/{struck_out.term}")
        self.changed.set()

    async def _begin_again(self) -> None:
        """Give everything up: this member was struck out, and others poll its agents by now."""
        self.term.end()
        _log.error("cluster: member %s was struck out, since it could not renew its lease in time", self.name)
        self.strikes += 1
        self.struck_out()
        self._revision = 0
        await self.enlist(patiently=True)

    async def is_alive(self, owner: str) -> bool:
        """Say whether an owner still has its lease, or had a moment ago; `False` is for good.

        Raises:
            ClusterUnavailableError: That is not known.
        """
        name, _, term = owner.rpartition("/")
        asked = self._entry.count
        try:
            async with asyncio.timeout(_PROOF_S):
                while owner not in self._gone:
                    entry = self.others.get(name)
                    if name in self._unreadable or (entry is not None and entry.term == term):
                        return True  # what cannot be read may be of a newer version
                    if self._shown > asked:
                        self._bury(owner)
                    else:
                        await self._next_look(at_once=self._entry.count == asked)
        except TimeoutError:
            raise ClusterUnavailableError(f"whether {owner} is gone is not known") from None
        return False

    async def _next_look(self, *, at_once: bool) -> None:
        if at_once:
            self._at_once.set()
        self._looked.clear()
        await self._looked.wait()

    def _bury(self, owner: str) -> None:
        if len(self._gone) >= _REMEMBERED:
            self._gone.clear()
        self._gone.add(owner)

    async def leave_soon(self) -> None:
        """Have the others know that our agents are theirs from now on; nobody waits for servers that are away."""
        self._ends = True
        self._entry = replace_entry(self._entry, leaving=True)
        self._at_once.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TELL_S):
                await self._told.wait()
        await self._engine.talk.tell("members", self.name.encode())

    def _turn(self, name: bytes, *, leaving: bool) -> None:
        """Hand our agents over or take our share again, where it is us who are told."""
        if name == self.name.encode() and not self._ends and leaving != self._entry.leaving:
            _log.info("cluster: member %s: %s", self.name, "drained" if leaving else "takes its share again")
            self._entry = replace_entry(self._entry, leaving=leaving)
            self._turned = True
            self._at_once.set()
            self.changed.set()

    def adopt(self, config: Config) -> None:
        """Go on with another list of agents."""
        self._entry = replace_entry(self._entry, content=content_of(config))
        self.changed.set()

    async def leave(self) -> None:
        """End the membership, when nothing is polled any more."""
        self.term.end()
        revision = self._revision  # 0 for who was struck out, and is no member again
        try:
            while revision:
                revision = await self._strike_ourselves(revision)
        except ClusterUnavailableError as error:
            _log.debug("cluster: leaving: %s", error)

    async def _strike_ourselves(self, revision: int) -> int:
        """Delete our lease; give the revision it has by now where a renewal came through that our end had cut off."""
        try:
            await self._engine.strike(self.name, revision)
        except ClusterConflictError:
            found = await self._engine.member(self.name)
            entry = None if found is None else entry_of(found.value)
            if found is not None and entry is not None and entry.term == self._entry.term:
                return found.revision
        return 0


def _new_name() -> str:
    return uuid.uuid4().hex[:12]
