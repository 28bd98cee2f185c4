"""What the engine core reports about itself after every step, kept as plain numbers."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class EngineGauges(PrometheusStatLogger):
    """The latest counts of one engine.

    A Prometheus logger by type only: that is how vLLM is told not to add its own, which would write a hundred series
    into this process's default registry on every step.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
        self.running = 0
        self.waiting = 0
        self.tokens_generated = 0
        self.preemptions = 0
        self.kv_cache_usage = 0.0

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take the counts of one step."""
        if scheduler_stats is not None:
            self.running = scheduler_stats.num_running_reqs
            self.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self.kv_cache_usage = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            self.tokens_generated += iteration_stats.num_generation_tokens
            self.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to announce."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """This engine is never put to sleep."""

    def record_admission_rejection(self, reason: str) -> None:
        """This engine has no admission limit."""
