"""The least that a person would write: an httpx client per agent, and a loop that polls: `python -m bench.bare_httpx`.

It keeps the gateway's rules as far as it must to be let in (pauses, the newest GUID), reads the JSON, and does nothing
with it: no outbox, no state, no broker, no retry. What the adapter costs more than this is the price of all of that.
"""

import argparse
import asyncio
import json
import random
import ssl
import sys
from typing import NoReturn

import httpx

from bench.support import raise_file_limit

_PAUSE_S = (0.205, 0.4)
_TIMEOUT_S = 20.0


async def _poll(url: str, guid: str, tls: ssl.SSLContext, delay_s: float) -> NoReturn:
    await asyncio.sleep(delay_s)
    async with httpx.AsyncClient(verify=tls, timeout=_TIMEOUT_S) as client:
        while True:
            headers = {"Content-Type": "application/json; charset=UTF-8", "Accept-Encoding": "identity", "Guid": guid}
            response = await client.get(url, headers=headers)
            answer = json.loads(response.content)
            if answer["retcode"] != "0":
                raise RuntimeError(f"the gateway refuses: {answer}")
            guid = response.headers.get("set-guid", f"JSESSIONID={guid}").removeprefix("JSESSIONID=")
            await asyncio.sleep(random.uniform(*_PAUSE_S))  # noqa: S311 - spreads requests, guards nothing


async def _run(url: str, ca_file: str, guids: dict[str, str], hold_s: float) -> None:
    tls = ssl.create_default_context(cafile=ca_file)
    async with asyncio.TaskGroup() as tasks:
        for place, (work_no, guid) in enumerate(guids.items()):
            agent_url = f"{url}/resource/agentevent/{work_no}"
            tasks.create_task(_poll(agent_url, guid, tls, place / len(guids) * hold_s))


def main() -> None:
    """Poll until ended; one line of JSON on the standard input says whom."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hold", type=float, required=True)
    options = parser.parse_args()
    raise_file_limit()
    gateway = json.loads(sys.stdin.readline())
    asyncio.run(_run(gateway["url"], gateway["ca_file"], gateway["guids"], options.hold))


if __name__ == "__main__":
    main()
