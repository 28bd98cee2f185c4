"""The prompts of a data set in tokens, and their demonstrations, which are made ready when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import SettingsError
from common.settings import DatasetSettings
from common.trajectory import Logprobs, Tokens
from services.curriculum.expert_logprobs import UnfitLogprobs, recorded_logprobs
from services.curriculum.rows import Message, Row, Table
from services.curriculum.set_aside import Reason, SetAside, UnfitDemonstration, Unusable
from services.curriculum.tokens import TokenisedText, Tokeniser

KEPT_READY = 2048
SHOWN_CHARACTERS = 2000
SHOWN_IN_ALL = 32 << 20
"""Characters of all prompts of a data set together: their texts lie in Redis, and only people read them."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One problem with its prompt in tokens. number: its row. Demonstrations stay text until they are asked for.

    text: the prompt as the data set has it, for display; cut if it is long, or if the data set is very large.
    """

    prompt_id: str
    number: int
    tokens: Tokens
    answer: str
    demonstrations: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A demonstration that can be used: the `number`-th of its prompt, in tokens. Those that were added count on.

    expert_logprobs: [D] as recorded in the data set; None if it is not known from there.
    """

    number: int
    text: TokenisedText
    expert_logprobs: Logprobs | None = None

    @property
    def tokens(self) -> Tokens:
        """Its tokens [D], EOS last."""
        return self.text.tokens


