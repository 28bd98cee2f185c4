"""What a group costs between generator and learner: bytes on the wire, memory in Redis, time to encode and decode.

python -m benchmarks.transport                          # bytes and times
python -m benchmarks.transport --redis $REDIS_URL       # memory too: fills and removes a stream of its own
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common import connection
from common.trajectory import Finish, Group, Source, Trajectory, VersionSpan
from common.wire import decode_group, encode_group

KEY = "tributary:{benchmark-transport}:groups"
ROLLOUTS = 8
PROMPT_TOKENS = 160
MEAN_RESPONSES = (64, 512, 2048, 8192)
GROUPS = 64


def make_group(number: int, mean_response: int) -> Group:
    """A group as long reasoning makes it: eight rollouts of gamma-distributed length and one demonstration."""
    random = np.random.default_rng(number)
    prompt = random.integers(1, 150_000, PROMPT_TOKENS)
    members: list[Trajectory] = []
    for member in range(ROLLOUTS + 1):
        length = max(1, int(random.gamma(4.0, mean_response / 4.0)))
        written = Source.POLICY if member < ROLLOUTS else Source.DEMONSTRATION
        sampled = written is Source.POLICY
        members.append(
            Trajectory(
                tokens=np.concatenate([prompt, random.integers(1, 150_000, length)]).astype(np.int32),
                sources=np.array([Source.PROMPT] * PROMPT_TOKENS + [written] * length, dtype=np.uint8),
                behaviour_logprobs=-random.random(PROMPT_TOKENS + length).astype(np.float32),
                reward=float(random.integers(2)),
                finish=Finish.STOP if sampled else Finish.DEMONSTRATION,
                versions=(VersionSpan(7, PROMPT_TOKENS, PROMPT_TOKENS + length),) if sampled else (),
            )
        )
    return Group(f"r-{number:08d}", f"prompt-{number}", 3, "generator-1", tuple(members))


def milliseconds_each(call: Callable[[Any], object], arguments: Sequence[object]) -> float:
    """The mean time of one call."""
    began_s = time.perf_counter()
    for argument in arguments:
        call(argument)
    return 1e3 * (time.perf_counter() - began_s) / len(arguments)


async def memory_each(url: str, payloads: Sequence[bytes]) -> float:
    """The memory that each payload takes in a Redis stream, as MEMORY USAGE counts it."""
    redis: Any = connection.connect(url)
    try:
        for payload in payloads:
            await redis.xadd(KEY, {"payload": payload})
        held = await redis.memory_usage(KEY, samples=0)
        await redis.delete(KEY)
    finally:
        await redis.aclose()
    return held / len(payloads)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", metavar="URL", help="measure memory in this Redis too")
    url = parser.parse_args().redis
    print(f"{GROUPS} groups of {ROLLOUTS} rollouts and 1 demonstration, prompts of {PROMPT_TOKENS} tokens")
    print("mean response   tokens/group    bytes/group   per token   encode ms   decode ms   Redis bytes/group")
    for mean_response in MEAN_RESPONSES:
        groups = [make_group(number, mean_response) for number in range(GROUPS)]
        payloads = [encode_group(group) for group in groups]
        tokens = sum(len(t.tokens) for group in groups for t in group.trajectories) / GROUPS
        size = sum(map(len, payloads)) / GROUPS
        times = (milliseconds_each(encode_group, groups), milliseconds_each(decode_group, payloads))
        held = f"{asyncio.run(memory_each(url, payloads)):20,.0f}" if url else f"{'–':>20}"
        figures = f"{tokens:15,.0f}{size:15,.0f}{size / tokens:14.3f}{times[0]:12.3f}{times[1]:12.3f}"
        print(f"{mean_response:13,}{figures}{held}")


if __name__ == "__main__":
    main()
