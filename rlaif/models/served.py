"""Servers that speak OpenAI's API and are not OpenAI: our managed vLLM, and everybody else's.

Through aiohttp and not through a vendor's SDK: a call costs a tenth of the CPU time, and an instant
server shows what remains (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from json import JSONDecodeError
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from rlaif.errors import CallError, CallTransient, SetupError
from rlaif.models.base import lower_names
from rlaif.models.names import quoted
from rlaif.models.openai_wire import SpeaksOpenAI, refusal

KEEP_IDLE_S = 2
"""uvicorn, under vLLM, closes a connection after 5 idle seconds: one that is kept as long is now
and then closed just as a request goes in."""


class ServedModel(SpeaksOpenAI):
    """Chat completions of one server."""

    official = False

    def __init__(
        self, name: str, *, identity: str, api_key: str, base_url: str, timeout_s: float
    ) -> None:
        super().__init__(name, identity, api_key)
        self._base = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._open: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        # Made by the first call, since it belongs to the event loop that runs then.
        if self._open is None:
            # A proxy from the environment stands between us and the world, not between us and us.
            local = urlsplit(self._base).hostname in ("127.0.0.1", "localhost", "::1")
            self._open = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_IDLE_S),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=30),
                headers={
                    "Authorization": f"Bearer {self._secret}",
                    "Content-Type": "application/json",
                },
                trust_env=not local,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._open

    async def check(self) -> None:
        try:
            status, _, raw = await self._send("GET", f"{self._base}/models", None)
        except CallTransient as e:
            raise SetupError(
                f"no server answers at {self._base}", fix="start it, or mend the address"
            ) from e
        if status == 401:
            raise SetupError(
                f"the server at {self._base} refuses the key", fix="set RLAIF_HTTP_API_KEY"
            )
        try:
            served = [str(model["id"]) for model in json.loads(raw)["data"]]
        except (ValueError, LookupError, TypeError):
            return  # not every compatible server lists its models
        if served and self._name not in served:
            raise SetupError(
                f"the server at {self._base} does not serve {self._name!r}",
                fix=f"it serves: {', '.join(served)}",
            )

    async def complete(self, body: Mapping[str, Any]) -> Any:
        return await self._post(body, f"{self._base}/chat/completions")

    async def first_tokens(self, texts: Sequence[str]) -> list[int] | None:
        """By `/tokenize`, which vLLM and some others serve; None where it is not to be had."""
        url = self._base.removesuffix("/v1") + "/tokenize"
        found: list[int] = []
        for text in texts:
            body = {"model": self._name, "prompt": text, "add_special_tokens": False}
            try:
                answer = await self._post(body, url)
            except (CallError, SetupError):
                return None
            match answer:
                case {"tokens": [int(first), *_]}:
                    found.append(first)
                case _:
                    return None
        return found

    async def aclose(self) -> None:
        if self._open is not None:
            await self._open.close()
            self._open = None

    async def _post(self, body: Mapping[str, Any], url: str) -> Any:
        """The JSON of a good answer. Raises as `ask` does."""
        raw_body = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        status, headers, raw = await self._send("POST", url, raw_body)
        if status != 200:
            said, code = _said(raw)
            said = quoted(f"{status}: {said}", self._secret)
            who = f"the server at {self._base}"
            raise refusal(status, said, code, headers, who=who, key="RLAIF_HTTP_API_KEY")
        try:
            return json.loads(raw)
        except (JSONDecodeError, UnicodeDecodeError) as e:
            raise CallTransient("the answer is not JSON") from e

    async def _send(
        self, method: str, url: str, body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            async with self._session.request(method, url, data=body) as response:
                raw = await response.read()
                headers = lower_names(response.headers)
                self.heard(headers)
                return response.status, headers, raw
        except (TimeoutError, aiohttp.ClientError, OSError) as e:
            said = quoted(str(e), self._secret)
            raise CallTransient(f"{type(e).__name__}: {said}".removesuffix(": ")) from e


def _said(raw: bytes) -> tuple[str, str | None]:
    """Message and code of an error's body, whatever its shape."""
    text = raw.decode(errors="replace")
    try:
        body = json.loads(text)
    except ValueError:
        return text, None
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        code = error.get("code")
        return str(error.get("message", text)), code if isinstance(code, str) else None
    return str(error), None
