"""What a user could pick instead: the least that does the job, written as well as its tools allow.

Each polls over TLS that it verifies, uses its connections again, waits P4's 200 to 500 ms, takes over a new GUID and
reads the JSON. None stores anything. The loops in Python and Go drop what they read; the Node-RED flow publishes it.
"""

__all__: list[str] = []
