"""A small HTTP server that answers by script and remembers what it was sent."""

from __future__ import annotations

import http.server
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Script(NamedTuple):
    """One answer of the server."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012  never changed
    delay_s: float = 0.0
    cut: bool = False
    """Close the connection in the middle of the body."""


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]
    body: Any


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Script] = []
        self.rule: Callable[[Seen], Script] | None = None
        """Answers what the script does not."""
        self.seen: list[Seen] = []
        self.date = ""
        """What its clock says (empty: the time), in every answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: object) -> None:
        """A client that hangs up is what some tests are about; it needs no traceback."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        headers = {k.lower(): v for k, v in self.headers.items()}
        seen = Seen(self.path, headers, body)
        self.server.seen.append(seen)
        rule = self.server.rule
        script = rule(seen) if rule and not self.server.script else self.server.script.pop(0)
        time.sleep(script.delay_s)
        raw = script.body if isinstance(script.body, str) else json.dumps(script.body)
        self.send_response(script.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw.encode())))
        for name, value in script.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw.encode()[: 5 if script.cut else None])
        self.close_connection = True

    do_GET = do_POST

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.server.date or super().date_time_string(timestamp)

    def log_message(self, *args: object) -> None:
        pass


def credentials(seen: Seen) -> set[str]:
    """Versions of the anthropic SDK differ in which of the two headers carries an API key."""
    sent = (seen.headers.get("x-api-key"), seen.headers.get("authorization"))
    return {value.removeprefix("Bearer ") for value in sent if value is not None}


def completion(*texts: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": i,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
            }
            for i, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        **fields,
    }


def message(*texts: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text} for text in texts],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 7},
        **fields,
    }


def tool_call(*inputs: Any, name: str = "verdict", **fields: Any) -> dict[str, Any]:
    """A message of Anthropic's API that calls a tool, once for each of `inputs`."""
    blocks = [
        {"type": "tool_use", "id": f"toolu_{i}", "name": name, "input": given}
        for i, given in enumerate(inputs)
    ]
    return message(**{"content": blocks, "stop_reason": "tool_use", **fields})


def alternatives(*logprobs: tuple[str, float]) -> dict[str, Any]:
    """A choice's `logprobs` in OpenAI's API, with these alternatives of one token."""
    top = [{"token": token, "logprob": p, "bytes": None} for token, p in logprobs]
    return {"content": [{"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": top}]}


def error(kind: str, code: str | None = None, text: str = "no") -> dict[str, Any]:
    return {"error": {"message": text, "type": kind, "code": code}}
