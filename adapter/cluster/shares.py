"""Who should have which agent: rendezvous hashing over the members. Pure: all members come to the same shares.

Each agent goes to the member that has the highest hash with it. A member more takes its share from all others, one
less leaves its share to all others, and no agent moves between two that stay.

Source:
    D. Thaler, C. Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996.
"""

import hashlib
from collections.abc import Iterable


def assigned(work_no: str, members: Iterable[str]) -> str | None:
    """Say whose an agent should be; `None` where there is no member."""
    return max(members, key=lambda member: (_weight(member, work_no), member), default=None)


def shares(work_nos: Iterable[str], members: Iterable[str]) -> dict[str, str]:
    """Assign agents to members, of which there is one at least."""
    hashes = {member: hashlib.blake2b(member.encode(), digest_size=8) for member in members}
    found: dict[str, str] = {}
    for work_no in work_nos:
        encoded = work_no.encode()
        best, weight = "", b""
        for member, prepared in hashes.items():
            hashed = prepared.copy()
            hashed.update(b"/" + encoded)
            digest = hashed.digest()
            if (digest, member) > (weight, best):
                best, weight = member, digest
        found[work_no] = best
    return found


def _weight(member: str, work_no: str) -> bytes:
    return hashlib.blake2b(f"{member}/{work_no}".encode(), digest_size=8).digest()
