"""The JSON Schemas of schemas/: made from the types of `payloads`, and read again for whoever asks.

`python -m adapter.contracts DIRECTORY` writes them; a test fails when a file differs from its type.

Source:
    JSON Schema, draft 2020-12.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from adapter import payloads
from adapter.errors import StartError

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

PAYLOADS: Final[dict[str, type[msgspec.Struct]]] = {
    "event": payloads.EventPayload,
    "state": payloads.StatePayload,
    "session": payloads.SessionPayload,
    "info": payloads.InfoPayload,
    "roster": payloads.RosterPage,
    "health": payloads.HealthPayload,
    "log": payloads.LogPayload,
    "mark": payloads.MarkPayload,
    "calldata-command": payloads.CallDataCommand,
    "session-command": payloads.SessionCommand,
    "result": payloads.ResultPayload,
    "request": payloads.RequestPayload,
    "log-level-request": payloads.LogLevelRequest,
    "response": payloads.ResponsePayload,
    "diagnostics": payloads.DiagnosticsPayload,
}
"""The type of each payload, by the name of its schema."""


def make(name: str) -> dict[str, Any]:
    """Make the schema of a payload from its type."""
    kind = PAYLOADS[name]
    (root,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    body: dict[str, Any] = definitions.pop(root["$ref"].removeprefix("#/$defs/"))
    made = {"$schema": _DIALECT, "title": f"ccgateway2mqtt: {name}", **{k: v for k, v in body.items() if k != "title"}}
    if definitions:
        made["$defs"] = definitions
    return made


def directory() -> Path:
    """Find schemas/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "schemas"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "schemas"


def names() -> list[str]:
    """List the schemas that there are, and the AsyncAPI document of the topics."""
    return sorted(_files())


def read(name: str) -> str:
    """Read a schema.

    Raises:
        StartError: There is none of that name.
    """
    files = _files()
    if name not in files:
        raise StartError(f"schema {name}: unknown; there are {', '.join(sorted(files))}", exit_code=2)
    return files[name].read_text(encoding="utf-8")


def _files() -> dict[str, Path]:
    return {path.stem: path for path in directory().iterdir() if path.suffix in (".json", ".yaml")}


def write(target: Path) -> None:
    """Write all schemas of payloads into a directory."""
    for name in PAYLOADS:
        (target / f"{name}.json").write_text(json.dumps(make(name), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
