"""The wall: a page that shows each agent as a tile, live from the broker, and the little server that hands it out.

The page is static files and talks MQTT over websocket to the broker itself; this server gives it its files and
`settings.json`, and knows nothing of agents.

Rules of this package:
1. No file comes from anywhere else (no CDN): the content security policy forbids it.
2. Nothing from the wire becomes markup: the page sets text only, and the policy allows no inline script.
3. aiohttp is imported in `serve` alone: whoever wants only the files needs nothing installed.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_CONTENT_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_INDEX = "index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the page has to know.

    Attributes:
        broker: Where it finds the broker: ``ws://host:port/mqtt`` or ``wss://...``.
        prefix: `mqtt.topic_prefix`.
        username: What it logs in to the broker as; `None` for not at all.
        password: The password that belongs to it. Whoever can load the page can read it, so it is one for
            dashboards, or one that lives as short as a demonstration.
    """

    broker: str
    prefix: str = "agents"
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def files_directory() -> Path:
    """Name the directory of the page's files, for those who serve it themselves.

    They add a `settings.json` with the members of `Settings`.
    """
    return Path(__file__).parent


def render_policy(broker: str) -> str:
    """Render the content security policy: everything from here, and one connection more, to the broker.

    Source: W3C, Content Security Policy Level 3, section 6. MQTT.js keeps its pings on time, also in a window
    that is not looked at, by a worker made of a blob.
    """
    address = urlsplit(broker)
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; worker-src blob:; "
        f"connect-src 'self' {address.scheme}://{address.netloc}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@asynccontextmanager
async def serve(host: str, port: int, settings: Settings) -> AsyncIterator[str]:
    """Hand out the page for as long as the block lasts, and yield its address.

    A request that calls this server by another name than `host` or the loopback's is refused: else any page in
    the browser could have a name of its own pointed at us, and read the settings (DNS rebinding).

    Args:
        host: Where to listen, for example ``127.0.0.1``.
        port: The port; 0 for any that is free.
        settings: What the page is told.

    Raises:
        OSError: The port is in use.
    """
    from aiohttp import web  # noqa: PLC0415 - rule 3 of this package

    files = {
        path.name: (path.read_bytes(), _CONTENT_TYPES[path.suffix])
        for path in files_directory().iterdir()
        if path.suffix in _CONTENT_TYPES
    }
    told = {
        "broker": settings.broker,
        "prefix": settings.prefix,
        "username": settings.username,
        "password": settings.password,
    }
    headers = {
        "Content-Security-Policy": render_policy(settings.broker),
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    names = {host, "127.0.0.1", "localhost", "::1"}

    async def answer(request: web.Request) -> web.Response:
        if urlsplit(f"//{request.host}").hostname not in names:
            raise web.HTTPMisdirectedRequest(headers=headers)
        name = request.match_info["name"] or _INDEX
        if name == "settings.json":
            return web.json_response(told, headers=headers)
        if name not in files:
            raise web.HTTPNotFound(headers=headers)
        body, content_type = files[name]
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)

    app = web.Application()
    app.router.add_get("/{name:[^/]*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}/"
    finally:
        await runner.cleanup()
