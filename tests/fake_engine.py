"""A deterministic engine with the surface of services.generator.engine.Engine, and a generator process that runs on it.

Responses are digits after a `#`, decided by prompt and member alone. Run as a program (`python -m fake_engine
RUN_FILE --name NAME`) it is a whole generator service, paced by $FAKE_TOKEN_S.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import numpy as np
from tiny_tokenizer import ALPHABET, EOS

from common.tensor_file import TensorFile
from common.trajectory import Finish, Logprobs, Tokens, VersionSpan
from services.generator.engine import Completion, EngineDead, EngineError, EngineStatistics, WeightUpdateFailed
from services.generator.engine_settings import EngineSettings
from services.generator.weight_update import AnyUpdate, WeightUpdate

ROOT = Path(__file__).resolve().parents[1]
POISON = ALPHABET.index("z") + 3
"""A prompt with this token kills the engine."""
UNSTABLE = ALPHABET.index("y") + 3
"""After this token the log-probs are not finite."""
VOCABULARY = len(ALPHABET) + 3


def encode(text: str) -> Tokens:
    """Text in the tiny tokenizer's tokens."""
    return np.array([ALPHABET.index(character) + 3 for character in text], np.int32)


def decode(tokens: Tokens) -> str:
    """Tokens as text, special ones left out."""
    return "".join(ALPHABET[token - 3] for token in tokens.tolist() if token >= 3)


def response_to(prompt: Tokens | list[int], member: int) -> Tokens:
    """What the fake policy answers: `abc#` and the last digit of (sum of the prompt's tokens + member), then EOS."""
    digit = (int(np.sum(np.asarray(prompt))) + member) % 10
    return np.array([*encode(f"abc#{digit}"), EOS], np.int32)


class FakeEngine:
    """Samples one token every `token_s` seconds and member, and scores a sequence in `score_s`.

    `calls`: (prompt, n, temperature, max_tokens) of each `sample`. `scored`: (sequence, start) of each `score`.
    `wrong_by`: by how much the next urgent scores, one after another, are off.
    """

    def __init__(self, *, context: int = 64, version: int = 0, token_s: float = 0.0, score_s: float = 0.0) -> None:
        self.version = version
        self.healthy = True
        self.max_model_len = context
        self.calls: list[tuple[list[int], int, float, int]] = []
        self.scored: list[tuple[list[int], int]] = []
        self.applied: list[int] = []
        self.updates: list[WeightUpdate] = []
        self.wrong_by: list[float] = []
        self.broken_updates = 0
        self.closed = False
        self._token_s, self._score_s = token_s, score_s
        self._running = 0
        self._tokens = 0
        self._death = asyncio.Event()
        self._resumed = asyncio.Event()
        self._resumed.set()

    @classmethod
    async def start(cls, settings: EngineSettings) -> FakeEngine:
        """An engine paced by the environment."""
        await asyncio.sleep(float(os.environ.get("FAKE_START_S", "0")))
        token_s, score_s = (float(os.environ.get(name, "0")) for name in ("FAKE_TOKEN_S", "FAKE_SCORE_S"))
        return cls(token_s=token_s, score_s=score_s, context=settings.max_model_len or 64)

    @property
    def statistics(self) -> EngineStatistics:
        """What it is doing."""
        return EngineStatistics(self._running, 0, self._tokens, 0, 0.0)

    def pause(self) -> None:
        """Sample nothing until `resume`."""
        self._resumed.clear()

    def resume(self) -> None:
        """Go on."""
        self._resumed.set()

    def die(self) -> None:
        """Be dead."""
        self._death.set()

    async def sample(
        self, prompt_tokens: Tokens | list[int], *, n: int, temperature: float, max_tokens: int, request_id: str
    ) -> list[Completion]:
        """n responses, each token under the version that is held while it is sampled."""
        prompt = self._checked(prompt_tokens)
        self.calls.append((prompt, n, temperature, max_tokens))
        wanted = [self.respond(prompt, 0 if temperature == 0 else member)[:max_tokens] for member in range(n)]
        versions: list[int] = []
        self._running += n
        try:
            for _ in range(max(len(tokens) for tokens in wanted)):
                await asyncio.sleep(self._token_s)
                await self._resumed.wait()
                if self._death.is_set():
                    raise EngineDead("the engine core is gone: restart this generator")
                versions.append(self.version)
                self._tokens += n
        finally:
            self._running -= n
        return [_completion(tokens, versions) for tokens in wanted]

    async def score(self, tokens: Tokens | list[int], start: int, *, urgent: bool = False) -> Logprobs:
        """Minus a hundredth of each token's id, and what `wrong_by` says more. Urgent ones pass a paused engine."""
        sequence = self._checked(tokens)
        self.scored.append((sequence, start))
        await asyncio.sleep(self._score_s)
        if not urgent:
            await self._resumed.wait()
        if self._death.is_set():
            raise EngineDead("the engine core is gone: restart this generator")
        wrong_by = self.wrong_by.pop(0) if urgent and self.wrong_by else 0.0
        return np.asarray(sequence[start:], np.float32) / np.float32(-100) + np.float32(wrong_by)

    def respond(self, prompt: list[int], member: int) -> Tokens:
        """What a member of a draw answers."""
        return response_to(prompt, member)

    def _checked(self, tokens: Tokens | list[int]) -> list[int]:
        sequence: list[int] = np.asarray(tokens).tolist()
        if POISON in sequence:
            self.die()
        if UNSTABLE in sequence:
            raise EngineError(f"1 log-probs are not finite, the first at position {sequence.index(UNSTABLE)}")
        if max(sequence) >= VOCABULARY:
            raise EngineError(f"token id {max(sequence)} does not fit a vocabulary of {VOCABULARY}")
        return sequence

    async def apply(self, update: AnyUpdate) -> float:
        """Hold another version. `broken_updates` more of them break half-way; tensors called `foreign` are refused."""
        assert isinstance(update, WeightUpdate), "no broadcast reaches this engine"
        names = sorted(TensorFile(update.path).layouts)
        if names == ["foreign"]:
            raise WeightUpdateFailed(
                f"version {update.version} is refused, version {self.version} stays: other tensors"
            )
        self.updates.append(update)
        if self.broken_updates:
            self.broken_updates -= 1
            self.healthy = False
            raise WeightUpdateFailed(f"loading version {update.version} failed")
        if not self.healthy and update.changed is not None:
            raise WeightUpdateFailed(f"version {update.version}: the engine holds mixed weights")
        self.healthy, self.version = True, update.version
        self.applied.append(update.version)
        return 0.01

    async def until_dead(self) -> None:
        """Raise EngineDead once it is dead."""
        await self._death.wait()
        if not self.closed:
            raise EngineDead("the engine core ended unexpectedly: restart this generator")

    async def close(self) -> None:
        """End."""
        self.closed = True


def _completion(tokens: Tokens, versions: list[int]) -> Completion:
    spans: list[VersionSpan] = []
    for position, version in enumerate(versions[: len(tokens)]):
        if spans and spans[-1].version == version:
            spans[-1] = VersionSpan(version, spans[-1].start, position + 1)
        else:
            spans.append(VersionSpan(version, position, position + 1))
    logprobs = -0.5 - 0.01 * np.arange(len(tokens), dtype=np.float32)
    finish = Finish.STOP if tokens[-1] == EOS else Finish.LENGTH
    return Completion(tokens, logprobs.astype(np.float32), tuple(spans), finish)


if __name__ == "__main__":
    from common.process import run
    from services.generator.service import serve

    raise SystemExit(run("generator", partial(serve, start_engine=FakeEngine.start, open_text=lambda _: decode)))
