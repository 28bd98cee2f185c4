"""The names of everything that a run keeps in Redis. One hash tag per run, so that scripts work on a cluster too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Redis key names of one run."""

    run: str

    def _key(self, name: str) -> str:
        return f"tributary:{{{self.run}}}:{name}"

    @property
    def requests(self) -> str:
        """Stream: curriculum → generators."""
        return self._key("requests")

    @property
    def groups(self) -> str:
        """Stream: generators → learner."""
        return self._key("groups")

    @property
    def outcomes(self) -> str:
        """Stream: generators → curriculum."""
        return self._key("outcomes")

    @property
    def weights(self) -> str:
        """Stream: weight manifests, learner → generators."""
        return self._key("weights")

    @property
    def newest_version(self) -> str:
        """String: the newest announced weight version."""
        return self._key("weights:newest")

    def muster(self, version: int) -> str:
        """Hash: who is ready for the broadcast of a weight version (common/muster.py)."""
        return self._key(f"muster:{version}")

    @property
    def quarantine(self) -> str:
        """Stream: messages that could not be used, with the reason."""
        return self._key("quarantine")

    @property
    def unusable(self) -> str:
        """Set: names of the demonstrations that cannot be used and are in the quarantine."""
        return self._key("unusable")

    @property
    def events(self) -> str:
        """Stream: what operators see; for display only."""
        return self._key("events")

    @property
    def outstanding(self) -> str:
        """Set: ids of training groups that were requested and are not yet trained, dropped or quarantined."""
        return self._key("outstanding")

    @property
    def score_tasks(self) -> str:
        """Stream: demonstrations that the expert policy is to score, curriculum → scorer."""
        return self._key("score_tasks")

    @property
    def scores_asked(self) -> str:
        """Set: keys of the scores that were asked for and are not answered yet."""
        return self._key("scores:asked")

    @property
    def scores(self) -> str:
        """Hash: content hash → the expert policy's log-probs of a demonstration, or why there are none."""
        return self._key("scores")

    @property
    def curriculum(self) -> str:
        """String: the curriculum's state (dataset cursor and what else it needs to go on)."""
        return self._key("curriculum")

    @property
    def prompts(self) -> str:
        """Hash: prompt id → attempts and successes."""
        return self._key("prompts")

    @property
    def config(self) -> str:
        """Hash: current revision."""
        return self._key("config")

    @property
    def config_history(self) -> str:
        """List: every revision."""
        return self._key("config:history")

    @property
    def in_force(self) -> str:
        """Hash: revision and process → when it came into force."""
        return self._key("config:in_force")

    @property
    def orders(self) -> str:
        """Hash: what an operator asks of processes beside the live configuration (common/orders.py)."""
        return self._key("orders")

    @property
    def trials(self) -> str:
        """List: dry runs that wait for the learner's next step (common/trials.py)."""
        return self._key("trials")

    def trial(self, trial_id: str) -> str:
        """String: what a dry run found; it expires."""
        return self._key(f"trial:{trial_id}")

    @property
    def examined(self) -> str:
        """Stream: groups as the learner saw them, the newest ones only; for display."""
        return self._key("examined")

    @property
    def examined_bytes(self) -> str:
        """String: the size of that stream's payloads."""
        return self._key("examined:bytes")

    @property
    def prompt_texts(self) -> str:
        """Hash: prompt id → the prompt's text, for prompts that were asked for."""
        return self._key("prompts:text")

    @property
    def additions(self) -> str:
        """Stream: demonstrations that operators added while the run went on (common/additions.py)."""
        return self._key("additions")

    @property
    def additions_bytes(self) -> str:
        """String: the size of that stream's texts."""
        return self._key("additions:bytes")

    @property
    def verdicts(self) -> str:
        """Hash: addition id → what became of it."""
        return self._key("additions:verdicts")

    @property
    def processes(self) -> str:
        """Hash: process name → its last heartbeat."""
        return self._key("processes")

    @property
    def facts(self) -> str:
        """Hash: facts about the run since it has started (data set sizes, dashboard address, version made)."""
        return self._key("facts")
