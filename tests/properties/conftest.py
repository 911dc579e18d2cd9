"""Settings of the property-based tests: the same inputs on every machine, or with PROPERTY_TIMES others and more."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, configuration, settings

from tests.properties.support import TIMES

configuration.set_hypothesis_home_dir(Path(__file__).parents[2] / ".pytest_cache" / "hypothesis")
settings.register_profile(
    "frepo-bench",
    derandomize=TIMES is None,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("frepo-bench")
