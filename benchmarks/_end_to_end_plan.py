"""What is compared: each cell's number of steps, learning rate, aim, and the settings of either side."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks._end_to_end_run import Tuning


@dataclass(frozen=True, slots=True)
class Plan:
    """How one cell is compared.

    accuracy: the held-out accuracy whose time is measured. trl_rows: trajectories of one of TRL's forwards; its best
    value. tuning: Tributary's. calibration_s: how long the generator alone is measured.
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

    @property
    def name(self) -> str:
        """The name of its cell."""
        return f"{self.workload}-{self.size}"


PLANS = (
    Plan("equal", "0.3M", 60, 8, 2e-4, 4, 0.8, trl_rows=128, calibration_s=20.0),
    Plan("tail", "0.3M", 60, 8, 2e-4, 4, 0.8, trl_rows=128, calibration_s=20.0),
    Plan("equal", "10M", 24, 6, 5e-5, 2, 0.8, trl_rows=128, calibration_s=30.0),
    Plan("tail", "10M", 24, 6, 5e-5, 2, 0.8, trl_rows=32, calibration_s=30.0),
)
