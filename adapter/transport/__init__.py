"""One agent's HTTP/1.1 connection to the gateway, below httpx's interface.

```
httpx.Request -> single -> wire (TLS, socket) ~ ~ gateway ~ ~ wire -> reading (llhttp) -> httpx.Response
```

Why not httpx's own: an idle agent is one connection and one request in ten seconds, thousands of times over. A pool, a
lock and three streams for each cost several times what the request itself does (bench/README.md), and httpcore takes
what it has read beyond an answer for the next one (encode/httpcore issue 872).

Rules of this package:
1. What is not understood ends the connection. Nothing is sent twice.
2. No answer outlives its request: what comes unasked ends the connection before the next request is written, and so
   does the gateway's closing it. A request's first byte goes out on a connection that was whole at that moment.
3. What an answer may hold is bounded: its head, its body, and what is wrapped around them.
4. No error quotes a byte that came: a GUID may be in it.
5. Nothing here knows of agents, sessions or pauses.

Source: RFC 9110 and RFC 9112 (HTTP/1.1); the parser is llhttp's, as Node.js has it.
"""

from adapter.transport.common import Common, Permit
from adapter.transport.single import Transport

__all__ = ["Common", "Permit", "Transport"]
