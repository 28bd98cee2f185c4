"""What is compared: each cell's number of steps, learning rate, aim, and the settings of either side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks._end_to_end_run import Tuning


@dataclass(frozen=True, slots=True)
class Plan:
    """How one cell is compared.

    accuracy: the held-out accuracy whose time is measured. trl_rows: trajectories of one of TRL's forwards; its best
    value. tuning: Tributary's. calibration_s: how long the generator alone is measured. turns: how often both train.
    """

    workload: str
    size: str
    steps: int
    quick_steps: int
    rate: float
    save_every: int
    accuracy: float
    trl_rows: int
    calibration_s: float
    tuning: Tuning = field(default_factory=Tuning)
    turns: int = 1

    @property
    def name(self) -> str:
        """The name of its cell."""
        return f"{self.workload}-{self.size}"


_LONG = Tuning(max_num_seqs=128, requests_in_flight=40, max_staleness=16)
"""Long responses live through many versions, and a group is in flight until its longest response has ended: fewer at a
time cost little speed and end sooner, so that a step learns from younger tokens."""
_LARGE = Tuning(kv_cache_mb=1024, max_num_seqs=144, requests_in_flight=20, max_staleness=2)
"""Sampling and training are about as quick, so credit decides how long groups wait: with less of it as many are trained
on, with younger tokens. One learner thread, so that η compares both halves with what they have in the run."""
_LONG_LARGE = replace(_LONG, kv_cache_mb=1024, max_num_seqs=64, requests_in_flight=24, max_staleness=4)
"""Its steps are few and long: what many versions ago began teaches it little. Sampling is quicker than training, so it
may be slower: with fewer at a time the first groups come sooner, and the others are younger."""

PLANS = (
    Plan("equal", "0.3M", 40, 8, 1e-4, 2, 0.8, trl_rows=128, calibration_s=15.0, turns=5),
    Plan("tail", "0.3M", 30, 8, 1e-4, 2, 0.8, trl_rows=128, calibration_s=15.0, tuning=_LONG),
    Plan("equal", "10M", 40, 6, 5e-5, 2, 0.5, trl_rows=128, calibration_s=20.0, tuning=_LARGE, turns=3),
    Plan("tail", "10M", 28, 6, 5e-5, 2, 0.5, trl_rows=32, calibration_s=20.0, tuning=_LONG_LARGE),
)
