"""The wall: a page that shows each agent as a tile, live from the broker, and what hands it out.

The page is static files and talks MQTT over websocket to the broker itself; what hands it out gives it its files and
`settings.json`, and knows nothing of agents. `run` does so at ``/wall/`` (`http.wall`), where whoever opens the page
enters a log-in of theirs; `demo` has a server of its own, which tells the page the log-in of the demonstration.

Rules of this package:
1. No file comes from anywhere else (no CDN): the content security policy forbids it.
2. Nothing from the wire becomes markup: the page sets text only, and the policy allows no inline script.
3. `run` never hands out a log-in: not the adapter's own, not any.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

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
    """What the page has to know; `settings.json` has these members.

    Attributes:
        broker: Where it finds the broker: ``ws://host:port/mqtt`` or ``wss://...``; `None` asks whoever opens it.
        prefix: `mqtt.topic_prefix`.
        ask: Whether it asks for a log-in, as it does where `broker` is `None`. Else it connects at once.
        username: What it logs in to the broker as where it does not ask; `None` for not at all.
        password: The password that belongs to it. Whoever can load the page can read it, so it is one that
            lives as short as a demonstration.
    """

    broker: str | None
    prefix: str = "agents"
    ask: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def files_directory() -> Path:
    """Name the directory of the page's files, for those who serve it themselves.

    They add a `settings.json` with the members of `Settings`.
    """
    return Path(__file__).parent


def render_policy(broker: str | None) -> str:
    """Render the content security policy: everything from here, and one connection more, to the broker.

    Where nobody has said which broker (`None`), a websocket may go anywhere: the viewer says where.

    Source: W3C, Content Security Policy Level 3, section 6. MQTT.js keeps its pings on time, also in a window
    that is not looked at, by a worker made of a blob.
    """
    address = urlsplit(broker or "")
    allowed = f"{address.scheme}://{address.netloc}" if broker else "ws: wss:"
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; worker-src blob:; "
        f"connect-src 'self' {allowed}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def routes(settings: Settings, *, at: str = "/", names: frozenset[str] | None = None) -> list[web.RouteDef]:
    """Make the routes that hand out the page.

    Args:
        settings: What the page is told.
        at: Where it is, with a slash at both ends; without the last one there is a redirect.
        names: The names that this server may be called by; a request for another is refused. Needed where
            `settings` hold a secret: else any page in the browser could have a name of its own pointed at us, and
            read it (DNS rebinding). `None` is any.
    """
    files = {
        path.name: (path.read_bytes(), _CONTENT_TYPES[path.suffix])
        for path in files_directory().iterdir()
        if path.suffix in _CONTENT_TYPES
    }
    told = asdict(settings)
    headers = {
        "Content-Security-Policy": render_policy(settings.broker),
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def answer(request: web.Request) -> web.Response:
        if names is not None and urlsplit(f"//{request.host}").hostname not in names:
            raise web.HTTPMisdirectedRequest(headers=headers)
        name = request.match_info["name"] or _INDEX
        if name == "settings.json":
            return web.json_response(told, headers=headers)
        if name not in files:
            raise web.HTTPNotFound(headers=headers)
        body, content_type = files[name]
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)

    async def redirect(_: web.Request) -> web.Response:
        # Relative, since a proxy may have the page at another place.
        raise web.HTTPFound(f"{at.rstrip('/').rpartition('/')[2]}/", headers=headers)

    return [web.get(f"{at}{{name:[^/]*}}", answer), *([web.get(at.rstrip("/"), redirect)] if at != "/" else [])]


@asynccontextmanager
async def serve(host: str, port: int, settings: Settings) -> AsyncIterator[str]:
    """Hand out the page for as long as the block lasts, and yield its address; only to who calls us `host` or loopback.

    Args:
        host: Where to listen, for example ``127.0.0.1``.
        port: The port; 0 for any that is free.
        settings: What the page is told.

    Raises:
        OSError: The port is in use.
    """
    app = web.Application()
    app.add_routes(routes(settings, names=frozenset({host, "127.0.0.1", "localhost", "::1"})))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}/"
    finally:
        await runner.cleanup()