class PromptSet:
    """All problems of a data set. `name` is part of their ids. table: where expert log-probs are recorded, if any.

    set_aside: its demonstrations that cannot be used. looked_at: the prompts that a survey looked at.
    """

    def __init__(self, name: str, prompts: list[Prompt], tokeniser: Tokeniser, table: Table | None = None) -> None:
        self.name = name
        self.prompts = prompts
        self.looked_at: list[Prompt] = []
        self.set_aside = SetAside(name, sum(len(p.demonstrations) for p in prompts))
        self._tokeniser = tokeniser
        self._table = table
        self._by_id = {prompt.prompt_id: prompt for prompt in prompts}
        self._added: dict[str, dict[int, str]] = {}
        self._ready: OrderedDict[str, tuple[Prepared, ...]] = OrderedDict()
        self._discarded: set[str] = set()
        self._without: set[str] = {p.prompt_id for p in prompts if not any(t.strip() for t in p.demonstrations)}
        self._lengths: dict[str, list[tuple[int, int]]] = {}
        self._judged: set[int] = set()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def with_demonstrations(self) -> int:
        """How many problems have at least one demonstration that can be used, as far as that is known."""
        return len(self.prompts) - len(self._without)

    @property
    def characters(self) -> int:
        """The size of all demonstrations."""
        return sum(len(text) for prompt in self.prompts for text in prompt.demonstrations)

    def find(self, prompt_id: str) -> Prompt | None:
        """The problem with an id."""
        return self._by_id.get(prompt_id)

    def look_at(self, prompt: Prompt, number: int, text: str, longest: int) -> Prepared:
        """A text as the `number`-th demonstration of a problem, of at most `longest` tokens. UnfitDemonstration."""
        prepared = self._made(prompt, number, text)
        if why := self._too_long(prompt, len(prepared.tokens), longest):
            raise UnfitDemonstration(Reason.TOO_LONG, why)
        return prepared

    def add(self, prompt: Prompt, number: int, text: str) -> None:
        """Use a demonstration that was added to a problem, before those that it has."""
        self._added.setdefault(prompt.prompt_id, {})[number] = text
        self.set_aside.demonstrations += 1
        self._ready.pop(prompt.prompt_id, None)
        self._without.discard(prompt.prompt_id)

    def is_ready(self, prompt: Prompt) -> bool:
        """Whether the demonstrations of a problem can be had without work."""
        return prompt.prompt_id in self._ready

    def prepared(self, prompt: Prompt) -> tuple[Prepared, ...]:
        """The demonstrations of a problem that can be used, whatever the live configuration; others are set aside."""
        found = self._ready.get(prompt.prompt_id)
        if found is None:
            found = tuple(self._prepare(prompt))
            self._ready[prompt.prompt_id] = found
            if len(self._ready) > KEPT_READY:
                self._ready.popitem(last=False)
            self._without |= set() if found else {prompt.prompt_id}
        else:
            self._ready.move_to_end(prompt.prompt_id)
        return found

    def fitting(self, prompt: Prompt, longest: int) -> tuple[Prepared, ...]:
        """Those that have at most `longest` tokens and fit in the context; longer ones are set aside for that value."""
        prepared = self.prepared(prompt)
        return tuple(d for d in prepared if self._fits(prompt, d.number, len(d.tokens), longest))

    def discard(self, prompt: Prompt, number: int, reason: Reason, why: str) -> None:
        """Set a demonstration aside for good."""
        self._note(prompt, number, reason, why)
        self._discarded.add(_name(prompt, number))
        self._ready[prompt.prompt_id] = remaining = tuple(d for d in self.prepared(prompt) if d.number != number)
        self._without |= set() if remaining else {prompt.prompt_id}

    def survey(self, characters: int) -> None:
        """Look at demonstrations of about so many characters in all, evenly spread over the data set.

        Of those it is then known at once which do not fit a length limit.
        """
        self.looked_at = self.prompts[:: max(1, -(-self.characters // max(characters, 1)))]
        self._lengths = {p.prompt_id: [(d.number, len(d.tokens)) for d in self.prepared(p)] for p in self.looked_at}

    def judge(self, longest: int) -> None:
        """Set aside what is longer than a limit, of the demonstrations surveyed; of the others it shows with use."""
        if longest in self._judged:
            return
        self._judged.add(longest)
        for prompt in self.looked_at:
            for number, length in self._lengths[prompt.prompt_id]:
                self._fits(prompt, number, length, longest)

    def _prepare(self, prompt: Prompt) -> list[Prepared]:
        usable: list[Prepared] = []
        for number, text in self._texts(prompt).items():
            if _name(prompt, number) in self._discarded:
                continue
            try:
                usable.append(self._made(prompt, number, text))
            except UnfitDemonstration as unfit:
                self._note(prompt, number, unfit.reason, str(unfit))
        return usable

    def _texts(self, prompt: Prompt) -> dict[int, str]:
        """All demonstrations of a problem by number: what was added last comes first, then those of its row."""
        added = self._added.get(prompt.prompt_id, {})
        return {n: added[n] for n in sorted(added, reverse=True)} | dict(enumerate(prompt.demonstrations))

    def _made(self, prompt: Prompt, number: int, text: str) -> Prepared:
        """A demonstration in tokens. UnfitDemonstration if it cannot be used, whatever the live configuration."""
        if not text.strip():
            raise UnfitDemonstration(Reason.EMPTY, "the demonstration is empty")
        made = self._tokeniser.demonstration(text)
        if made.specials:
            which = ", ".join(repr(token) for token in made.specials)
            raise UnfitDemonstration(Reason.SPECIAL_TOKENS, f"special tokens stand inside it: {which}")
        try:
            return Prepared(number, made, self._recorded(prompt, number, made.tokens))
        except ValueError as error:
            raise UnfitDemonstration(Reason.RECORDED_LOGPROBS, str(error)) from error

    def _recorded(self, prompt: Prompt, number: int, tokens: Tokens) -> Logprobs | None:
        if self._table is None:
            return None
        if number >= len(prompt.demonstrations):
            raise UnfitLogprobs(
                'it was added without log-probs, and [expert] policy is "recorded": put it into the data set with them'
            )
        record = self._table.records(prompt.number, len(prompt.demonstrations))[number]  # ValueError: none of each
        return recorded_logprobs(record, tokens)

    def _fits(self, prompt: Prompt, number: int, length: int, longest: int) -> bool:
        why = self._too_long(prompt, length, longest)
        if why:
            limit = min(longest, self._room(prompt))
            self._note(prompt, number, Reason.TOO_LONG, why, f"{Reason.TOO_LONG} for {limit}")
        return not why

    def _too_long(self, prompt: Prompt, length: int, longest: int) -> str:
        """Why a demonstration of so many tokens is too long; "" if it is not."""
        room = self._room(prompt)
        if length <= min(longest, room):
            return ""
        limit = f"sampling.max_response_tokens is {longest}" if longest < room else f"the context leaves {room}"
        return f"it has {length} tokens with its end token, and {limit}"

    def _room(self, prompt: Prompt) -> int:
        """How many tokens the context leaves for a response."""
        return self._tokeniser.context - len(prompt.tokens)

    def _note(self, prompt: Prompt, number: int, reason: Reason, why: str, detail: str = "") -> None:
        name = f"{_name(prompt, number)}: {detail or reason}"
        why = f"demonstration {number + 1} of {prompt.prompt_id}: {why}"
        self.set_aside.note(Unusable(name, reason, why, self._texts(prompt)[number]))


Progress = Callable[[int, int], None]


def load_prompts(
    name: str,
    source: DatasetSettings,
    tokeniser: Tokeniser,
    progress: Progress | None = None,
    *,
    recorded: bool = False,
) -> PromptSet:
    """Read and tokenise a data set. progress(done, all) is called now and then. recorded: it names expert log-probs."""
    table = Table(source, recorded=recorded)
    rows = table.rows()
    prompts: list[Prompt] = []
    shown = min(SHOWN_CHARACTERS, SHOWN_IN_ALL // max(1, len(rows)))
    for row in rows:
        prompts.append(_prompt(name, row, source, tokeniser, shown))
        if progress is not None and len(prompts) % 1000 == 0:
            progress(len(prompts), len(rows))
    return PromptSet(name, prompts, tokeniser, table if recorded else None)


def _name(prompt: Prompt, number: int) -> str:
    return f"{prompt.prompt_id}#{number}"


def _prompt(name: str, row: Row, source: DatasetSettings, tokeniser: Tokeniser, shown: int) -> Prompt:
    tokens = tokeniser.prompt(row.prompt)
    if len(tokens) >= tokeniser.context:
        raise SettingsError(
            f"the prompt in row {row.number + 1} of {source.path} has {len(tokens)} tokens, which leaves no room for a "
            f"response in the model's context of {tokeniser.context}: shorten it, or raise [model] max_model_len"
        )
    if len(tokens) == 0:
        raise SettingsError(f"the prompt in row {row.number + 1} of {source.path} has no tokens: remove the row")
    text = shown_text(row.prompt, shown)
    return Prompt(f"{name}:{row.number}", row.number, tokens, row.answer, row.demonstrations, text)


def shown_text(prompt: str | tuple[Message, ...], longest: int) -> str:
    """A prompt as people read it, cut after `longest` characters."""
    text = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    return text[:longest]
