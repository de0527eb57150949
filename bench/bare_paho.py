"""Messages published by paho alone, in its own thread, as a user would have it: `python -m bench.bare_paho`.

The messages are those that wait in a database of ours: the same topics, payloads, order and retained flags. They are
read into memory before it connects, so that only publishing is measured. It prints one line of JSON when they are
read, publishes once a line comes on its standard input, and then says when it began and when the last PUBACK came.
"""

import argparse
import json
import sqlite3
import sys
import threading
import time

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from adapter.event import mark_replayed
from bench.support import HOST

_START_S = 20.0
_AT_ONCE = 60_000
"""Messages that paho holds at most: it takes no more than there are packet identifiers, and drops the rest."""

_WAITING = "SELECT topic, stream_topic, payload FROM entry ORDER BY row"


def _messages(database: str) -> list[tuple[str, bytes, bool]]:
    """Read what the adapter will send: each event on its stream, then on its retained topic."""
    messages: list[tuple[str, bytes, bool]] = []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    for topic, stream_topic, stored in connection.execute(_WAITING):
        payload = mark_replayed(stored)
        messages += [(stream_topic, payload, False), (topic, payload, True)]
    connection.close()
    return messages


def _publish(port: int, messages: list[tuple[str, bytes, bool]], in_flight: int) -> None:
    connected, done, left = threading.Event(), threading.Event(), len(messages)
    room = threading.Semaphore(_AT_ONCE)

    def published(*_: object) -> None:
        nonlocal left
        left -= 1
        room.release()
        if not left:
            done.set()

    client = Client(CallbackAPIVersion.VERSION2, "bare-paho", protocol=MQTTProtocolVersion.MQTTv311)
    client.max_inflight_messages_set(in_flight)
    client.on_connect = lambda *_: connected.set()
    client.on_publish = published
    client.connect(HOST, port)
    client.loop_start()
    connected.wait(_START_S)
    began_at, began_cpu_s = time.monotonic(), time.process_time()
    for topic, payload, retain in messages:
        room.acquire()
        client.publish(topic, payload, qos=1, retain=retain)
    done.wait()
    ended_at, ended_cpu_s = time.monotonic(), time.process_time()
    print(json.dumps({"seconds": ended_at - began_at, "cpu_s": ended_cpu_s - began_cpu_s}), flush=True)
    client.disconnect()
    client.loop_stop()


def main() -> None:
    """Publish once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True, help="paho's max_inflight_messages")
    options = parser.parse_args()
    messages = _messages(options.database)
    print(json.dumps({"messages": len(messages)}), flush=True)
    sys.stdin.readline()
    _publish(options.port, messages, options.in_flight)


if __name__ == "__main__":
    main()
