"""The batch APIs of OpenAI and Anthropic on a local server: what a real one keeps, it keeps too, so
that a client that was killed finds it again. Faults on request."""

from __future__ import annotations

import http.server
import json
import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from local_server import completion, message


class Held(NamedTuple):
    """A batch that was submitted."""

    id: str
    created: float
    requests: dict[str, Any]
    """custom_id -> body."""
    metadata: dict[str, str]


class BatchServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, str] = {}
        self.batches: dict[str, Held] = {}
        self.submitted: Counter[str] = Counter()
        """custom_id -> how often it was submitted."""
        self.live = 0
        """Calls that came outside a batch."""
        self.polls = 0
        self.ready_after = 1
        """Looks at a batch until it has ended."""
        self.expires: set[str] = set()
        """Texts of calls that the batch leaves unanswered, the first time."""
        self.errors: dict[str, str] = {}
        """Text of a call -> kind of the error that it ends in."""
        self.failing: list[int] = []
        """HTTP statuses of the next requests, before any works."""
        self.drop_after_submit = False
        """The next submit arrives, and its answer does not."""
        self.lock = threading.Lock()
        self.clock = time.time()
        self.full = 0
        """Batches that may be at work at once; 0: any number. One too many fails as OpenAI's do."""
        self.refused: set[str] = set()
        self.live_from = 0.0
        """Until then (seconds since 1970) live calls are told to wait for a second."""
        self.submit_delay_s = 0.0
        self.live_at_once = self.most_live = 0
        self.live_delay_s = 0.0
        self.gone = False
        """It has no batch any more."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def text_of(self, body: Any) -> str:
        content = body["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(b["text"] for b in content)

    def handle_error(self, *args: object) -> None:
        """A client that is killed hangs up; it needs no traceback."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: BatchServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.route("")

    def do_POST(self) -> None:
        self.route(self.rfile.read(int(self.headers.get("content-length", 0))).decode())

    def route(self, raw: str) -> None:
        server, path = self.server, urlsplit(self.path).path
        if self.command == "POST" and path.endswith("/batches"):
            time.sleep(server.submit_delay_s)
        with server.lock:
            if server.failing:
                return self.reply(server.failing.pop(0), {"error": {"message": "busy"}})
            match (self.command, path.removeprefix("/v1/").split("/")):
                case ("POST", ["files"]):
                    name = f"file-{len(server.files)}"
                    start = raw.index('{"custom_id"')
                    server.files[name] = raw[start : raw.index("\r\n--", start)]
                    return self.reply(200, {"id": name, "object": "file"})
                case ("GET", ["files", name, "content"]):
                    return self.reply(200, server.files[name])
                case ("POST", ["batches"]):
                    body = json.loads(raw)
                    lines = server.files[body["input_file_id"]].splitlines()
                    rows = [json.loads(line) for line in lines]
                    requests = {row["custom_id"]: row["body"] for row in rows}
                    return self.submit(requests, body["metadata"], self.openai)
                case ("GET", ["batches"]):
                    newest = sorted(server.batches.values(), key=lambda b: -b.created)
                    data = [self.openai(held) for held in newest]
                    return self.reply(200, {"object": "list", "data": data, "has_more": False})
                case ("GET", ["batches", _] | ["messages", "batches", _]) if server.gone:
                    error = {"type": "not_found_error", "message": "no such batch"}
                    return self.reply(404, {"type": "error", "error": error})
                case ("GET", ["batches", name]):
                    return self.reply(200, self.openai(server.batches[name], poll=True))
                case ("POST", ["messages", "batches"]):
                    rows = json.loads(raw)["requests"]
                    requests = {row["custom_id"]: row["params"] for row in rows}
                    return self.submit(requests, {}, self.anthropic)
                case ("GET", ["messages", "batches"]):
                    newest = sorted(server.batches.values(), key=lambda b: -b.created)
                    data = [self.anthropic(held) for held in newest]
                    return self.reply(200, {"data": data, "has_more": False})
                case ("GET", ["messages", "batches", name]):
                    return self.reply(200, self.anthropic(server.batches[name], poll=True))
                case ("GET", ["messages", "batches", name, "results"]):
                    return self.reply(200, self.anthropic_results(server.batches[name]))
                case ("POST", ["messages"]):
                    shown = message(f"live {server.text_of(json.loads(raw))}")
                case ("POST", ["chat", "completions"]):
                    shown = completion(f"live {server.text_of(json.loads(raw))}")
                case _:
                    shown = None
            if shown is not None:
                if time.time() < server.live_from:
                    slower = {"error": {"message": "slow down"}}
                    return self.reply(429, slower, {"retry-after": "1"})
                server.live += 1
                server.live_at_once += 1
                server.most_live = max(server.most_live, server.live_at_once)
        if shown is not None:
            time.sleep(server.live_delay_s)
            with server.lock:
                server.live_at_once -= 1
            return self.reply(200, shown)
        return self.reply(404, {"error": {"message": f"no such path {path}"}})

    def submit(self, requests: dict[str, Any], metadata: dict[str, str], shown: Any) -> None:
        server = self.server
        server.clock += 1
        held = Held(f"batch_{len(server.batches)}", server.clock, requests, metadata)
        if server.full and sum(not self.ended(False) for _ in server.batches) >= server.full:
            server.refused.add(held.id)
        server.batches[held.id] = held
        server.submitted.update(requests.keys())
        if server.drop_after_submit:
            server.drop_after_submit = False
            self.close_connection = True
            self.connection.close()
            return
        self.reply(200, shown(held))

    def ended(self, poll: bool) -> bool:
        self.server.polls += poll
        return self.server.polls > self.server.ready_after

    def outcome(self, body: Any) -> str:
        """`ok`, `expired`, or the kind of an error."""
        text = self.server.text_of(body)
        return "expired" if text in self.server.expires else self.server.errors.get(text, "ok")

    def openai(self, held: Held, poll: bool = False) -> dict[str, Any]:
        ended = self.ended(poll)
        found: dict[str, Any] = {
            "id": held.id,
            "object": "batch",
            "created_at": int(held.created),
            "completion_window": "24h",
            "endpoint": "/v1/chat/completions",
            "input_file_id": "f",
            "metadata": held.metadata,
            "status": "in_progress",
        }
        if held.id in self.server.refused:
            error = {"code": "token_limit_exceeded", "message": "too many tokens on their way"}
            return {**found, "status": "failed", "errors": {"object": "list", "data": [error]}}
        if ended:
            good, bad = [], []
            for key, body in held.requests.items():
                match self.outcome(body):
                    case "ok":
                        answer = completion(f"batched {self.server.text_of(body)}")
                        response = {"status_code": 200, "body": answer}
                        good.append({"custom_id": key, "response": response, "error": None})
                    case "expired":
                        error = {"code": "batch_expired", "message": "not in time"}
                        bad.append({"custom_id": key, "response": None, "error": error})
                    case kind:
                        status = 400 if kind == "invalid_request_error" else 500
                        response = {"status_code": status, "body": {"error": {"message": kind}}}
                        bad.append({"custom_id": key, "response": response, "error": None})
            found["status"] = "expired" if self.server.expires else "completed"
            for name, rows in (("output_file_id", good), ("error_file_id", bad)):
                if rows:
                    random.Random(1).shuffle(rows)
                    found[name] = f"{held.id}-{name}"
                    text = "\n".join(json.dumps(row) for row in rows) + "\n"
                    self.server.files[found[name]] = text
        return found

    def anthropic(self, held: Held, poll: bool = False) -> dict[str, Any]:
        ended, calls = self.ended(poll), len(held.requests)
        counts = {"processing": 0 if ended else calls, "succeeded": calls if ended else 0}
        return {
            "id": held.id,
            "type": "message_batch",
            "created_at": datetime.fromtimestamp(held.created, UTC).isoformat(),
            "expires_at": datetime.fromtimestamp(held.created + 86400, UTC).isoformat(),
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "errored": 0, "canceled": 0, "expired": 0},
            "results_url": f"{self.server.url}/v1/messages/batches/{held.id}/results",
        }

    def anthropic_results(self, held: Held) -> str:
        rows = []
        for key, body in held.requests.items():
            match self.outcome(body):
                case "ok":
                    answer = message(f"batched {self.server.text_of(body)}")
                    result: dict[str, Any] = {"type": "succeeded", "message": answer}
                case "expired":
                    result = {"type": "expired"}
                case kind:
                    error = {"type": "error", "error": {"type": kind, "message": kind}}
                    result = {"type": "errored", "error": error}
            rows.append({"custom_id": key, "result": result})
        random.Random(1).shuffle(rows)
        return "\n".join(json.dumps(row) for row in rows) + "\n"

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        kind = "application/x-jsonl" if isinstance(body, str) else "application/json"
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: object) -> None:
        pass
