"""What every test shares: patience with busy machines where a property is tested, not a speed."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# Modules that several tests share lie here; there are no packages below tests/.
sys.path.insert(0, str(Path(__file__).resolve().parent))

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
