# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Every script runs, at a tiny size, as a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A row for each example: options that make it short, and the files that it promises.
TINY = "--num-epochs 1 --num-steps 4 --num-evaluation 500 --warm-start-size 500"
FEW = f"{TINY} --num-particles 50"
EXAMPLES = {
    "colliculus": (
        f"{FEW} --num-brute-force 500 --num-perturbed 2 --num-silenced 20",
        [
            "colliculus_distribution.png",
            "colliculus_perturbations.png",
            "colliculus_silencing.png",
        ],
    ),
    "colliculus_regimes": (
        f"{FEW} --num-simulations 2 --num-places 2 --num-per-group 5 "
        "--num-brute-force 500",
        ["colliculus_modes.png", "colliculus_regimes.png", "colliculus_opto.png"],
    ),
    "compare_nuts_svi": (
        f"{TINY} --num-draws 200 --num-warmup 20 --svi-steps 20",
        ["compare_nuts_svi.png"],
    ),
    "quickstart": (
        TINY,
        [
            "quickstart.nc",
            "quickstart_distribution.png",
            "quickstart_training.png",
            "quickstart_prediction.png",
        ],
    ),
    "rnn": (f"{FEW} --num-neurons 2 --noise 0.01", ["rnn_amplification.png"]),
    "stg": (FEW, ["stg_distribution.png", "stg_traces.png"]),
    "stg_sensitivity": (
        f"{FEW} --num-simulations 20",
        ["stg_sensitivity.png", "stg_perturbations.png"],
    ),
    "v1": (
        f"{FEW} --theory-seconds 0.05",
        ["v1_circuit.png", "v1_distribution.png"],
    ),
}
BENCHMARKS = {
    "circuits": f"{FEW} --rows stg rnn-2 --keys 0",
    "linear_oscillator": "--keys 0 --num-epochs 1 --published-steps 5 --num-draws 1000",
    "solver": "--rows nine-rings --num-epochs 1",
    "step_time": "--num-pairs 1",
}

# Those that `.ci/run` runs; the others take minutes.
IN_CI = {"quickstart", "solver", "stg", "step_time"}


def rows(table):
    marks = [pytest.mark.long], [pytest.mark.long, pytest.mark.ci]
    return [pytest.param(x, marks=marks[x in IN_CI]) for x in sorted(table)]


# Examples that simulate for longer than they compile.
SLOW_SIMULATORS = {"colliculus", "colliculus_regimes", "v1"}


def scripts(folder):
    return {path.stem for path in (ROOT / folder).glob("[!_]*.py")}


def run(script, options, folder):
    """Run a script in an empty folder; it must not depend on where it is started."""
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": search}
    # Most of the time of a tiny run is compilation.
    if Path(script).stem not in SLOW_SIMULATORS:
        settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *options.split()],
        cwd=folder,
        env=os.environ | settings | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_has_a_row():
    assert scripts("examples") == set(EXAMPLES)
    assert scripts("benchmarks") == set(BENCHMARKS)


@pytest.mark.parametrize("name", rows(EXAMPLES))
def test_example_runs_and_writes_what_it_promises(name, tmp_path):
    options, files = EXAMPLES[name]
    printed = run(f"examples/{name}.py", f"{options} --no-progress-bar", tmp_path)
    assert "Emergent property inference" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files)
    page = (ROOT / f"examples/{name}.py").read_text()
    has_table = re.search(r"\d+ of \d+ claims hold", printed) is not None
    assert has_table == ("print_claims" in page)
    for file in files:
        assert file in page
        assert (tmp_path / "out" / file).stat().st_size > 10_000
        if file.endswith(".png"):
            assert (ROOT / "examples/images" / file).is_file()


@pytest.mark.parametrize("name", rows(BENCHMARKS))
def test_benchmark_runs(name, tmp_path):
    assert "edian" in run(f"benchmarks/{name}.py", BENCHMARKS[name], tmp_path)
    assert not list(tmp_path.iterdir())
