"""One agent's way: from the gateway's answers to the outbox, and back with commands.

```
poller     the loop: poll, take in, store, pause
signing    how a session begins and ends     mailbox   the call data that waits for polls
presence   what is known and published       session   the newest GUID, and its requests
pace       when the next request may start
```
"""
