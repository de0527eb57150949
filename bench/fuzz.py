"""A million payloads that anybody could publish on a command topic, and some thousand through the whole program.

```
tests.fuzz_support.check    <-  payloads of tests/corpus, cut, joined and spoilt: as values, on all cores
simulator, adapter, broker  <-  the same through MQTT: one answer each, no mistake in the log, no secret in a topic
```

It prints the seed, which can be given to have the same again, and the payload that broke a promise.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.broker_support import mosquitto
from tests.fuzz_support import AGENTS, STRANGERS, Shot, Target, check, spoilt

_CHUNK = 5000
_SAID_EVERY = 20


def _check_chunk(seed: int) -> str | None:
    """Check a chunk of payloads as values; gives what is wrong with the first that is."""
    for payload in itertools.islice(spoilt(random.Random(seed)), _CHUNK):  # noqa: S311 - to be had again
        try:
            check(payload)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            return f"{payload!r}: {type(error).__name__}: {error}"
    return None


def values(inputs: int, seed: int) -> bool:
    """Check payloads as values; give whether all is well."""
    chunks = -(-inputs // _CHUNK)
    began_at = time.monotonic()
    with multiprocessing.Pool() as pool:
        for number, wrong in enumerate(pool.imap(_check_chunk, range(seed, seed + chunks)), start=1):
            if wrong is not None:
                print(f"seed {seed}: {wrong}")
                return False
            if number % _SAID_EVERY == 0 or number == chunks:
                print(f"{number * _CHUNK:,} payloads, {time.monotonic() - began_at:.0f} s", file=sys.stderr, flush=True)
    return True


def _salvos(count: int, chance: random.Random) -> Iterator[list[Shot]]:
    """Make messages, so few at a time to each target that none is over the limit of C5."""
    payloads = spoilt(chance)
    while count > 0:
        places = [*AGENTS, *chance.sample(STRANGERS, 2)]
        salvo = [
            Shot(
                place=place,
                kind=chance.choice(["calldata", "calldata", "session"]),
                payload=next(payloads),
                qos=chance.randint(0, 1),
                correlation=chance.choice([None, b"c", b"c" * 5000]),
            )
            for place in places
        ]
        names = ("agents", "reload", "dance", "x" * 300)
        salvo += [Shot(place=chance.choice(names), kind="request", payload=next(payloads)) for _ in range(2)]
        count -= len(salvo)
        yield salvo


async def _fire(target: Target, shots: int, chance: random.Random) -> None:
    for salvo in _salvos(shots, chance):
        await target.fire(salvo)


def whole(shots: int, seed: int) -> bool:
    """Send payloads through the whole program; give whether all is well."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        directory = Path(name)
        (directory / "target").mkdir()
        with mosquitto(directory / "mosquitto") as broker, Target(broker, directory / "target") as target:
            try:
                asyncio.run(_fire(target, shots, random.Random(seed)))  # noqa: S311 - to be had again
                target.see_that_all_is_well()
            except (AssertionError, TimeoutError) as error:
                print(f"seed {seed}: {type(error).__name__}: {error}")
                return False
    return True


def main() -> int:
    """Run both; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="payloads as values (default %(default)s)")
    parser.add_argument("--messages", type=int, default=3000, help="through the whole program (default %(default)s)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"), help="to have it again")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    if not values(given.inputs, given.seed) or not whole(given.messages, given.seed):
        return 1
    print(f"{given.inputs:,} payloads as values and {given.messages:,} through the whole program: all is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
