"""What stands in an agent's journal: the agent as it is from then on, and what is to be published.

GUIDs and cookies are sealed with `cluster.key` (Fernet: AES-128-CBC and HMAC-SHA-256), each together with its work
number, so that nobody who can write there can give one agent's session to another.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from adapter.errors import ClusterError
from adapter.store.records import AgentRecord, CommandRecord, Outgoing

_VERSION: Final = 1


class _Secrets(msgspec.Struct, frozen=True, array_like=True):
    """What is sealed of an agent."""

    work_no: str
    guid: str | None
    guid_origin: str | None
    cookies: tuple[tuple[str, str], ...]


class Page(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of an agent's journal.

    Attributes:
        owner: Who wrote it and owns the agent since then, as ``member/term``; empty where nobody does.
        sealed: GUID and cookies.
        outgoing: What is to be published, and may have been.
        newest: The agent's newest event, where that is published and not in `outgoing`.
        settled: Commands that have their result by now, sealed.
        late: Up to which place what came late has been taken in.
    """

    version: int = _VERSION
    owner: str
    seq: int
    state: bytes
    own: bool = False
    stay_out: bool = False
    sealed: bytes
    outgoing: tuple[Outgoing, ...] = ()
    newest: bytes = b""
    settled: tuple[bytes, ...] = ()
    late: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Page)
_decode_command = msgspec.msgpack.Decoder(CommandRecord).decode
_decode_secrets = msgspec.msgpack.Decoder(_Secrets).decode


class Codec:
    """Writes and reads an agent's journal.

    Args:
        keys: The keys that seal, as `cluster.key` gives them: the first one is used, the others are known.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def proof(self) -> bytes:
        """Seal nothing, for others to see whether they have our key."""
        return self._fernet.encrypt(b"")

    def knows(self, proof: bytes) -> bool:
        """Say whether a proof was sealed with a key that we have."""
        try:
            self._fernet.decrypt(proof)
        except InvalidToken:
            return False
        return True

    def seal(self, agent: AgentRecord) -> bytes:
        """Seal what is secret of an agent."""
        return self._fernet.encrypt(
            _encode(_Secrets(agent.work_no, agent.guid, agent.guid_origin, agent.cookies)),
        )

    def seal_command(self, command: CommandRecord) -> bytes:
        """Seal a command: it may hold a GUID, or what a caller told."""
        return self._fernet.encrypt(_encode(command))

    def open_command(self, data: bytes) -> CommandRecord:
        """Read a command.

        Raises:
            ClusterError: It was sealed with another key.
        """
        try:
            return _decode_command(self._fernet.decrypt(data))
        except (InvalidToken, msgspec.DecodeError) as err:
            raise ClusterError("a command was sealed with another cluster.key") from err

    def write(  # noqa: PLR0913 - what a page has
        self,
        agent: AgentRecord,
        *,
        owner: str,
        sealed: bytes,
        outgoing: Sequence[Outgoing] = (),
        newest: bytes = b"",
        settled: Sequence[bytes] = (),
        late: int = 0,
    ) -> bytes:
        """Write a page.

        Args:
            agent: The agent as it is from now on.
            owner: Who owns it.
            sealed: What `seal` gave for it.
            outgoing: What is to be published.
            newest: The payload of its newest event, where that is published.
            settled: Commands that have their result now, as `seal_command` gives them.
            late: Up to which place what came late has been taken in.
        """
        return _encode(
            Page(
                owner=owner,
                seq=agent.seq,
                state=agent.state,
                own=agent.own,
                stay_out=agent.stay_out,
                sealed=sealed,
                outgoing=tuple(outgoing),
                newest=newest,
                settled=tuple(settled),
                late=late,
            )
        )

    @staticmethod
    def read(data: bytes) -> Page:
        """Read a page.

        Raises:
            ClusterError: It is none.
        """
        try:
            page = _decoder.decode(data)
        except msgspec.DecodeError as err:
            raise ClusterError("a page of the journal cannot be read") from err
        if page.version != _VERSION:
            raise ClusterError(f"a page of the journal is of version {page.version}: upgrade this member")
        return page

    def agent(self, work_no: str, page: Page) -> AgentRecord:
        """Read the agent as it was when a page was written.

        Raises:
            ClusterError: What is sealed was sealed with another key, or for another agent.
        """
        try:
            secrets = _decode_secrets(self._fernet.decrypt(page.sealed))
        except (InvalidToken, msgspec.DecodeError) as err:
            raise ClusterError(f"the GUID of agent {work_no} was sealed with another cluster.key") from err
        if secrets.work_no != work_no:
            raise ClusterError(f"the GUID in the journal of agent {work_no} is another agent's")
        return AgentRecord(
            work_no=work_no,
            guid=secrets.guid,
            guid_origin=secrets.guid_origin,
            cookies=secrets.cookies,
            seq=page.seq,
            state=page.state,
            own=page.own,
            stay_out=page.stay_out,
        )
