"""A server that answers chat completions at once, so that what a client costs is all that shows.

`python benchmarks/instant_server.py PORT`; `/stats` tells how many calls were answered, and how
many of them had been answered before (the same body again); `/reset` forgets them. Just enough
HTTP/1.1 for clients that keep their connections open.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast


def _completion(n: int) -> bytes:
    choice = {"finish_reason": "stop", "logprobs": None}
    text = "It answers what was asked, at some length."
    return json.dumps(
        {
            "id": "c-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "m",
            "choices": [
                {**choice, "index": i, "message": {"role": "assistant", "content": f"{text} {i}"}}
                for i in range(n)
            ],
            "usage": {
                "prompt_tokens": 20,
                "completion_tokens": 10 * n,
                "total_tokens": 20 + 10 * n,
            },
        }
    ).encode()


def _response(body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


ANSWERS = [_response(_completion(n)) for n in range(10)]
MODELS = _response(b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
seen: set[int] = set()
counts = {"answered": 0, "repeated": 0}


class Instant(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # (uvloop's transports are no subclass of asyncio's.)
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            self.transport.write(self.answer(head, body))

    def answer(self, head: bytes, body: bytes) -> bytes:
        if head.startswith(b"post"):
            counts["answered"] += 1
            counts["repeated"] += (name := hash(body)) in seen
            seen.add(name)
            at = body.find(b'"n":')
            return ANSWERS[int(body[at + 4 : at + 6].strip(b" ,}")) if at > 0 else 1]
        if b"/stats" in head:
            return _response(json.dumps(counts).encode())
        if b"/reset" in head:
            seen.clear()
            counts.update(answered=0, repeated=0)
        return MODELS


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Instant, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
