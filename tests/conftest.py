# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

import gc
import os
from pathlib import Path

import pytest

# Most of the tests' time is compilation, often of the same programs: keep them. One
# folder for each process: JAX writes its files in place, and a process that reads one
# half written warns, which is an error here.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled" / WORKER
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# An environment variable, so that scripts started by tests inherit it.
os.environ["MPLBACKEND"] = "Agg"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Long tests run what users run; the others mostly wait for the compiler."""
    import jax

    is_long = item.get_closest_marker("long") is not None
    jax.config.update("jax_disable_most_optimizations", not is_long)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Each compiled program holds memory maps, of which a process may have 65,530."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
