"""What judging costs on one real vLLM server with automatic prefix caching.

    python benchmarks/judging.py [--prompts 16 | --pairs FILE] [--rounds 3] [--parts 1234]

Starts a managed vLLM server on the embedded model and prints tables.

1. One pair at a time: the tokens that each verdict really makes the server compute (its own
   counters: prompt tokens less the prefix cache's hits), as a share of the first verdict's.
2. All in flight: comparisons a second, and prefill tokens a comparison, of our prompt order
   (`compare.j2`, principle last), of the usual one (principle first), and of verdicts written out
   in 256 tokens. A comparison is one pair under every principle in both orders.
3. Our prompts, sent in other sequences, with fewer in flight, and to vLLM's other endpoints.
4. Two servers side by side, whose key-value caches have blocks of 128 (vLLM's own choice on a CPU)
   and of 32 tokens. Only whole blocks are shared.

The prefix cache is emptied before every measurement. The ways of a table take turns, so that
noise falls on all of them; quote the ratios. CPU seconds are the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from rlaif.constitution import Principle, load_constitution
from rlaif.datasets import load_prompts
from rlaif.models import embedded
from rlaif.models.server import VLLMServer
from rlaif.models.server_settings import ServerConfig
from rlaif.progress import say
from rlaif.templates import Template
from rlaif.types import Message

HERE = Path(__file__).parent / "judging"
LABELS = ("A", "B")
ORDERS = ("forward", "swapped")
VARIABLES = {"conversation", "principle", "labels", "response_a", "response_b"}
ONE_TOKEN = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20, "temperature": 0.0}
FREE_TOKENS = 256
BLOCK_SIZES = (128, 32)
Body = dict[str, Any]
Send = Callable[[], Awaitable[Body]]
Messages = list[dict[str, str]]


class Pair(NamedTuple):
    """Two responses to one conversation."""

    conversation: tuple[Message, ...]
    first: str
    second: str


class Ask(NamedTuple):
    """One verdict to be asked for: indices of pair, order and principle, and the prompt."""

    pair: int
    order: int
    principle: int
    messages: Messages


class Cost(NamedTuple):
    """Counters of the server, or their growth over a measurement."""

    seconds: float
    cpu: float
    """CPU seconds of the server's processes: other work on the machine moves it less."""
    prompt: float
    """Prompt tokens of the finished requests."""
    prefill: float
    """Prompt tokens that were computed: looked up in the prefix cache and not found there."""
    generated: float


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """Plain requests to a managed server, and its counters."""

    def __init__(self, server: VLLMServer, http: httpx.AsyncClient) -> None:
        self.model = server.name
        self._managed = server
        self._http = http
        self._root = server.base_url.removesuffix("/v1")

    async def post(self, path: str, body: Body) -> Body:
        reply = await self._http.post(self._root + path, json={"model": self.model, **body})
        reply.raise_for_status()
        answer: Body = reply.json()
        return answer

    async def counters(self) -> Cost:
        text = (await self._http.get(f"{self._root}/metrics")).text

        def read(name: str) -> float:
            found = re.findall(rf"^vllm:{name}_total{{[^}}]*}} (\S+)$", text, re.MULTILINE)
            return sum(float(value) for value in found)

        prefill = read("prefix_cache_queries") - read("prefix_cache_hits")
        cpu = sum(cpu_seconds(pid) for pid in self._managed.pids)
        prompt, generated = read("prompt_tokens"), read("generation_tokens")
        return Cost(time.monotonic(), cpu, prompt, prefill, generated)

    async def measure(self, run: Callable[[], Awaitable[int]]) -> Cost:
        """What `run` costs. It returns the prompt tokens of its answers, and the counters are read
        when they have caught up with that."""
        before = await self.counters()
        start = time.monotonic()
        prompt = await run()
        seconds = time.monotonic() - start
        while True:
            after = await self.counters()
            grown = Cost(*(a - b for a, b in zip(after, before, strict=True)))
            if grown.prompt >= prompt:
                return grown._replace(seconds=seconds)
            await asyncio.sleep(0.01)

    async def forget(self) -> None:
        """Empty the prefix cache; it refuses for a moment while the last requests are let go."""
        while True:
            reply = await self._http.post(f"{self._root}/reset_prefix_cache")
            reply.raise_for_status()
            if reply.json()["success"]:
                return
            await asyncio.sleep(0.01)

    async def tokens(self, messages: Messages) -> list[int]:
        reply = await self.post("/tokenize", {"messages": messages})
        tokens: list[int] = reply["tokens"]
        return tokens


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with in common."""
    together = itertools.takewhile(lambda at: len(set(at)) == 1, zip(*prompts, strict=False))
    return sum(1 for _ in together)


def asks(template: Template, pairs: Sequence[Pair], principles: Sequence[Principle]) -> list[Ask]:
    """Every verdict, pair by pair, in each the forward order first."""
    found = []
    for i, pair in enumerate(pairs):
        for order in range(len(ORDERS)):
            a, b = (pair.first, pair.second) if order == 0 else (pair.second, pair.first)
            for j, principle in enumerate(principles):
                shown = {"conversation": pair.conversation, "response_a": a, "response_b": b}
                messages = template.render({**shown, "principle": principle, "labels": LABELS})
                found.append(Ask(i, order, j, [m.model_dump() for m in messages]))
    return found


async def in_flight(sends: Iterable[Send], at_once: int) -> int:
    """Prompt tokens of all answers; at most `at_once` requests are under way."""
    gate = asyncio.Semaphore(at_once)

    async def one(send: Send) -> int:
        async with gate:
            tokens: int = (await send())["usage"]["prompt_tokens"]
        return tokens

    return sum(await asyncio.gather(*(one(send) for send in sends)))


def chats(server: Server, wanted: Iterable[Ask], options: Body = ONE_TOKEN) -> list[Send]:
    """One chat request a verdict."""

    def send(ask: Ask) -> Send:
        return lambda: server.post("/v1/chat/completions", {"messages": ask.messages, **options})

    return [send(ask) for ask in wanted]


async def sampled_pairs(server: Server, count: int, tokens: int) -> list[Pair]:
    """Two sampled responses to each of the first prompts."""

    async def one(conversation: tuple[Message, ...]) -> Pair:
        messages = [m.model_dump() for m in conversation]
        options = {"n": 2, "max_tokens": tokens, "temperature": 1.0}
        reply = await server.post("/v1/chat/completions", {"messages": messages, **options})
        first, second = (choice["message"]["content"] for choice in reply["choices"])
        return Pair(conversation, first, second)

    return await asyncio.gather(*(one(p.messages) for p in load_prompts("everyday", count)))


def read_pairs(file: Path, count: int) -> list[Pair]:
    """The first rows of a JSONL file, gzipped or not, with `prompt`, `chosen` and `rejected`."""
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    pairs = []
    for line in text.decode().split("\n")[:count]:
        row = json.loads(line)
        asked = row["prompt"]
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        conversation = tuple(Message.model_validate(turn) for turn in turns)
        pairs.append(Pair(conversation, row["chosen"], row["rejected"]))
    return pairs


async def shares(server: Server, pairs: Sequence[Pair], principles: Sequence[Principle]) -> None:
    """Table 1."""
    computed: dict[tuple[int, int], list[float]] = {}
    shared: dict[str, list[int]] = {
        "in all": [],
        "shared by principles": [],
        "shared by both orders": [],
        "shared by pairs": [],
    }
    first_ever: list[int] = []
    for i, pair in enumerate(pairs):
        await server.forget()
        wanted = asks(Template("compare", VARIABLES), [pair], principles)
        for ask, send in zip(wanted, chats(server, wanted), strict=True):
            cost = await server.measure(partial(in_flight, [send], 1))
            computed.setdefault((ask.order, ask.principle), []).append(cost.prefill)
        tokens = {(a.order, a.principle): await server.tokens(a.messages) for a in wanted}
        first_ever = first_ever or tokens[0, 0]
        shared["in all"].append(len(tokens[0, 0]))
        shared["shared by principles"].append(shared_prefix([tokens[0, 0], tokens[0, 1]]))
        shared["shared by both orders"].append(shared_prefix([tokens[0, 0], tokens[1, 0]]))
        if i:
            shared["shared by pairs"].append(shared_prefix([tokens[0, 0], first_ever]))
    print("\n| order | principle | tokens computed | share of the first |\n|---|---|---|---|")
    first = statistics.mean(computed[0, 0])
    for (order, principle), counts in computed.items():
        mean = statistics.mean(counts)
        print(f"| {ORDERS[order]} | {principle + 1} | {mean:.0f} | {mean / first:.1%} |")
    added = [c for (_, principle), counts in computed.items() if principle for c in counts]
    print(f"\none more principle: {statistics.mean(added) / first:.1%} of the first verdict")
    for what, lengths in shared.items():
        if lengths:
            print(f"prompt tokens, {what}: {statistics.mean(lengths):.0f}")


class Way(NamedTuple):
    """One way to judge some pairs."""

    server: Server
    pairs: int
    run: Callable[[], Awaitable[int]]
    """Returns the prompt tokens of its answers."""


Ways = Mapping[str, Way]


async def take_turns(ways: Ways, rounds: int) -> None:
    """Prints a table of all ways. Ratios are to the first way in the same round; the median is
    quoted, with the rounds behind it."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds):
        # Every other round runs backwards, so that a slow drift falls on all alike.
        for name in list(ways)[:: -1 if number % 2 else 1]:
            await ways[name].server.forget()
            costs[name].append(await ways[name].server.measure(ways[name].run))
    print(
        "\n| | pairs | comparisons/s | ratio (rounds) | CPU s a comparison | ratio "
        "| prefill tokens a comparison | from the cache | generated |\n|" + "---|" * 9
    )
    base = next(iter(ways))
    per_s = {name: [ways[name].pairs / c.seconds for c in costs[name]] for name in ways}
    cpu = {name: [c.cpu / ways[name].pairs for c in costs[name]] for name in ways}
    for name, way in ways.items():
        faster = [mine / its for mine, its in zip(per_s[name], per_s[base], strict=True)]
        dearer = [mine / its for mine, its in zip(cpu[name], cpu[base], strict=True)]
        prompt = statistics.mean(c.prompt for c in costs[name]) / way.pairs
        prefill = statistics.mean(c.prefill for c in costs[name]) / way.pairs
        generated = statistics.mean(c.generated for c in costs[name]) / way.pairs
        print(
            f"| {name} | {way.pairs} | {statistics.median(per_s[name]):.3f} "
            f"| {statistics.median(faster):.2f} ({' '.join(f'{r:.2f}' for r in faster)}) "
            f"| {statistics.median(cpu[name]):.2f} | {statistics.median(dearer):.2f} "
            f"| {prefill:.0f} | {1 - prefill / prompt:.0%} | {generated:.0f} |",
            flush=True,
        )


