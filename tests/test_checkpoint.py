# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Runs that stop and go on: budgets, callbacks, interrupts, and states on disk."""

import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import numpyro_epi as epi
from numpyro_epi._files import Checkpoint, _archive, _checkpoint
from numpyro_epi._files._checkpoint import identity, program_digest
from numpyro_epi._train.solver import Solver

KEY = jax.random.key(0)
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(8,))
SMALL = {
    "num_particles": 20,
    "num_epochs": 3,
    "num_steps": 5,
    "num_evaluation": 200,
    "warm_start_size": 2000,
    "progress_bar": False,
}


def gaussian(scale=1.0):
    z = numpyro.sample("z", dist.Normal(0, scale).expand([2]).to_event(1))
    epi.emergent_property(z, mean=[0.5, -0.5], var=[0.25, 0.5], name="f")


def wide():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([16]).to_event(1))
    epi.emergent_property(z.sum() / 4.0, mean=0.5, var=0.8)


def noisy():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    reading = z + 0.5 * jax.random.normal(numpyro.prng_key())
    epi.emergent_property(reading, mean=0.6, var=0.5)


def made(model=gaussian, guide=GUIDE, optim=None, **options):
    return epi.EPI(model, guide, optim, **{**SMALL, **options})


def same(first, second):
    """Whether two results are the same, bit for bit."""
    for a, b in zip(first.restarts, second.restarts, strict=True):
        assert (a.status, a.message) == (b.status, b.message)
        leaves = [(r.params, r.draws, r.violation, r.losses) for r in (a, b)]
        for x, y in zip(*map(jax.tree.leaves, leaves), strict=True):
            np.testing.assert_array_equal(x, y)
    assert first.num_simulations == second.num_simulations


# -- on disk --------------------------------------------------------------------------

KINDS = {
    "default": (gaussian, {}),
    "no law": (gaussian, {"warm_start": False, "optim": optax.sgd(1e-3, momentum=0.9)}),
    "replay": (noisy, {"stat_gradient": "replay"}),
    "published": (gaussian, {"schedule": epi.PublishedSchedule(), "num_restarts": 2}),
    "chains": (wide, {}),
}


