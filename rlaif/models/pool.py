"""From a model string to something that answers: providers, and the servers that we manage."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import Field

from rlaif.callstore import CallStore
from rlaif.errors import CallTransient, SetupError
from rlaif.models import embedded
from rlaif.models.base import ChatModel
from rlaif.models.batch import BatchConfig, BatchedModel
from rlaif.models.buckets import Pace
from rlaif.models.client import Bill, Client
from rlaif.models.fake import FakeModel
from rlaif.models.fleet import Fleet
from rlaif.models.gate import Gate
from rlaif.models.limits import Limiter, Limits
from rlaif.models.names import ANTHROPIC_KEY, ANTHROPIC_TOKEN, ModelName, api_key, parse_model
from rlaif.models.prices import Price, Usd
from rlaif.models.served import ServedModel
from rlaif.models.server import VLLMServer
from rlaif.models.server_settings import ServerConfig, ServerOutOfMemory
from rlaif.progress import Status, say
from rlaif.types import ChatReply, ChatRequest, Record

OPENAI_KEY = "OPENAI_API_KEY"
SMALLER = 3
"""How often a server that does not fit into the memory is tried with less."""


class ModelConfig(Record):
    """A model and how to ask it."""

    model: str
    """The model: vllm/ORG/NAME, vllm/./DIR, embedded/smollm2-135m-instruct, openai/NAME,
    anthropic/NAME, http://HOST:PORT/v1#NAME (several servers of one model:
    http://A:8000/v1,http://B:8000/v1#NAME), or fake/NAME."""
    concurrency: int = Field(default=64, ge=1)
    """Calls in flight at once."""
    attempts: int = Field(default=5, ge=1)
    """How often one call is tried before it counts as failed."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that one call may take."""
    usd_per_million_tokens: tuple[Usd, Usd] | None = None
    """What a million prompt tokens and a million completion tokens cost, in US dollars. None: as
    the table of prices says (see `rlaif plan`); where that knows none, the bill says so."""
    batch: BatchConfig | None = None
    """Ask in batches (OpenAI and Anthropic): half the price, answers within a day; none: live."""
    limits: Limits = Limits()
    """What the provider allows, and whether to find the best number of calls in flight."""
    server: ServerConfig = ServerConfig()
    """The vLLM server that we start, for vllm/… and embedded/…"""


def weights_of(model: str, field: str) -> str:
    """The folder or hub name to load weights from. Raises SetupError for models without any."""
    name = check_weights(model, field)
    if name.scheme == "embedded":
        return str(embedded.prepare(name.rest, Status()))
    return name.rest if name.directory is None else str(name.directory)


def check_weights(model: str, field: str) -> ModelName:
    """The parsed name of a model that training can start from; else SetupError."""
    name = parse_model(model, field)
    if not name.has_weights:
        raise SetupError(
            f"{model!r} gives no weights to train from",
            field=field,
            fix="name a model with weights there: vllm/ORG/NAME, vllm/./DIR or embedded/…",
        )
    check_model(model, field)
    return name


def check_model(model: str, field: str) -> None:
    """Raises SetupError for what can be known without asking, reading or starting the model: its
    string, its key, its folder."""
    name = parse_model(model, field)
    match name.scheme:
        case "fake":
            FakeModel(name.rest, field)
        case "openai":
            api_key(OPENAI_KEY, field=field)
        case "anthropic":
            api_key(ANTHROPIC_KEY, ANTHROPIC_TOKEN, field=field)
        case "embedded":
            embedded.identity(name.rest)
        case "vllm" if name.directory is not None:
            model_directory(name.directory, field)


def gives_logprobs(model: str, field: str) -> bool:
    """Whether models of this kind answer with log-probabilities, as far as its name tells."""
    name = parse_model(model, field)
    if name.scheme == "fake":
        return FakeModel(name.rest, field).gives_logprobs
    return name.scheme != "anthropic"


def max_n(model: str, field: str) -> int:
    """`ChatModel.max_n` of what a model string names, without importing a vendor's SDK."""
    return 1 if parse_model(model, field).scheme == "anthropic" else 128


def model_directory(directory: Path, field: str) -> Path:
    """`directory` if it holds a model; else SetupError."""
    if not (directory / "config.json").is_file():
        problem = "holds no model (no config.json)" if directory.is_dir() else "is not a folder"
        raise SetupError(
            problem, file=directory, field=field, fix="name a Hugging Face model folder"
        )
    return directory


def identity_of(name: ModelName, field: str) -> str:
    """What the call store knows the model by: content for local weights, the name otherwise."""
    if name.scheme == "embedded":
        return embedded.identity(name.rest)
    if name.directory is not None:
        return weights_identity(model_directory(name.directory, field))
    if name.scheme == "http":
        # The address is left out: the same model served elsewhere is the same model.
        return f"served/{name.rest}"
    return f"{name.scheme}/{name.rest}"