def all_chats(
    server: Server, pairs: Sequence[Pair], wanted: Sequence[Ask], options: Body = ONE_TOKEN
) -> Way:
    """One chat request a verdict, all in flight at once."""
    sends = chats(server, wanted, options)
    return Way(server, len(pairs), lambda: in_flight(sends, len(sends)))


def templates_compared(
    server: Server, pairs: Sequence[Pair], principles: Sequence[Principle], free: int
) -> Ways:
    """Table 2."""
    last = asks(Template("compare", VARIABLES), pairs, principles)
    first = asks(Template(str(HERE / "principle_first.j2"), VARIABLES), pairs, principles)
    ways = {
        "principle first": all_chats(server, pairs, first),
        "principle last": all_chats(server, pairs, last),
    }
    if free:
        some = pairs[:free]
        text = asks(Template(str(HERE / "free_text.j2"), VARIABLES), some, principles)
        # Every answer has the full length: the figure is the price of a length, not of a taste.
        written = {"max_tokens": FREE_TOKENS, "temperature": 0.0, "ignore_eos": True}
        ways["principle last, as many verdicts"] = all_chats(
            server, some, [ask for ask in last if ask.pair < free]
        )
        ways[f"{FREE_TOKENS} tokens of text"] = all_chats(server, some, text, written)
    return ways


