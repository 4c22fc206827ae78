"""Tokens a second of the sample stage against the same requests sent raw, on one real server.

    python benchmarks/generation.py [--prompts 32] [--k 4] [--max-tokens 64] [--rounds 2]

Starts one managed vLLM server on the embedded model, warms its prefix cache with every prompt, and
then takes turns: raw httpx requests, all in flight at once, and the sample stage (lean client,
window, call store on disk) with the same bodies. Answers are sampled, so lengths differ a little:
the figure is tokens a second, and the ratio stage / raw is what to quote.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from rlaif.callstore import CallStore
from rlaif.datasets import load_prompts
from rlaif.models import embedded
from rlaif.models.client import Bill
from rlaif.models.pool import ModelConfig, ModelPool
from rlaif.models.server import VLLMServer
from rlaif.models.server_settings import ServerConfig
from rlaif.progress import say
from rlaif.sample import sample
from rlaif.types import Prompt, Sampling


async def raw(server: VLLMServer, prompts: list[Prompt], k: int, max_tokens: int) -> float:
    """Tokens a second of plain HTTP requests, all in flight at once."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with httpx.AsyncClient(timeout=600, headers=headers) as http:

        async def one(prompt: Prompt) -> int:
            reply = await http.post(
                f"{server.base_url}/chat/completions",
                json={
                    "model": server.name,
                    "messages": [m.model_dump() for m in prompt.messages],
                    "n": k,
                    "max_tokens": max_tokens,
                    "temperature": 1.0,
                    "top_p": 1.0,
                },
            )
            reply.raise_for_status()
            tokens: int = reply.json()["usage"]["completion_tokens"]
            return tokens

        start = time.monotonic()
        tokens = sum(await asyncio.gather(*(one(p) for p in prompts)))
    return tokens / (time.monotonic() - start)


async def staged(server: VLLMServer, prompts: list[Prompt], k: int, max_tokens: int) -> float:
    """Tokens a second of the sample stage, with a fresh store."""
    with tempfile.TemporaryDirectory() as folder:
        store = CallStore(Path(folder) / "calls.sqlite")
        pool = ModelPool(store, Path(folder), {})
        bill = Bill()
        config = ModelConfig(model=f"{server.base_url}#{server.name}", concurrency=len(prompts))
        start = time.monotonic()
        async with pool.open(config, "policy.model", bill) as client:
            sampling = Sampling(max_tokens=max_tokens, temperature=1.0)
            await sample(prompts, k, sampling, client, lambda done, note="": None)
        seconds = time.monotonic() - start
        store.close()
    return bill.completion_tokens / seconds


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    prompts = list(load_prompts("everyday", args.prompts))
    weights = str(embedded.prepare(embedded.SMOLLM2, say))
    with tempfile.TemporaryDirectory() as folder:
        server = VLLMServer(
            weights, ServerConfig(max_model_len=2048), Path(folder) / "vllm.log", lambda line: None
        )
        await server.start()
        os.environ["RLAIF_HTTP_API_KEY"] = server.api_key
        try:
            await raw(server, prompts, args.k, 1)
            ratios = []
            print("| round | raw tok/s | sample stage tok/s | ratio |\n|---|---|---|---|")
            for number in range(1, args.rounds + 1):
                plain = await raw(server, prompts, args.k, args.max_tokens)
                ours = await staged(server, prompts, args.k, args.max_tokens)
                ratios.append(ours / plain)
                print(f"| {number} | {plain:.1f} | {ours:.1f} | {ratios[-1]:.3f} |", flush=True)
            print(f"\nmedian ratio {statistics.median(ratios):.3f}")
        finally:
            await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
