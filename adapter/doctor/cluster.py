"""A look at the servers of a fleet: reached, logged in, JetStream, room for the copies, and who is a member.

Nothing is made and nothing stored there: it is asked what is.
"""

from dataclasses import replace

import msgspec
import nats.errors

from adapter.answer import MAX_ANSWER_BYTES
from adapter.cluster import status
from adapter.cluster.servers import dial, hang_up, reason_of
from adapter.config import ClusterConfig, Config
from adapter.doctor.certificate import remedy_for
from adapter.doctor.finding import Finding
from adapter.errors import ClusterUnavailableError, StartError

_ASK_S = 5.0
_NAME = "ccgateway2mqtt-check"
_START = "start the other servers: most of them have to run"
_NO_QUORUM = 10008
"""What JetStream answers while most of its servers are away. Source: nats-server, `JSClusterNotAvailErr`."""
_MIB = 1024 * 1024
_PAGE_BYTES = 2 * MAX_ANSWER_BYTES
"""More than a page of a journal takes: an answer's event, and the agent as it is."""


class _Error(msgspec.Struct):
    description: str = ""
    err_code: int = 0


class _Account(msgspec.Struct):
    """What JetStream says of itself.

    Source:
        NATS documentation, "JetStream wire API Reference", `$JS.API.INFO`.
    """

    storage: int = 0
    error: _Error | None = None


async def look_at_cluster(config: Config, cluster: ClusterConfig) -> list[Finding]:
    """Log in beside the members, under a name of its own, and look."""
    place = "cluster servers"
    away: list[str] = []
    for url in cluster.urls:
        try:
            await hang_up(await dial(replace(cluster, urls=(url,)), _NAME))
        except ClusterUnavailableError as error:
            away.append(f"{url}: {error}")
        except StartError as error:
            remedy = "see cluster.username, cluster.password and cluster.credentials, and the users of the servers"
            return [Finding("failed", place, f"{url}: {str(error).removeprefix('cluster: ')}", remedy)]
    if len(away) == len(cluster.urls):
        remedy = remedy_for(away[0], "cluster") or "see cluster.url, whether they run, and a firewall in between"
        return [Finding("failed", place, "; ".join(away), remedy)]
    return [_reached(cluster, away), *await _look_inside(config, cluster)]


def _reached(cluster: ClusterConfig, away: list[str]) -> Finding:
    place, count = "cluster servers", len(cluster.urls)
    if away:
        text = f"logged in at {count - len(away)} of {count}; {'; '.join(away)}"
        return Finding("warning", place, text, remedy_for(away[0], "cluster") or "start them: the others have to do")
    if cluster.urls[0].startswith("nats://"):
        text = f"logged in at {'each' if count > 1 else 'it'}, without TLS"
        return Finding("warning", place, text, "use tls://: events can be read on the way")
    return Finding("ok", place, f"logged in at {'each' if count > 1 else 'it'}")


async def _look_inside(config: Config, cluster: ClusterConfig) -> list[Finding]:
    place = "cluster JetStream"
    try:
        client = await dial(cluster, _NAME)
        try:
            answer = await client.request("$JS.API.INFO", timeout=_ASK_S)
            servers, limit_bytes = len(client.servers), client.max_payload
        finally:
            await hang_up(client)
    except nats.errors.NoRespondersError as error:
        return [Finding("failed", place, reason_of(error), "switch it on at each server: jetstream {store_dir: ...}")]
    except (ClusterUnavailableError, nats.errors.Error, OSError) as error:
        return [Finding("failed", place, reason_of(error), _START)]
    account = msgspec.json.decode(answer.data, type=_Account)
    if account.error is not None:
        remedy = _START if account.error.err_code == _NO_QUORUM else "allow it to the account of this user"
        return [Finding("failed", place, account.error.description, remedy)]
    findings = [_jetstream(account.storage, limit_bytes)]
    try:
        fleet = await status.look(config)
    except StartError as error:
        if "there is no fleet" not in str(error):
            remedy = "see whether most of the servers run, and what this user may do"
            return [*findings, Finding("failed", "cluster members", str(error).removeprefix("cluster: "), remedy)]
        return [*findings, _room(cluster, servers), Finding("ok", "cluster members", "none yet")]
    return [*findings, _copies(cluster, fleet), _members(fleet)]


def _jetstream(stored_bytes: int, limit_bytes: int) -> Finding:
    """Look at what is stored, and at how large a message may be."""
    place, text = "cluster JetStream", f"there, {stored_bytes // _MIB} MB stored"
    if limit_bytes < _PAGE_BYTES:
        text += f"; takes messages of {limit_bytes / _MIB:.3g} MB, and an event may be larger"
        return Finding("warning", place, text, "max_payload: 8MB in the configuration of each server")
    return Finding("ok", place, text)


def _room(cluster: ClusterConfig, servers: int) -> Finding:
    """Compare the servers that are known with the copies that are wanted."""
    place, text = "cluster replicas", f"{cluster.replicas}, of {servers} servers that tell of one another"
    if servers < cluster.replicas:
        return Finding("failed", place, text, "add servers, or lower cluster.replicas")
    return Finding("ok", place, text)


def _copies(cluster: ClusterConfig, fleet: status.Status) -> Finding:
    """Look at the copies that there are."""
    place = "cluster replicas"
    behind = [each.name for each in fleet.servers if not each.in_step]
    text = f"stored on {len(fleet.servers)} servers, cluster.replicas is {cluster.replicas}"
    if len(fleet.servers) != cluster.replicas:
        return Finding("failed", place, text, "make them equal: nats stream edit, for each stream of the fleet")
    if behind:
        return Finding("warning", place, f"{text}; not in step: {', '.join(behind)}", "start them, and wait")
    return Finding("ok", place, text)


def _members(fleet: status.Status) -> Finding:
    """Look at who is there."""
    place, live = "cluster members", [each for each in fleet.members if each.live]
    others = [each.name for each in live if not each.same_configuration]
    text = ", ".join(f"{each.name} ({each.agents} agents)" for each in live) or "none"
    if others and len(others) == len(live):
        remedy = "give all members the same configuration and key, and have those that run reload it"
        return Finding("failed", place, f"{text}; with another configuration: {', '.join(others)}", remedy)
    if others:
        remedy = "have them reload"
        return Finding("warning", place, f"{text}; with another configuration: {', '.join(others)}", remedy)
    return Finding("ok", place, text)