def weights_identity(directory: Path) -> str:
    """Identity of a local model folder: its content, wherever it lies."""
    return f"weights@{embedded.weights_fingerprint(directory)[:16]}"


def served_identity(identity: str, server: ServerConfig) -> str:
    """A precision or an argument of the server that the user chose can change the answers."""
    chosen = [f"dtype={server.dtype}"] if server.dtype != "auto" else []
    chosen += server.extra_args
    return f"{identity} ({' '.join(chosen)})" if chosen else identity


class ManagedModel(ChatModel):
    """A model on a vLLM server of ours, which starts when the first unanswered call comes."""

    gives_logprobs = True
    max_n = 128

    def __init__(
        self,
        identity: str,
        running: Callable[[VLLMServer | None], Awaitable[VLLMServer]],
        timeout_s: float,
    ):
        """`running` gives a server that answers, in place of one that may have died."""
        self.identity = identity
        self._running = running
        self._timeout_s = timeout_s
        self._server: VLLMServer | None = None
        self._inner: ServedModel | None = None
        self._before: list[ServedModel] = []
        self._looks: set[asyncio.Future[VLLMServer]] = set()
        """Of calls that have failed, at a server that may have died."""
        self._settled = False

    async def check(self) -> None:
        self._use(await self._running(None))

    def _use(self, server: VLLMServer) -> None:
        if server is self._server:
            return
        if self._inner is not None:
            # Calls of others may still be on their way through it.
            self._before.append(self._inner)
        self._server = server
        self._inner = ServedModel(
            self._server.name,
            identity=self.identity,
            api_key=self._server.api_key,
            base_url=self._server.base_url,
            timeout_s=self._timeout_s,
        )

    async def first_tokens(self, texts: Sequence[str]) -> list[int] | None:
        return await self._checked.first_tokens(texts)

    async def probe_logprobs(self) -> bool | None:
        return await self._checked.probe_logprobs()

    @property
    def _checked(self) -> ServedModel:
        assert self._inner is not None, "the client calls check() before it asks"
        return self._inner

    async def ask(self, request: ChatRequest) -> ChatReply:
        inner, server = self._checked, self._server
        inner.heard = self.heard
        try:
            return await inner.ask(request)
        except (CallTransient, SetupError) as failed:
            # No one should retry against a corpse. (And a stranger at the port of a server that is
            # gone may refuse our key.)
            if self._settled:
                raise
            look = asyncio.ensure_future(self._running(server))
            self._looks.add(look)
            try:
                self._use(await look)
            except asyncio.CancelledError:
                if self._settled:
                    raise failed from None
                raise
            finally:
                self._looks.remove(look)
            if self._server is not server:
                raise CallTransient("the vLLM server had died and was started again") from None
            raise

    async def settle(self) -> None:
        self._settled = True
        for look in self._looks:
            look.cancel()

    async def aclose(self) -> None:
        for inner in (*self._before, *([self._inner] if self._inner else [])):
            await inner.aclose()


Provider = Callable[[ModelConfig, str], ChatModel]


