"""Clients of a server: `python serving_client.py URL JSON`; for each line of stdin a round, and its numbers as a line of JSON.

As many clients as asked for send a prompt each, stream the answer and look at nothing but when its lines come; a round ends
when all have theirs. Reported are output tokens (as the server counts them), seconds, when first tokens came, the times between
tokens, and the processor time of this process: it shares the cores with the server.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import httpx


async def stream(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send one request; return when its pieces came, in seconds after it was sent."""
    start, times, tokens = time.perf_counter(), [], 0
    async with client.stream("POST", url, json=body) as response:
        if response.status_code != 200:
            sys.exit(f"{url}: {response.status_code} {(await response.aread()).decode()[:500]}")
        async for line in response.aiter_lines():
            if '"text"' in line or '"content"' in line:
                times.append(time.perf_counter() - start)
            if '"completion_tokens"' in line:
                usage = json.loads(line.removeprefix("data: ")).get("usage") or {}
                tokens = usage.get("completion_tokens", tokens)
    return {"times": times, "tokens": tokens or len(times), "counted": tokens > 0}


async def one_round(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    cpu, start = time.process_time(), time.perf_counter()
    answers = await asyncio.gather(*(stream(client, job["path"], {**job["body"], "prompt": p}) for p in job["prompts"]))
    seconds = time.perf_counter() - start
    gaps = [b - a for one in answers for a, b in zip(one["times"], one["times"][1:], strict=False)]
    return {
        "seconds": seconds,
        "tokens": sum(one["tokens"] for one in answers),
        "first": [one["times"][0] for one in answers if one["times"]],
        "gaps": gaps,
        "client": (time.process_time() - cpu) / seconds,
    }


async def main() -> None:
    base, job = sys.argv[1], json.loads(sys.argv[2])
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as client:
        await one_round(client, {**job, "prompts": job["prompts"][:1]})
        await one_round(client, job)
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await one_round(client, job)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
