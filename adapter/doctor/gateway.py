"""A look at the gateway: reached as the adapter will, through the proxy too; its certificate; its clock.

No agent is asked for: a request of the address itself takes no event away and begins no session.
"""

import time
from email.utils import mktime_tz, parsedate_tz

import httpx

from adapter.config import GatewayConfig
from adapter.doctor.certificate import look_at_certificate, remedy_for
from adapter.doctor.finding import Finding
from adapter.gateway import tls_context
from adapter.transport import Common, Transport

TIMEOUT_S = 10.0
"""How long each step may take: well over what a poll allows itself for connecting."""
_MAX_BODY_BYTES = 1024 * 1024
_OFF_S = 5.0
"""How far clocks may be apart: a second is lost in the header, some in slow answers."""
_FAR_OFF_S = 150.0
"""Readers of `agents/bridge/health` take the adapter for dead from here on."""


async def look_at_gateway(config: GatewayConfig) -> list[Finding]:
    """Ask the gateway for its address, and see what comes."""
    url = httpx.URL(config.url)
    place = f"gateway {url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"
    common = Common(
        tls=tls_context(config),
        timeout_s=TIMEOUT_S,
        connect_timeout_s=TIMEOUT_S,
        max_body_bytes=_MAX_BODY_BYTES,
    )
    transport = Transport(url, common, None if config.proxy is None else httpx.URL(config.proxy))
    headers = {"Accept-Encoding": "identity", "User-Agent": "ccgateway2mqtt"}
    try:
        asked_at = time.time()
        response = await transport.handle_async_request(httpx.Request("GET", f"{config.url}/", headers=headers))
        answered_at = time.time()
        findings = [_reached(place, transport, config, response.status_code)]
        if transport.tls is not None:
            findings.append(look_at_certificate(transport.tls, common.tls, whose="gateway", key="gateway"))
        findings.append(_clock(response.headers.get("date"), asked_at, answered_at))
    except httpx.TransportError as error:
        return [_not_reached(place, transport, config, error)]
    finally:
        await transport.aclose()
    return findings


def _reached(place: str, transport: Transport, config: GatewayConfig, status: int) -> Finding:
    """Judge an answer: any but a server's own error will do, since the address itself is no page that must be there."""
    way = "" if config.proxy is None else "through the proxy, "
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Finding("warning", place, f"reached, {way}but it answers HTTP {status}", "see whether the gateway runs")
    if transport.tls is None:
        return Finding("warning", place, f"reached, {way}without TLS", "use https: GUIDs can be read on the way")
    return Finding("ok", place, f"reached, {way}{transport.tls.version()}")


def _not_reached(place: str, transport: Transport, config: GatewayConfig, error: httpx.TransportError) -> Finding:
    text = str(error) or type(error).__name__
    if transport.sending:
        return Finding("failed", place, f"reached, but: {text}", "see that gateway.url is the gateway's own address")
    if isinstance(error, httpx.ProxyError):
        return Finding("failed", place, text, "see gateway.proxy: its user, and whether it allows CONNECT to this port")
    where = "gateway.url" if config.proxy is None else "gateway.proxy"
    remedy = remedy_for(text, "gateway") or f"see {where}, and whether a firewall is in between"
    return Finding("failed", place, text, remedy)


def _clock(header: str | None, asked_at: float, answered_at: float) -> Finding:
    """Compare the clocks: the gateway's was read at some moment between the two, and is told in whole seconds."""
    place = "clock"
    parsed = None if header is None else parsedate_tz(header)
    try:
        told_at = None if parsed is None else mktime_tz(parsed)
    except (ValueError, OverflowError):  # no such date
        told_at = None
    if told_at is None:
        return Finding("ok", place, "not compared: the gateway does not tell its time")
    behind_s = told_at - answered_at
    ahead_s = asked_at - (told_at + 1)
    off_s = max(behind_s, ahead_s, 0.0)
    if off_s <= _OFF_S:
        return Finding("ok", place, f"within {_OFF_S:g} s of the gateway's")
    text = f"{off_s:.0f} s {'behind' if behind_s > ahead_s else 'ahead of'} the gateway's"
    remedy = "synchronise both by NTP: events carry the time of this machine"
    return Finding("failed" if off_s > _FAR_OFF_S else "warning", place, text, remedy)