@pytest.mark.parametrize(
    "kind",
    [
        "default",
        *(
            pytest.param(kind, marks=[pytest.mark.long, pytest.mark.ci])
            for kind in list(KINDS)[1:]
        ),
    ],
)
def test_a_run_goes_on_from_any_state_on_disk(kind, tmp_path):
    """As if it had never stopped, bit for bit; and another process can read it."""
    model, options = KINDS[kind]
    inference, states = made(model, **options), []
    whole = inference.run(KEY, callbacks=[states.append])
    engine, key = inference._begin(KEY, (), {})
    for i in sorted({0, 1, len(states) // 2, len(states) - 2, len(states) - 1}):
        path = tmp_path / f"{i}.npz"
        Checkpoint(path, engine, key).write(states[i], is_last=True)
        same(inference.run(KEY, checkpoint=path), whole)
        assert [p.name for p in tmp_path.glob(f"*{i}.npz*")] == [path.name]
    other = made(model, **options)
    same(other.run(KEY, checkpoint=path), whole)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    made().run(KEY, checkpoint=path, callbacks=lambda state: state.num_epochs == 1)
    return path


OTHERS = {
    "key": (lambda run: run(key=jax.random.key(1)), "with `rng_key`"),
    "option": (lambda run: run(num_steps=6), "with 6 as its option `num_steps`"),
    "argument": (lambda run: run(args=(2.0,)), "argument `scale`"),
    "guide": (lambda run: run(guide=epi.guides.AutoNeuralSpline), "its guide"),
    "layers": (lambda run: run(guide=partial(GUIDE, num_flows=2)), "of program"),
    "optimiser": (lambda run: run(optim=optax.sgd(0.1)), "kind of optimiser"),
    "targets": (
        lambda run: run(epi.handlers.retarget(gaussian, {"f": (0.4, 0.3)})),
        "target means",
    ),
    "program": (lambda run: run(lambda scale=1.0: gaussian(scale + 1.0)), "program"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(name, checkpoint):
    other, words = OTHERS[name]
    before = checkpoint.read_bytes()

    def run(model=gaussian, args=(), key=KEY, guide=GUIDE, **options):
        optim = options.pop("optim", None)
        made(model, guide, optim, **options).run(key, *args, checkpoint=checkpoint)

    with pytest.raises(ValueError, match=words) as raised:
        other(run)
    assert "Pass another path as `checkpoint`" in str(raised.value)
    assert checkpoint.read_bytes() == before


def test_what_changes_no_number_is_not_compared():
    first, second = made(), made(progress_bar=True)
    assert identity(*first._begin(KEY, (), {})) == identity(*second._begin(KEY, (), {}))


def closing_over(array, key):
    @jax.jit
    def simulate(z):
        return z + array + 0.0 * jax.random.normal(key, z.shape)

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        epi.emergent_property(simulate(z), mean=0.5, var=0.25)

    return model


def test_what_a_simulator_closes_over_is_a_part_of_its_program():
    """In a compiled function too, and a typed key."""
    cases = [(np.zeros(2), KEY), (np.zeros(2), KEY), (np.ones(2), KEY)]
    cases += [(np.zeros(2), jax.random.key(1))]
    first, same, *others = [
        program_digest(made(closing_over(*case))._engine(KEY, (), {})) for case in cases
    ]
    assert first == same
    assert len({first, *others}) == 3


def test_options_may_be_numbers_of_numpy():
    number = made(num_epochs=np.int64(3), tolerance=np.float64(0.05))
    assert identity(*number._begin(KEY, (), {})) == identity(
        *made()._begin(KEY, (), {})
    )


def test_a_checkpoint_comes_before_a_state(tmp_path):
    """Else a run that is called again would begin again, and overwrite the file."""
    path, start, seen = tmp_path / "run.npz", INFERENCE.init(KEY), []
    stop = {"callbacks": (lambda state: state.stage == "first fit" for _ in range(1))}
    INFERENCE.run(KEY, init_state=start, checkpoint=path, **stop)
    INFERENCE.run(KEY, init_state=start, checkpoint=path, callbacks=[seen.append])
    assert "law" not in {state.stage for state in seen}


def far():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    epi.emergent_property(z, mean=9.0, var=0.25)


def test_the_way_of_a_guide_to_far_targets_keeps_a_budget(tmp_path):
    """It is a stage of its own; the twin, one step of it all, would take 50,000."""
    options = {"warm_start": False, "num_steps": 100, "num_epochs": 30}
    inference, path = made(far, **options), tmp_path / "run.npz"
    found = inference.run(KEY, checkpoint=path, max_simulations=15_000)
    assert found.stopped_by == "budget"
    assert found.num_simulations < 16_000
    engine, key = inference._begin(KEY, (), {})
    state = Checkpoint(path, engine, key).read()
    assert state.stage == "way"
    assert state.steering.num_moves > 1


def test_foreign_files_are_refused(tmp_path, checkpoint):
    (tmp_path / "text.npz").write_text("z = 1")
    with pytest.raises(ValueError, match=r"checkpoint of a run, got .* damaged"):
        made().run(KEY, checkpoint=tmp_path / "text.npz")
    result = made().run(KEY)
    result.save(tmp_path / "result.npz")
    with pytest.raises(ValueError, match=r"checkpoint of a run, got .* is not one"):
        made().run(KEY, checkpoint=tmp_path / "result.npz")
    with pytest.raises(ValueError, match="its format is 'numpyro_epi checkpoint'"):
        epi.EPIResult.load(checkpoint, gaussian, GUIDE)


def mutated(data, rng):
    """Bytes of a file after an accident."""
    kind = rng.integers(5)
    data = bytearray(data)
    places = np.sort(rng.integers(0, len(data), 3))
    if kind == 0:
        return bytes(data[: places[0]])
    if kind == 1:
        for place in places:
            data[place] ^= 1 << rng.integers(8)
        return bytes(data)
    if kind == 2:
        a, b, c = places
        return bytes(data[:a] + data[b:c] + data[a:b] + data[c:])
    if kind == 3:
        data[places[0] : places[0] + 4] = rng.bytes(4)
        return bytes(data)
    return bytes(data[: places[0]] + rng.bytes(50) + data[places[0] :])


@pytest.mark.parametrize("kind", ["checkpoint", "result"])
def test_damaged_files_are_read_right_or_refused(kind, tmp_path, checkpoint):
    """A thousand accidents; what is read all the same is what was written."""
    source, path = checkpoint, tmp_path / "damaged.npz"
    if kind == "result":
        source = tmp_path / "result.npz"
        INFERENCE.run(KEY, init_state=INFERENCE.init(KEY), max_seconds=1e-9).save(
            source
        )
    whole = source.read_bytes()
    header, arrays = _archive.read(source)
    rng, num_refused = np.random.default_rng(0), 0
    for _ in range(1000):
        path.write_bytes(mutated(whole, rng))
        try:
            found, others = _archive.read(path)
        except _archive.DAMAGE:
            num_refused += 1
            continue
        assert found == header
        for name, array in arrays.items():
            np.testing.assert_array_equal(others[name], array)
    assert num_refused > 800
    path.write_bytes(mutated(whole, rng)[:-100])
    use = {
        "result": lambda: epi.EPIResult.load(path, gaussian, GUIDE),
        "checkpoint": lambda: INFERENCE.run(KEY, checkpoint=path),
    }[kind]
    with pytest.raises(ValueError, match="damaged"):
        use()


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)


def array_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_no_file_makes_a_reader_take_more_than_it_has(tmp_path):
    """Headers that promise petabytes, members that unpack to 1 GB, objects."""
    path = tmp_path / "large.npz"
    small = array_bytes(np.zeros(10))
    promise = small.replace(b"(10,)", b"(9" + b"9" * 14 + b",)", 1)
    cases = [{"a.npy": promise}, {"a.npy": small[:-8]}, {"a.txt": b""}]
    cases += [{"a.npy": array_bytes(np.array([{}], object))}]
    for members in cases:
        archive(path, members)
        with pytest.raises(_archive.DAMAGE):
            _archive.read(path)
    archive(path, {"a.npy": array_bytes(np.zeros(2**20))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        _archive.read(path)


@pytest.mark.parametrize(("share", "most"), [(0.05, 0.06), (1.0, 1.0)])
def test_writing_takes_a_small_share_of_the_time(share, most, checkpoint, monkeypatch):
    """By a clock of its own: a step takes 2 s, and a file 1 s. The twin writes all."""
    clock, num_written = [0.0], []

    def write(*_):
        clock[0] += 1.0
        num_written.append(clock[0])

    monkeypatch.setattr(_checkpoint, "MAX_SHARE", share)
    monkeypatch.setattr(_checkpoint.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(_archive, "write", write)
    engine, key = INFERENCE._begin(KEY, (), {})
    kept = Checkpoint(checkpoint, engine, key)
    state = kept.read()
    for _ in range(200):
        clock[0] += 2.0
        kept.write(state)
    assert 0 < len(num_written) / clock[0] <= most
    assert (len(num_written) == 200) == (share == 1.0)
    kept.write(state, is_last=True)
    assert num_written[-1] == clock[0]


# -- what ends a run ------------------------------------------------------------------


def test_a_budget_of_simulations_goes_on_where_it_ended(tmp_path):
    inference, path = made(), tmp_path / "run.npz"
    whole, found = inference.run(KEY), []
    assert whole.stopped_by == "done"
    for limit in (3000, 5000, 10**6):
        found.append(inference.run(KEY, checkpoint=path, max_simulations=limit))
        assert found[-1].num_simulations <= 1.2 * limit
    assert [r.stopped_by for r in found] == ["budget", "budget", "done"]
    assert found[0].status is epi.EPIStatus.BUDGET
    assert "Its budget is used up" in found[0].message
    assert "goes on from a `checkpoint`" in found[0].message
    same(found[-1], whole)


STAGES = ["law", "first fit", "guide", "verdict"]


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("by", ["budget", "callback", "interrupt"])
def test_every_stage_can_be_stopped_and_gone_on_with(stage, by, tmp_path, monkeypatch):
    inference, limits = INFERENCE, {}
    states = [inference.init(KEY)]
    while states[-1].stage != stage:
        states.append(inference.advance(states[-1]))
    state = states[-1]
    if by == "budget":
        limits = {"max_seconds": 1e-9}
    elif by == "callback":
        limits, state = {"callbacks": [lambda state: True]}, states[-2:][0]
    else:
        advance = Solver.advance

        def stop(self, now):
            if now.stage == stage:
                raise KeyboardInterrupt
            return advance(self, now)

        monkeypatch.setattr(Solver, "advance", stop)
    path = tmp_path / "run.npz"
    early = inference.run(KEY, init_state=state, checkpoint=path, **limits)
    assert early.stopped_by == by
    assert np.isfinite(early.entropy)
    bad = epi.EPIStatus.BUDGET if by == "budget" else epi.EPIStatus.INTERRUPTED
    assert early.status in (bad, "converged", "corrected", "law only")
    monkeypatch.undo()
    same(inference.run(KEY, checkpoint=path), WHOLE())
    same(inference.run(KEY, init_state=state), WHOLE())


INFERENCE = made()


def WHOLE(found=[]):  # noqa: B006, N802
    """The run that is never stopped."""
    if not found:
        found.append(INFERENCE.run(KEY))
    return found[0]


def test_the_bar_says_what_is_left_of_a_budget(capsys):
    made(progress_bar=True).run(KEY, max_simulations=5000, max_seconds=1000)
    shown = capsys.readouterr().err
    assert re.search(r"law \([\d,]+ s, [\d,]+ simulations left\)", shown)


def test_stops_are_kept_in_files(tmp_path, capsys):
    result = INFERENCE.run(KEY, max_seconds=1e-9)
    result.save(tmp_path / "result.npz")
    again = epi.EPIResult.load(tmp_path / "result.npz", gaussian, GUIDE)
    assert (again.stopped_by, again.status) == ("budget", result.status)
    assert again.gradient.choice == "none"
    again.print_summary()
    assert "stopped by budget" in capsys.readouterr().out


MISUSE = [
    ({"max_seconds": 0}, ValueError, "max_seconds", {}),
    ({"max_seconds": "1 h"}, ValueError, "max_seconds", {"max_seconds": 1}),
    ({"max_simulations": 0}, ValueError, "max_simulations", {}),
    ({"max_simulations": 1.5}, ValueError, "max_simulations", {"max_simulations": 2}),
    ({"callbacks": [3]}, TypeError, "callbacks", {"callbacks": [lambda state: True]}),
    ({"checkpoint": "no/such/run.npz"}, ValueError, "folder that exists", {}),
    ({"checkpoint": "."}, ValueError, "path of a file", {}),
    (
        {"init_state": 3},
        TypeError,
        "init_state",
        {"init_state": "EPI.init", "max_simulations": 100},
    ),
    (
        {"model_kwargs": {"scale": 1.0}, "scale": 2.0},
        TypeError,
        "`scale`",
        {"scale": 1.0, "max_simulations": 100},
    ),
]


@pytest.mark.parametrize(("options", "error", "words", "mended"), MISUSE)
def test_misuse_is_named_and_can_be_mended(options, error, words, mended):
    with pytest.raises(error, match=words):
        INFERENCE.run(KEY, **options)
    if mended.get("init_state"):
        mended = mended | {"init_state": INFERENCE.init(KEY)}
    assert np.isfinite(INFERENCE.run(KEY, **mended).entropy)


def test_ways_out_of_a_refused_checkpoint_work(checkpoint, tmp_path):
    copy = tmp_path / "copy.npz"
    copy.write_bytes(checkpoint.read_bytes())
    other, stop = made(num_steps=6), {"max_simulations": 100}
    with pytest.raises(ValueError, match="or delete the file"):
        other.run(KEY, checkpoint=copy, **stop)
    other.run(KEY, checkpoint=tmp_path / "other.npz", **stop)
    copy.unlink()
    other.run(KEY, checkpoint=copy, **stop)


NAMES = {
    "init_state": None,
    "max_seconds": 100.0,
    "max_simulations": 10**6,
    "checkpoint": "run.npz",
    "callbacks": [lambda state: False],
}


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_a_model_with_the_names_of_a_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"gaussian": gaussian}
    exec(f"def model({name}=1.0): gaussian({name})", scope)  # noqa: S102
    inference = made(scope["model"])
    if name != "init_state":
        with pytest.raises(TypeError, match=f"model_kwargs={{'{name}'"):
            inference.run(KEY, **{name: NAMES[name]})
    both = {} if name == "init_state" else {name: NAMES[name]}
    stop = {"max_simulations": 100} if name != "max_simulations" else {}
    wide = inference.run(KEY, model_kwargs={name: 3.0}, **both, **stop)
    spread = np.std(wide.sample(KEY, 1000)["z"])
    assert spread > 2.0 or name == "max_simulations"


def test_a_model_that_takes_anything_gets_what_is_said_to_be_its_own():
    def model(**kwargs):
        gaussian(kwargs.get("max_seconds", 1.0))

    limits = {"max_simulations": 100}
    wide = made(model).run(KEY, model_kwargs={"max_seconds": 3.0}, **limits)
    plain = made(model).run(KEY, max_seconds=3.0, **limits)
    assert np.std(wide.sample(KEY, 1000)["z"]) > 2.0
    assert np.std(plain.sample(KEY, 1000)["z"]) < 1.5


# -- another process ------------------------------------------------------------------

SCRIPT = """
import sys, jax, numpy as np
sys.path.insert(0, sys.argv[2])
from test_checkpoint import KEY, made
options = dict(num_steps=300, num_epochs=8, gap_tolerance=0.0)
result = made(**options).run(KEY, checkpoint=sys.argv[1])
print(result.num_simulations, result.entropy, np.asarray(result.violation).tobytes())
"""


def started(path):
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(path.parent / "cache")}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", SCRIPT, str(path), os.path.dirname(__file__)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.long
def test_a_run_that_is_killed_again_and_again_ends_as_one(tmp_path):
    """`kill -9` at twenty random moments of what is left of it."""
    began = time.perf_counter()
    whole, _ = started(tmp_path / "whole.npz").communicate(timeout=600)
    began = time.perf_counter()
    again, _ = started(tmp_path / "again.npz").communicate(timeout=600)
    seconds = time.perf_counter() - began
    assert again == whole
    rng, path, num_killed = np.random.default_rng(0), tmp_path / "killed.npz", 0
    for _ in range(20):
        process = started(path)
        try:
            process.communicate(timeout=float(rng.uniform(0.3, 1.0) * seconds))
            path.unlink()
        except subprocess.TimeoutExpired:
            num_killed += 1
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert num_killed >= 10
    found, _ = started(path).communicate(timeout=600)
    assert found == whole
