"""The prompts of a data set in tokens, and their demonstrations, which are made ready when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import SettingsError
from common.settings import DatasetSettings
from common.trajectory import Logprobs, Tokens
from services.curriculum.expert_logprobs import recorded_logprobs
from services.curriculum.rows import Row, Table
from services.curriculum.set_aside import Reason, SetAside, Unusable
from services.curriculum.tokens import TokenisedText, Tokeniser

KEPT_READY = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One problem with its prompt in tokens. number: its row. Demonstrations stay text until they are asked for."""

    prompt_id: str
    number: int
    tokens: Tokens
    answer: str
    demonstrations: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A demonstration that can be used: the `number`-th of its prompt, in tokens.

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
        for number, text in enumerate(prompt.demonstrations):
            if _name(prompt, number) in self._discarded:
                continue
            if not text.strip():
                self._note(prompt, number, Reason.EMPTY, "the demonstration is empty")
                continue
            made = self._tokeniser.demonstration(text)
            if made.specials:
                which = ", ".join(repr(token) for token in made.specials)
                self._note(prompt, number, Reason.SPECIAL_TOKENS, f"special tokens stand inside it: {which}")
                continue
            try:
                usable.append(Prepared(number, made, self._recorded(prompt, number, made.tokens)))
            except ValueError as error:
                self._note(prompt, number, Reason.RECORDED_LOGPROBS, str(error))
        return usable

    def _recorded(self, prompt: Prompt, number: int, tokens: Tokens) -> Logprobs | None:
        if self._table is None:
            return None
        record = self._table.records(prompt.number, len(prompt.demonstrations))[number]  # ValueError: none of each
        return recorded_logprobs(record, tokens)

    def _fits(self, prompt: Prompt, number: int, length: int, longest: int) -> bool:
        room = self._tokeniser.context - len(prompt.tokens)
        if length <= min(longest, room):
            return True
        limit = f"sampling.max_response_tokens is {longest}" if longest < room else f"the context leaves {room}"
        why = f"it has {length} tokens with its end token, and {limit}"
        self._note(prompt, number, Reason.TOO_LONG, why, f"{Reason.TOO_LONG} for {min(longest, room)}")
        return False

    def _note(self, prompt: Prompt, number: int, reason: Reason, why: str, detail: str = "") -> None:
        name = f"{_name(prompt, number)}: {detail or reason}"
        why = f"demonstration {number + 1} of {prompt.prompt_id}: {why}"
        self.set_aside.note(Unusable(name, reason, why, prompt.demonstrations[number]))


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
    for row in rows:
        prompts.append(_prompt(name, row, source, tokeniser))
        if progress is not None and len(prompts) % 1000 == 0:
            progress(len(prompts), len(rows))
    return PromptSet(name, prompts, tokeniser, table if recorded else None)


def _name(prompt: Prompt, number: int) -> str:
    return f"{prompt.prompt_id}#{number}"


def _prompt(name: str, row: Row, source: DatasetSettings, tokeniser: Tokeniser) -> Prompt:
    tokens = tokeniser.prompt(row.prompt)
    if len(tokens) >= tokeniser.context:
        raise SettingsError(
            f"the prompt in row {row.number + 1} of {source.path} has {len(tokens)} tokens, which leaves no room for a "
            f"response in the model's context of {tokeniser.context}: shorten it, or raise [model] max_model_len"
        )
    if len(tokens) == 0:
        raise SettingsError(f"the prompt in row {row.number + 1} of {source.path} has no tokens: remove the row")
    return Prompt(f"{name}:{row.number}", row.number, tokens, row.answer, row.demonstrations)
