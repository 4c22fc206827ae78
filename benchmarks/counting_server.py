"""An OpenAI-compatible server in a process of its own that answers by rule and counts every call.

    python benchmarks/counting_server.py LOG [--delay 0.05] [--port 0]

Prints its address, then serves until it is killed: `…/v1#policy` answers prompts, `…/v1#judge`
prefers the shorter response. The answers are those of `rlaif.models.fake`, so the same request has
the same answer in every process. LOG gets two lines a call, as JSON: one when the request has been
read, one when its answer has been sent in full. A process names itself by its API key
(RLAIF_HTTP_API_KEY), which reaches no file of a run, so every call is told to the process that made
it.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from rlaif.files import digest
from rlaif.models.fake import FakeModel
from rlaif.types import ChatReply, ChatRequest, Choice, Message, Sampling

MODELS = {"policy": FakeModel("policy"), "judge": FakeModel("shorter")}


def call_of(request: ChatRequest) -> str:
    """What the server can tell calls apart by: a digest of all that a request sends. The store's
    `seed` and `repeat` are not sent, so two stored calls may be one here."""
    plain = request.model_dump(mode="json", exclude={"repeat": True, "sampling": {"seed"}})
    return digest({**plain, "model": request.model.removeprefix("served/")})


def read(body: dict[str, Any]) -> ChatRequest:
    """The chat request that a body asks for."""
    shape = body.get("response_format")
    menu = shape["json_schema"]["schema"]["properties"]["verdict"]["enum"] if shape else ()
    return ChatRequest(
        model=body["model"],
        messages=tuple(Message.model_validate(m) for m in body["messages"]),
        sampling=Sampling(
            max_tokens=body["max_tokens"],
            temperature=body.get("temperature", 1.0),
            top_p=body.get("top_p", 1.0),
            n=body.get("n", 1),
            top_logprobs=body.get("top_logprobs", 0),
        ),
        menu=tuple(menu),
    )


def written(reply: ChatReply, request: ChatRequest) -> dict[str, Any]:
    """A reply as the body of a chat completion."""
    logprobs = request.sampling.top_logprobs > 0
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": request.model,
        "choices": [_choice(i, choice, logprobs) for i, choice in enumerate(reply.choices)],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
    }


def _choice(index: int, choice: Choice, logprobs: bool) -> dict[str, Any]:
    # Where the fake has nothing to weigh (our own check asks so) it is sure of its first word.
    first = [(t.token, t.logprob) for t in choice.first_token] or [(choice.text.split()[0], -0.01)]
    told = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in first]
    return {
        "index": index,
        "finish_reason": choice.finish_reason,
        "message": {"role": "assistant", "content": choice.text},
        "logprobs": {"content": [{**told[0], "top_logprobs": told}]} if logprobs else None,
    }


class Counting(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, log: TextIO, delay_s: float, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.delay_s = delay_s
        self._log = log
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def arrived(self, **fields: Any) -> int:
        with self._lock:
            number = next(self._numbers)
            self._write({"number": number, **fields})
            return number

    def sent(self, number: int) -> None:
        with self._lock:
            self._write({"number": number, "sent": time.monotonic()})

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def handle_error(self, *args: object) -> None:
        """A client that was killed hangs up: that is what this server is for."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Counting
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        listed = [
            {"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in MODELS
        ]
        self._answer(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.endswith("/chat/completions"):
            self._answer(404, {"error": {"message": "not here", "type": "invalid_request_error"}})
            return
        request = read(body)
        call = call_of(request)
        number = self.server.arrived(
            run=self.headers["authorization"].removeprefix("Bearer "),
            model=request.model,
            call=call,
            max_tokens=request.sampling.max_tokens,
        )
        reply = asyncio.run(MODELS[request.model].ask(request))
        # Half to one and a half of the delay, the same for the same call.
        time.sleep(self.server.delay_s * (0.5 + int(call[:4], 16) / 0xFFFF))
        self._answer(200, written(reply, request))
        self.server.sent(number)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds a call, on average")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    with args.log.open("a", encoding="utf-8") as log:
        server = Counting(log, args.delay, args.port)
        print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