class ModelPool:
    """Opens models. A managed server stays up until another one is needed or `close_servers`:
    neither a GPU nor a small machine holds two. Stages at the same time share one."""

    def __init__(
        self, store: CallStore, logs: Path, extra: Mapping[str, Provider], gate: Gate | None = None
    ) -> None:
        """`extra` adds model schemes from higher floors: scheme -> provider. All calls pass the
        one `gate`; None: nothing is limited."""
        self._gate = gate or Gate()
        self._paces: dict[str, Pace] = {}
        """What a provider allows, it allows to all that ask one model."""
        self._starting = asyncio.Lock()
        self._serves: tuple[str, ServerConfig] | None = None
        self._restarts = 0
        self._looked: tuple[VLLMServer | None, float] = None, 0.0
        """Which server was found to answer, and when that look began."""
        self._store = store
        self._logs = logs
        self._extra = extra
        self._server: VLLMServer | None = None

    @asynccontextmanager
    async def open(self, config: ModelConfig, field: str, bill: Bill) -> AsyncIterator[Client]:
        """A client for `config.model`. `field` is where the string stands, for messages."""
        model = self._provider(config, field)
        client = Client(
            model,
            self._store,
            bill,
            concurrency=config.concurrency,
            attempts=config.attempts,
            limits=config.limits,
            pace=self._paces.setdefault(config.model, Pace()),
            gate=self._gate,
            price=self.price_of(config, field),
            field=field,
        )
        try:
            yield client
        finally:
            try:
                await client.drain()
            finally:
                await model.aclose()

    def price_of(self, config: ModelConfig, field: str) -> Price | None:
        """As `Gate.price_of`."""
        return self._gate.price_of(config.model, config.usd_per_million_tokens, field)

    def _provider(self, config: ModelConfig, field: str) -> ChatModel:
        scheme = config.model.partition("/")[0]
        if config.batch is not None and scheme not in ("openai", "anthropic"):
            raise SetupError(
                f"{config.model} has no batch API",
                field=f"{field.removesuffix('.model')}.batch",
                fix="leave it out; openai/… and anthropic/… have one",
            )
        if scheme in self._extra:
            return self._extra[scheme](config, field)
        name = parse_model(config.model, field)
        identity = identity_of(name, field)
        match name.scheme:
            case "fake":
                return FakeModel(name.rest, field)
            case "anthropic":
                # The SDKs are imported here because they take a second, which a run without them
                # must not pay.
                from rlaif.models.anthropic_messages import AnthropicModel

                variable, key = api_key(ANTHROPIC_KEY, ANTHROPIC_TOKEN, field=field)
                anthropic = AnthropicModel(
                    name.rest,
                    identity=identity,
                    timeout_s=config.timeout_s,
                    api_key=key if variable == ANTHROPIC_KEY else None,
                    auth_token=key if variable == ANTHROPIC_TOKEN else None,
                )
                if config.batch is None:
                    return anthropic
                limiter = self._live_limiter(config)
                return BatchedModel(anthropic, anthropic, self._store, config.batch, limiter)
            case "vllm" | "embedded":
                return ManagedModel(
                    served_identity(identity, config.server),
                    lambda before: self._running(config, field, before),
                    config.timeout_s,
                )
            case "http":
                served = [
                    ServedModel(
                        name.rest,
                        identity=identity,
                        api_key=os.environ.get("RLAIF_HTTP_API_KEY", "none"),
                        base_url=address,
                        timeout_s=config.timeout_s,
                    )
                    for address in name.base_urls
                ]
                if len(served) == 1:
                    return served[0]
                return Fleet(list(zip(name.base_urls, served, strict=True)))
            case "openai":
                from rlaif.models.openai_compatible import OpenAIModel

                _, key = api_key(OPENAI_KEY, field=field)
                openai = OpenAIModel(
                    name.rest,
                    identity=identity,
                    api_key=key,
                    timeout_s=config.timeout_s,
                )
                if config.batch is None:
                    return openai
                limiter = self._live_limiter(config)
                return BatchedModel(openai, openai, self._store, config.batch, limiter)

    def _live_limiter(self, config: ModelConfig) -> Limiter:
        """For the calls of a model in batches that are asked live."""
        pace = self._paces.setdefault(config.model, Pace())
        return Limiter(config.limits, concurrency=config.concurrency, pace=pace)

    async def _running(
        self, config: ModelConfig, field: str, before: VLLMServer | None
    ) -> VLLMServer:
        """A server that answers. `before` is the one whose call has failed: it is looked at, and
        if it has died another is started. Raises SetupError with its last words when that has been
        done `restarts` times."""
        now = asyncio.get_running_loop().time
        failed_at = now()
        # Two stages at work at the same time share one server; many calls fail with it.
        async with self._starting:
            server = self._server
            if before is None:
                weights = weights_of(config.model, field)
                wanted = (weights, config.server)
                if server is not None and self._serves == wanted:
                    return server
                await self.close_servers()
                self._serves = wanted
                return await self._started(config.server, weights, config.model)
            if server is not before and server is not None:
                return server
            looked, looked_at = self._looked
            if looked is before and looked_at >= failed_at:
                return before
            looked_at = now()
            if await before.is_serving():
                self._looked = before, looked_at
                return before
            if self._restarts >= config.server.restarts:
                before.check_alive()
                said = f"the vLLM server answers no more: {before.last_words()}"
                raise SetupError(said, fix=f"see {before.log}")
            self._restarts += 1
            say(
                f"the vLLM server has died ({before.last_words()[:200]}); starting it again, "
                f"{self._restarts} of {config.server.restarts} times"
            )
            await self.close_servers()
            return await self._started(before.config, before.weights, config.model)

    async def _started(self, config: ServerConfig, weights: str, model: str) -> VLLMServer:
        for tries_left in range(SMALLER, -1, -1):
            status = Status()
            server = VLLMServer(weights, config, self._logs / "vllm.log", status)
            say(f"starting a vLLM server for {model} (its log: {server.log})")
            start = time.monotonic()
            try:
                await server.start()
            except ServerOutOfMemory as e:
                if not tries_left:
                    raise
                status.end(f"it does not fit into the memory: trying with {e.said}")
                config = e.smaller
                continue
            self._server = server
            status.end(f"the server answers after {time.monotonic() - start:.0f} s")
            return server
        raise AssertionError("the last try returns or raises")

    async def close_servers(self) -> None:
        """Stops the server, if one is up, and returns when its memory is free."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
