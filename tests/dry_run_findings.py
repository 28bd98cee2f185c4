"""What the learner found in a dry run, as tests of those who show it need it."""

from __future__ import annotations

from typing import Any

ACTIVE: dict[str, Any] = {
    "algorithm": "luffy",
    "loss": -0.25,
    "terms": {"policy": -0.05, "expert": -0.2},
    "gradient_weight": {"policy": 0.5, "expert": None},
    "pull": {"policy": 0.5, "demonstration": 0.125},
    "entropy": 0.8,
    "ratio": {"policy": 1.0},
    "effective_sample_size": {"policy": 0.97},
    "clip_fraction": {"policy": 0.0},
    "cosine": 1.0,
    "tokens": 100,
    "trajectories": 8,
    "missing_trajectories": 0,
    "notes": [],
}
