"""A bare loop: aiohttp on uvloop, a task per agent: `python -m bench.rivals.aiohttp_loop`.

All agents share one session, whose connector has no limit: that costs less than a session for each (`--sessions` has
the other way, to compare). No cookies are kept, since none are given.
"""

import argparse
import asyncio
import contextlib
import json
import random
import ssl
import sys
from typing import NoReturn

import aiohttp
import uvloop

from bench.support import PAUSE_S, raise_file_limit

_HEADERS = {"Content-Type": "application/json; charset=UTF-8", "Accept-Encoding": "identity"}


def _session(tls: ssl.SSLContext, hold_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=2 * hold_s + 10),
    )


async def _poll(session: aiohttp.ClientSession, url: str, guid: str, delay_s: float) -> NoReturn:
    await asyncio.sleep(delay_s)
    while True:
        async with session.get(url, headers={**_HEADERS, "Guid": guid}) as response:
            answer = json.loads(await response.read())
            guid = response.headers.get("Set-GUID", guid).removeprefix("JSESSIONID=")
        if answer["retcode"] != "0":
            raise RuntimeError(f"the gateway refuses: {answer}")
        await asyncio.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - spreads requests, guards nothing


async def _run(url: str, ca_file: str, guids: dict[str, str], hold_s: float, *, sessions: bool) -> None:
    tls = ssl.create_default_context(cafile=ca_file)
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        shared = await stack.enter_async_context(_session(tls, hold_s))
        for place, (work_no, guid) in enumerate(guids.items()):
            session = await stack.enter_async_context(_session(tls, hold_s)) if sessions else shared
            agent_url = f"{url}/resource/agentevent/{work_no}"
            tasks.create_task(_poll(session, agent_url, guid, place / len(guids) * hold_s))


def main() -> None:
    """Poll until ended; one line of JSON on the standard input says whom."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hold", type=float, required=True)
    parser.add_argument("--sessions", action="store_true")
    options = parser.parse_args()
    raise_file_limit()
    gateway = json.loads(sys.stdin.readline())
    uvloop.run(_run(gateway["url"], gateway["ca_file"], gateway["guids"], options.hold, sessions=options.sessions))


if __name__ == "__main__":
    main()
