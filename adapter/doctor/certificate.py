"""What can be wrong with a certificate, and what to do about it."""

import ssl
import time
from typing import Any

from adapter.doctor.finding import Finding

_SOON_DAYS = 21
"""Who renews by hand needs some weeks; who has it done is renewed a month before the end."""
_DAY_S = 86_400

_REMEDIES = (
    ("mismatch", "use a name in {key}.url that the certificate holds, or have one issued for this name"),
    ("has expired", "renew it there"),
    ("not yet valid", "set the clock here, or there"),
    ("self-signed", "name the file of the authority that issued it in {key}.ca_file"),
    ("local issuer", "name the file of that authority in {key}.ca_file, or have the server send its whole chain"),
    ("certificate", "see which certificate is shown: openssl s_client -showcerts -connect HOST:PORT"),
)
"""What to do, by a part of what OpenSSL says."""


def remedy_for(error: str, key: str) -> str:
    """Say what to do about a connection that failed over TLS; empty where it did not.

    Args:
        error: What the port says.
        key: The configuration's section: ``gateway`` or ``mqtt``.
    """
    return next((remedy.format(key=key) for part, remedy in _REMEDIES if part in error), "")


def look_at_certificate(tls: ssl.SSLObject, trust: ssl.SSLContext, *, whose: str, key: str) -> Finding:
    """See how long the certificate that was shown is good, and its authority's where that is known here.

    Args:
        tls: A connection after its handshake.
        trust: What it was verified with.
        whose: ``gateway`` or ``broker``.
        key: The configuration's section.
    """
    place = f"{whose} certificate"
    shown: dict[str, Any] = tls.getpeercert() or {}
    if not shown:
        return Finding(
            "warning", place, f"not verified, {key}.verify is false", "trust it by its file in ca_file instead"
        )
    issuers: list[dict[str, Any]] = [each for each in trust.get_ca_certs() if each["subject"] == shown["issuer"]]
    authority_end = max((each["notAfter"] for each in issuers), key=_at, default=shown["notAfter"])
    end, first = min((shown["notAfter"], ""), (authority_end, "its authority is "), key=lambda each: _at(each[0]))
    days = int((_at(end) - time.time()) / _DAY_S)
    text = f"{first}good for {days} days, until {end}; issued by {_name(shown['issuer'])}"
    if days < _SOON_DAYS:
        return Finding("warning", place, text, "renew it before: no event comes after that")
    return Finding("ok", place, text)


def _at(end: str) -> float:
    return ssl.cert_time_to_seconds(end)


def _name(issuer: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """Take the most telling part of a distinguished name, made harmless for a terminal."""
    parts = {name: value for group in issuer for name, value in group}
    name = parts.get("commonName") or parts.get("organizationalUnitName") or parts.get("organizationName") or "nobody"
    return "".join(each if each.isprintable() else " " for each in name)[:80]