async def sendings_compared(
    server: Server, pairs: Sequence[Pair], principles: Sequence[Principle]
) -> Ways:
    """Table 3."""
    ours = asks(Template("compare", VARIABLES), pairs, principles)
    by_pair = chats(server, ours)
    opening = chats(server, [ask for ask in ours if ask.principle == 0])
    others = chats(server, [ask for ask in ours if ask.principle > 0])
    blocks = [ours[i : i + len(principles)] for i in range(0, len(ours), len(principles))]
    # Token ids are made before the clock runs; chat requests pay for theirs inside the server.
    ids = [[await server.tokens(ask.messages) for ask in block] for block in blocks]
    labels = [(await server.tokens([{"role": "user", "content": x}])) for x in LABELS]
    label_ids = next([a, b] for a, b in zip(*labels, strict=True) if a != b)

    async def two_waves() -> int:
        return await in_flight(opening, len(ours)) + await in_flight(others, len(ours))

    def at_most(number: int) -> Way:
        return Way(server, len(pairs), lambda: in_flight(by_pair, number))

    def each(path: str, bodies: Iterable[Body]) -> Way:
        def send(body: Body) -> Send:
            return lambda: server.post(path, body)

        sends = [send(body) for body in bodies]
        return Way(server, len(pairs), lambda: in_flight(sends, len(sends)))

    def scored(block: Sequence[list[int]]) -> Body:
        length = shared_prefix(block)
        query, items = block[0][:length], [tokens[length:] for tokens in block]
        # Its answer is the first label's share of the two: how much probability they held together
        # it does not say.
        return {"query": query, "items": items, "label_token_ids": label_ids}

    together = [{"messages": [ask.messages for ask in block], **ONE_TOKEN} for block in blocks]
    one_list = {
        "prompt": [tokens for block in ids for tokens in block],
        "max_tokens": 1,
        "logprobs": 20,
        "temperature": 0.0,
    }
    return {
        "pair by pair": at_most(len(ours)),
        "order by order": all_chats(server, pairs, sorted(ours, key=lambda ask: ask.order)),
        "principle by principle": all_chats(
            server, pairs, sorted(ours, key=lambda ask: ask.principle)
        ),
        "shuffled": all_chats(server, pairs, random.Random(0).sample(ours, len(ours))),
        "first principle of all, then the rest": Way(server, len(pairs), two_waves),
        "pair by pair, 16 in flight": at_most(16),
        "pair by pair, 4 in flight": at_most(4),
        "pair by pair, 1 in flight": at_most(1),
        "`/v1/chat/completions/batch`": each("/v1/chat/completions/batch", together),
        "`/v1/completions`, one list": each("/v1/completions", [one_list]),
        "`/generative_scoring`": each("/generative_scoring", map(scored, ids)),
    }


