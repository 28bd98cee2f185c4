"""The engine core's scheduler, which holds sampled tokens back and gives them out many at a time.

vLLM's core tells its front of every single token: an object, three encoded arrays, a message, and all of that once
more in reverse. Nobody here looks at half a response, so the tokens of a sequence wait in the core and go out
together: every HOLD_S seconds (counts and health follow them), when the sequence ends, and before a pause takes
effect. The first step after idleness is told at once, so that even a short sequence alone is seen running. What is told
before a pause keeps versions exact: the front labels all tokens of a message with the version that is in force when it
is sent, and that changes only while the engine is paused.

vLLM imports this module in the core process (by the name given as `scheduler_cls`); nothing else of ours does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from services.generator.quick_slots import quick_slots

HOLD_S = 0.5
"""Short enough that rates and counts look as if told at once; of a small model's messages nine in ten are saved."""


@dataclass(slots=True)
class Held:
    """What waits of one sequence: its first output since it was last told of, which later ones are added to."""

    client: int
    output: EngineCoreOutput
    logprobs: list[LogprobsLists]


class HoldingScheduler(Scheduler):
    """vLLM's scheduler; only what it tells is put together, and slots that are there already are not asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, Held] = {}
        self._told_s = -math.inf
        self.kv_cache_manager.allocate_slots = quick_slots(self.kv_cache_manager, self.kv_cache_config)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """What is told of a step, by client."""
        found = super().update_from_output(scheduler_output, model_runner_output)
        for client, told in found.items():
            told.outputs = [whole for output in told.outputs if (whole := self._take(client, output)) is not None]
        now_s = time.monotonic()
        due = now_s - self._told_s >= HOLD_S or self._pause_state is not PauseState.UNPAUSED
        if due:
            self._told_s = now_s
            self._let_go(found)
        if not self.running:  # the last that is heard for a while, and the step after it is told at once
            self._told_s = -math.inf
        if due or not self.running:
            return found
        return {client: told for client, told in found.items() if told.outputs or told.finished_requests}

    def has_requests(self) -> bool:
        """Whether a step is due: also one that only tells what is held, before a pause takes effect."""
        return super().has_requests() or bool(self._held and self._pause_state is PauseState.PAUSED_ALL)

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """End sequences from outside; what is held of them is of no interest to anybody."""
        ended = super().finish_requests(*args, **kwargs)
        for request in ended:
            self._held.pop(request.request_id, None)
        return ended

    def _take(self, client: int, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """What to tell now of a sequence that has this output; None if it is held back."""
        held = self._held.get(output.request_id)
        if held is None:
            if not self._may_wait(output):
                return output
            held = self._held[output.request_id] = Held(client, output, [])
            output.new_token_ids = list(output.new_token_ids)
        else:
            held.output.new_token_ids += output.new_token_ids
            held.output.finish_reason, held.output.stop_reason = output.finish_reason, output.stop_reason
            held.output.num_nans_in_logits = output.num_nans_in_logits
            if output.events:
                held.output.events = [*(held.output.events or ()), *output.events]
        if output.new_logprobs is not None:
            held.logprobs.append(output.new_logprobs)
        if output.finish_reason is None:
            return None
        return _whole(self._held.pop(output.request_id))

    def _may_wait(self, output: EngineCoreOutput) -> bool:
        """Whether nobody looks at a sequence before it has ended, and it goes on."""
        request = self.requests.get(output.request_id)
        params = None if request is None else request.sampling_params
        return (
            output.finish_reason is None
            and output.new_prompt_logprobs_tensors is None
            and params is not None
            and params.output_kind is RequestOutputKind.FINAL_ONLY
            and not params.stop
        )

    def _let_go(self, found: dict[int, EngineCoreOutputs]) -> None:
        """Add all that is held to what is told."""
        held, self._held = self._held, {}
        for one in held.values():
            found.setdefault(one.client, EngineCoreOutputs(outputs=[])).outputs.append(_whole(one))


def _whole(held: Held) -> EngineCoreOutput:
    """One output that tells all that was held."""
    output = held.output
    if held.logprobs:
        output.new_logprobs = _joined(held.logprobs)
    return output


def _joined(logprobs: Iterable[LogprobsLists]) -> LogprobsLists:
    """The log-probs of consecutive tokens as one."""
    parts = list(logprobs)
    return LogprobsLists(
        np.concatenate([part.logprob_token_ids for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.sampled_token_ranks for part in parts]),
    )
