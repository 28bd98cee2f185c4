"""Every metric that any process exports, by one name each. Units are in the names; counters end in _total."""

from __future__ import annotations

from math import nan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# A counter that appears with its first event hides that event from increase(): labels that are known begin at zero.
_QUARANTINED = ("requests", "groups", "outcomes", "score_tasks", "demonstrations")
_ATTEMPTED = ("done", "failed")
_SAVING = ("copy", "write")
_STAGES = ("snapshot", "canary", "encode", "write", "total")
_STORED = ("checkpoint", "weight version")
_STEP_STAGES = ("pack", "transfer", "forward", "backward", "optimizer", "publish", "checkpoint")


class ProcessMetrics:
    """What every process exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.info = Gauge(
            "tributary_process_info", "1, with who this process is", ["process", "role", "run"], registry=registry
        )
        self.revision = Gauge("tributary_revision_in_force", "Live configuration revision in force", registry=registry)
        self.version = Gauge("tributary_weight_version", "Weight version held", registry=registry)
        self.quarantined = Counter(
            "tributary_quarantined_total", "Messages put into quarantine", ["stream"], registry=registry
        )
        for stream in _QUARANTINED:
            self.quarantined.labels(stream)
        self.redis_failures = Counter("tributary_redis_failures_total", "Failed calls to Redis", registry=registry)
        self.lost_events = Counter("tributary_events_lost_total", "Events that found no room", registry=registry)


class CurriculumMetrics:
    """What the curriculum exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("tributary_requests_total", "Requests issued", ["purpose"], registry=registry)
        self.outstanding = Gauge("tributary_outstanding_groups", "Groups requested, not yet trained", registry=registry)
        self.credit = Gauge("tributary_credit_groups", "Groups that may be outstanding", registry=registry)
        self.accuracy = Gauge("tributary_heldout_accuracy", "Greedy held-out accuracy", ["dataset"], registry=registry)
        self.pass_at_k = Gauge("tributary_heldout_pass_at_k", "Held-out pass@k", ["dataset"], registry=registry)
        self.set_aside = Counter(
            "tributary_demonstrations_set_aside_total",
            "Demonstrations that cannot be used",
            ["reason"],
            registry=registry,
        )
        self.additions = Counter(
            "tributary_additions_total", "Demonstrations added by operators, by verdict", ["state"], registry=registry
        )
        self.hint_phase = Gauge("tributary_hint_phase", "Share of the hint schedule that is done", registry=registry)
        self.hint_level = Gauge("tributary_hint_p", "p or low of the hint schedule", registry=registry)
        self.hint_length = Gauge(
            "tributary_hint_length_mean", "Mean hint length asked for of late, in tokens", registry=registry
        )
        self.nll = Gauge("tributary_heldout_nll", "Mean NLL of held-out demonstrations", ["dataset"], registry=registry)


class GeneratorMetrics:
    """What a generator exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter("tributary_generated_tokens_total", "Tokens sampled", registry=registry)
        self.groups = Counter("tributary_groups_emitted_total", "Groups emitted", registry=registry)
        self.duplicates = Counter("tributary_duplicate_groups_total", "Groups refused as answered", registry=registry)
        self.reclaimed = Counter("tributary_requests_reclaimed_total", "Requests taken over", registry=registry)
        self.grader_failures = Counter(
            "tributary_grader_failures_total", "Graders that failed", ["how"], registry=registry
        )
        self.updates = Counter("tributary_weight_updates_total", "Weight updates applied", registry=registry)
        self.update_failures = Counter("tributary_weight_update_failures_total", "Failed updates", registry=registry)
        self.pause = Histogram(
            "tributary_weight_pause_seconds", "Pause per update", buckets=_SECONDS, registry=registry
        )
        self.fetched_bytes = Counter(
            "tributary_weight_fetched_bytes_total", "Bytes of weights fetched", registry=registry
        )
        self.reseeds = Counter(
            "tributary_weight_reseeds_total", "Weights begun again with an anchor after a failure", registry=registry
        )
        self.canary_failures = Counter(
            "tributary_canary_failures_total", "Updates after which the canary refuted the engine", registry=registry
        )
        self.canary_difference = Gauge(
            "tributary_canary_difference", "Largest log-prob difference of the last canary", registry=registry
        )
        self.canary_difference.set(nan)
        self.running = Gauge("tributary_running_sequences", "Sequences being sampled", registry=registry)
        self.searches = Counter("tributary_searches_total", "Searches for an anchor", ["result"], registry=registry)
        self.probes = Counter("tributary_search_probes_total", "Groups sampled in search", registry=registry)


class ScorerMetrics:
    """What a scorer exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.scores = Counter(
            "tributary_scores_total", "Demonstrations answered by the expert", ["result"], registry=registry
        )
        self.tokens = Counter("tributary_scored_tokens_total", "Demonstration tokens scored", registry=registry)
        self.waiting = Gauge("tributary_scores_waiting", "Demonstrations to be scored", registry=registry)
        self.reclaimed = Counter("tributary_score_tasks_reclaimed_total", "Score tasks taken over", registry=registry)


