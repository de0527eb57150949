"""Pages of a journal: what is written is read, by who has the key, and of whom it is (issue 6, point 2)."""

import base64
import contextlib
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.cluster import codec as codec_module
from adapter.cluster.codec import Codec, Page
from adapter.errors import ClusterError
from adapter.store.records import AgentRecord, CommandRecord, Outgoing
from tests.cluster_support import KEY
from tests.hypothesis_support import patient

OTHER_KEY = base64.urlsafe_b64encode(bytes(32)).decode()
TEXTS = st.text(max_size=20)
RECORDS = st.builds(
    AgentRecord,
    work_no=st.text(min_size=1, max_size=8),
    guid=st.none() | TEXTS,
    guid_origin=st.none() | TEXTS,
    cookies=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
    seq=st.integers(0, 2**62),
    state=st.binary(max_size=30),
    own=st.booleans(),
    stay_out=st.booleans(),
)
OUTGOING = st.builds(
    Outgoing,
    topic=TEXTS,
    payload=st.binary(max_size=30),
    retain=st.booleans(),
    stream_topic=st.none() | TEXTS,
    correlation=st.none() | st.binary(max_size=10),
)
RECORD = AgentRecord(work_no="101", guid="g", cookies=(("a", "b"),), seq=7)


@given(RECORDS, TEXTS, st.lists(OUTGOING, max_size=3), st.binary(max_size=20), st.lists(st.binary(), max_size=2))
@patient
def test_what_is_written_is_read(
    record: AgentRecord, owner: str, outgoing: list[Outgoing], newest: bytes, settled: list[bytes]
) -> None:
    """Point 2: a successor has GUID, cookies, `seq`, state and all that is to be published as its predecessor had."""
    codec = Codec([KEY])

    page = codec.read(
        codec.write(record, owner=owner, sealed=codec.seal(record), outgoing=outgoing, newest=newest, settled=settled)
    )

    assert codec.agent(record.work_no, page) == record
    assert (page.owner, page.newest) == (owner, newest)
    assert (list(page.outgoing), list(page.settled)) == (outgoing, settled)


@given(st.binary(max_size=40))
@patient
def test_what_is_no_page_is_refused(data: bytes) -> None:
    """Point 2: whatever lies in a journal, reading it ends in a page or in an error that says so."""
    with contextlib.suppress(ClusterError):
        assert isinstance(Codec.read(data), Page)


def test_a_page_of_another_version_is_refused() -> None:
    """Point 2: what a newer member has written is not guessed at."""
    page = Codec.read(Codec([KEY]).write(RECORD, owner="a/1", sealed=b""))
    data = msgspec.msgpack.encode(msgspec.structs.replace(page, version=codec_module._VERSION + 1))

    with pytest.raises(ClusterError, match="is of version 2: upgrade this member"):
        Codec.read(data)


def test_another_agents_session_is_refused() -> None:
    """Point 2: who can write to the journals cannot give one agent's session to another."""
    codec = Codec([KEY])
    page = codec.read(codec.write(RECORD, owner="a/1", sealed=codec.seal(replace(RECORD, work_no="102"))))

    with pytest.raises(ClusterError, match="the GUID in the journal of agent 101 is another agent's"):
        codec.agent("101", page)


@given(st.integers(0, 1_000), st.integers(0, 7))
@patient
def test_a_changed_seal_is_refused(place: int, bit: int) -> None:
    """Point 2: one bit changed anywhere, and nothing of it is believed."""
    codec = Codec([KEY])
    sealed = bytearray(base64.urlsafe_b64decode(codec.seal(RECORD)))
    sealed[place % len(sealed)] ^= 1 << bit
    page = codec.read(codec.write(RECORD, owner="a/1", sealed=base64.urlsafe_b64encode(sealed)))

    with pytest.raises(ClusterError, match=r"sealed with another cluster\.key"):
        codec.agent("101", page)


def test_keys_can_be_changed() -> None:
    """Point 2: what an old key has sealed is read with the new one before it; who has another key reads nothing."""
    before, during, after = Codec([KEY]), Codec([OTHER_KEY, KEY]), Codec([OTHER_KEY])
    old, new = before.seal(RECORD), during.seal(RECORD)
    command = CommandRecord(work_no="101", kind="session", id="1", body=b"b", received_at=0.0, expires_at=None)

    for codec, sealed in ((before, old), (during, old), (during, new), (after, new)):
        assert codec.agent("101", codec.read(codec.write(RECORD, owner="", sealed=sealed))) == RECORD
    with pytest.raises(ClusterError, match=r"cluster\.key"):
        after.agent("101", after.read(after.write(RECORD, owner="", sealed=old)))
    assert during.open_command(before.seal_command(command)) == command
    with pytest.raises(ClusterError, match=r"cluster\.key"):
        after.open_command(before.seal_command(command))
    assert during.knows(before.proof())
    assert not after.knows(before.proof())