def blocks_compared(
    servers: Mapping[int, Server], pairs: Sequence[Pair], principles: Sequence[Principle]
) -> tuple[Ways, Ways]:
    """Table 4: one-token verdicts, and 64 tokens of text."""
    ours = asks(Template("compare", VARIABLES), pairs, principles)
    opening = [ask for ask in ours if ask.principle == 0]
    written = {"max_tokens": 64, "temperature": 0.0, "ignore_eos": True}
    names = {size: f"blocks of {size}" for size in servers}
    return (
        {names[n]: all_chats(server, pairs, ours) for n, server in servers.items()},
        {
            f"{names[n]}, text": all_chats(server, pairs, opening, written)
            for n, server in servers.items()
        },
    )


@asynccontextmanager
async def serving(block_size: int | None) -> AsyncIterator[Server]:
    weights = str(embedded.prepare(embedded.SMOLLM2, say))
    # Gives the server an endpoint that empties the prefix cache.
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    extra = () if block_size is None else ("--block-size", str(block_size))
    config = ServerConfig(max_model_len=2048, extra_args=extra)
    with tempfile.TemporaryDirectory() as folder:
        managed = VLLMServer(weights, config, Path(folder) / "vllm.log", lambda line: None)
        await managed.start()
        headers = {"Authorization": f"Bearer {managed.api_key}"}
        # vLLM closes a connection after 5 idle seconds, httpx too: whoever sends just then fails.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        try:
            async with httpx.AsyncClient(
                timeout=600, headers=headers, limits=limits, trust_env=False
            ) as http:
                yield Server(managed, http)
        finally:
            await managed.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16, help="one pair each")
    parser.add_argument("--pairs", type=Path, help="JSONL with prompt, chosen, rejected")
    parser.add_argument("--response-tokens", type=int, default=64, help="of sampled responses")
    parser.add_argument("--free-pairs", type=int, default=2, help="pairs with verdicts in text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block-size", type=int, help="vLLM's --block-size; none: as managed")
    parser.add_argument("--parts", default="123", help="which of the tables")
    args = parser.parse_args()
    principles = [p for name in ("hhh", "concise") for p in load_constitution(name)[0].principles]
    principles = principles[:4]

    async def some_pairs(server: Server) -> list[Pair]:
        if args.pairs is not None:
            return read_pairs(args.pairs, args.prompts)
        return await sampled_pairs(server, args.prompts, args.response_tokens)

    if set(args.parts) & set("123"):
        async with serving(args.block_size) as server:
            pairs = await some_pairs(server)
            print(f"{len(pairs)} pairs, {len(principles)} principles")
            if "1" in args.parts:
                await shares(server, pairs, principles)
            if "2" in args.parts:
                free = min(args.free_pairs, len(pairs))
                await take_turns(templates_compared(server, pairs, principles, free), args.rounds)
            if "3" in args.parts:
                await take_turns(await sendings_compared(server, pairs, principles), args.rounds)
    if "4" in args.parts:
        large, small = BLOCK_SIZES
        async with serving(large) as one, serving(small) as other:
            pairs = await some_pairs(one)
            for ways in blocks_compared({large: one, small: other}, pairs, principles):
                await take_turns(ways, args.rounds)


if __name__ == "__main__":
    asyncio.run(main())