class LearnerMetrics:
    """What the learner exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.steps = Counter("tributary_steps_total", "Optimiser steps", registry=registry)
        self.idle_steps = Counter("tributary_steps_without_signal_total", "Steps without a gradient", registry=registry)
        self.skipped_steps = Counter("tributary_steps_nonfinite_total", "Steps skipped: not finite", registry=registry)
        self.tokens = Counter("tributary_trained_tokens_total", "Response tokens trained on", registry=registry)
        self.groups = Counter("tributary_groups_trained_total", "Groups trained on", registry=registry)
        self.stale = Counter("tributary_groups_stale_total", "Groups dropped as too stale", registry=registry)
        self.repeated = Counter("tributary_groups_repeated_total", "Groups dropped as seen before", registry=registry)
        self._time(registry)
        self.reward = Gauge("tributary_reward_mean", "Mean reward of sampled trajectories", registry=registry)
        self.entropy = Gauge("tributary_entropy", "Mean entropy on sampled tokens", registry=registry)
        self.staleness = Gauge("tributary_staleness_mean", "Mean staleness of a step's groups", registry=registry)
        self.staleness_bound = Gauge(
            "tributary_staleness_bound", "Versions behind at which groups are dropped", registry=registry
        )
        self.grad_norm = Gauge("tributary_grad_norm", "Gradient norm before clipping", registry=registry)
        for gauge in (self.reward, self.entropy, self.staleness, self.grad_norm):
            gauge.set(nan)  # no step yet
        self.clip_fraction = Gauge("tributary_clip_fraction", "Share of clipped tokens", ["source"], registry=registry)
        self.sample_size = Gauge(
            "tributary_effective_sample_size", "Effective sample size, share of tokens", ["source"], registry=registry
        )
        self.ratio = Gauge("tributary_importance_ratio_mean", "Mean importance ratio", ["source"], registry=registry)
        self.rehearsal_buffer = Gauge(
            "tributary_rehearsal_buffer", "Demonstrations that wait to be rehearsed (ReLIFT)", registry=registry
        )
        self.unpublished = Gauge(
            "tributary_unpublished_updates", "Optimiser updates that no announced version holds", registry=registry
        )
        self.shortages = Counter(
            "tributary_learner_out_of_memory_total", "Steps made again from smaller micro-batches", registry=registry
        )
        self.checkpoints = Counter("tributary_checkpoints_total", "Checkpoints committed", registry=registry)
        self.checkpoint_seconds = Histogram(
            "tributary_checkpoint_seconds",
            "Stages of a checkpoint; only the copy holds a step back",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        for stage in _SAVING:
            self.checkpoint_seconds.labels(stage)
        self.storage_failures = Counter(
            "tributary_storage_failures_total", "Files that the disk did not take", ["what"], registry=registry
        )
        for what in _STORED:
            self.storage_failures.labels(what)
        self.paused = Gauge("tributary_learner_paused", "1 while an operator has paused the learner", registry=registry)
        self.candidates = Counter(
            "tributary_trial_candidates_total", "Candidates of dry runs evaluated", ["result"], registry=registry
        )
        self.examined = Counter(
            "tributary_examined_groups_total", "Groups of steps for operators to look at", ["result"], registry=registry
        )
        for result in _ATTEMPTED:
            self.candidates.labels(result)
            self.examined.labels(result)

    def _time(self, registry: CollectorRegistry) -> None:
        """Where the learner's time goes."""
        self.wait = Counter("tributary_learner_wait_seconds_total", "Time spent waiting for groups", registry=registry)
        self.waiting = Gauge("tributary_learner_waiting", "1 while the learner waits for groups", registry=registry)
        self.step_seconds = Histogram("tributary_step_seconds", "Time per step", buckets=_SECONDS, registry=registry)
        self.stage_seconds = Counter(
            "tributary_learner_stage_seconds_total", "Time of steps by stage", ["stage"], registry=registry
        )
        for stage in _STEP_STAGES:
            self.stage_seconds.labels(stage)


