"""What all tests share: fixed and printed seeds, an own kernel cache, idle threads that sleep."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# Set before anything loads OpenMP or tcc. Test processes share the cores: who waits must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TCC_CACHE_DIR", str(ROOT / "build" / "test-cache"))
# What was measured on this machine must not change what the tests see.
os.environ["TCC_TARGET_DIR"] = str(ROOT / "build" / "no-targets")

_slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "ci", derandomize=True, print_blob=True, deadline=None, suppress_health_check=_slow
)
# New programs on every run: `pytest --hypothesis-profile=explore`.
settings.register_profile(
    "explore", max_examples=1000, print_blob=True, deadline=None, suppress_health_check=_slow
)
settings.load_profile("ci")


def pytest_report_header() -> str:
    """One line that tells where the random numbers of this run come from."""
    profile = settings.get_current_profile_name()
    kind = "derandomized" if settings().derandomize else "random"
    return f"seeds: hypothesis profile {profile} ({kind}); rng fixture: crc32 of the test's id"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers whose seed depends on the test's id alone; a failing test shows it."""
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)