class PublicationMetrics:
    """What the learner exports about weight versions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.published = Counter("tributary_publications_total", "Weight versions published", registry=registry)
        self.bytes = Counter("tributary_publication_bytes_total", "Bytes published", registry=registry)
        self.full_bytes = Counter(
            "tributary_publication_full_bytes_total", "Bytes of the published versions in full", registry=registry
        )
        self.anchors = Counter("tributary_publication_anchors_total", "Versions published in full", registry=registry)
        self.coalesced = Counter(
            "tributary_publications_coalesced_total", "Snapshots that a newer one replaced", registry=registry
        )
        self.changed = Gauge(
            "tributary_publication_changed_ratio", "Share of weights whose bits changed", registry=registry
        )
        self.changed.set(nan)
        self.seconds = Histogram(
            "tributary_publication_seconds",
            "Stages of a publication; only the snapshot holds a step back",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        for stage in _STAGES:
            self.seconds.labels(stage)
        self.at = Gauge(
            "tributary_publication_timestamp_seconds",
            "Unix time of the newest publication, or of the learner's start",
            registry=registry,
        )
        self.at.set_to_current_time()


class ControlMetrics:
    """What the control plane exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "tributary_http_requests_total", "HTTP requests answered", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "tributary_http_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.listeners = Gauge("tributary_event_listeners", "Clients of the event feed", registry=registry)
        self.tracker_failures = Counter(
            "tributary_tracker_failures_total", "Rows that a tracker did not take", ["tracker"], registry=registry
        )


class RunMetrics:
    """What the control plane exports about the whole run, as it sees it once a second."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.redis_up = Gauge("tributary_redis_up", "1 if Redis answered the control plane", registry=registry)
        self.redis_used = Gauge("tributary_redis_memory_used_bytes", "Memory that Redis uses", registry=registry)
        self.redis_limit = Gauge("tributary_redis_memory_limit_bytes", "maxmemory; 0: no limit", registry=registry)
        self.redis_durable = Gauge(
            "tributary_redis_append_only_ok",
            "1 if the append-only file is on and its last write worked",
            registry=registry,
        )
        self.messages = Gauge("tributary_stream_messages", "Messages in a stream", ["stream"], registry=registry)
        self.alive = Gauge("tributary_processes_alive", "Processes that beat of late", ["role"], registry=registry)
        self.heartbeat_age = Gauge(
            "tributary_heartbeat_age_seconds",
            "Time since the heartbeat of a process that did not end; forgotten after an hour",
            ["process", "role"],
            registry=registry,
        )
        self.unwell = Gauge(
            "tributary_process_unwell",
            "1 if a process says that it is in trouble",
            ["process", "role"],
            registry=registry,
        )
        self.behind = Gauge(
            "tributary_versions_behind", "Published versions a generator does not hold", ["process"], registry=registry
        )
        self.revision_asked = Gauge("tributary_revision_asked", "Newest accepted revision", registry=registry)
        self.finished = Gauge("tributary_run_finished", "1 after the last step of the run", registry=registry)
