# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Advice on runs, results, files, figures and analyses, followed."""

import json
import re
import sys
import tempfile
import warnings
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import autoguide

import numpyro_epi as epi
from advice_table import case, refused, said, warned
from numpyro_epi import _report, diagnostics, plotting, sensitivity
from numpyro_epi._train.records import Scores
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.status import EPIStatus, SeenRange
from numpyro_epi._train.verdict import verdict
from plotting import scenes
from small_results import shaken

KEY = jax.random.key(0)
trained = partial(case, slow=True)
TINY = {
    "num_particles": 100,
    "num_epochs": 1,
    "num_steps": 2,
    "num_evaluation": 500,
    "warm_start": False,
    "stat_gradient": "reverse",
    "gap_tolerance": 0.0,
    "progress_bar": False,
}
NORMAL = autoguide.AutoNormal
FAST = optax.adam(0.05)


def line(scale=1.0, *, target=1.0):
    z = numpyro.sample("z", dist.Normal(0.0, scale))
    epi.emergent_property(z, mean=target, name="f")


def run(model=line, guide=NORMAL, optim=FAST, args=(), **options):
    return epi.EPI(model, guide, optim, **(TINY | options)).run(KEY, *args)


@cache
def short():
    """A run of two steps."""
    return run()


@cache
def long():
    """One that has converged."""
    return run(num_epochs=8, num_steps=100, num_evaluation=20_000)


# -- files ----------------------------------------------------------------------------


@cache
def folder():
    made = tempfile.TemporaryDirectory()
    return made, Path(made.name)


@cache
def stored():
    path = folder()[1] / "short.npz"
    short().save(path)
    return path


def load(model=line, guide=NORMAL, path=None, optim=FAST, **given):
    return epi.EPIResult.load(path or stored(), model, guide, optim, **given)


def edited(**changes):
    """The stored file with another header."""
    with np.load(stored()) as content:
        arrays = {name: content[name] for name in content.files}
    header = json.loads(bytes(arrays["header"])) | changes
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path = folder()[1] / "edited.npz"
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


@trained("_files/_checks.py", "Pass those of the run as `model_args` or `model_kwargs`")
def other_arguments():
    with refused():
        load(model_args=(2.0,))
    load(model_args=(1.0,))
    load(model_kwargs={"scale": 1.0})
    run(args=(2.0,))


@trained("_files/_checks.py", "those of another model need a run of their own.")
def other_targets():
    def moved(scale=1.0, *, target=1.0):
        line(scale, target=target + 1.0)

    with refused():
        load(moved)
    load()
    assert np.isfinite(epi.EPI(moved, NORMAL, FAST, **TINY).run(KEY).entropy)


@trained("_files/_checks.py", "got {}. Pass the model, its arguments and the guide of")
def other_sites():
    def other(scale=1.0, *, target=1.0):
        w = numpyro.sample("w", dist.Normal(0.0, scale))
        epi.emergent_property(w, mean=target, name="f")

    with refused():
        load(other)
    load()


@trained("_files/_checks.py", "and the guide of the run, with the same options.")
def other_density():
    def other(scale=1.0, *, target=1.0):
        line(2.0 * scale, target=target)

    with refused():
        load(other)
    load()


@trained("_files/_reading.py", "wrote. Load it with that version; this is")
@trained("_files/_reading.py", "load it with that one.")
def other_version():
    for changes in ({"version": 99}, {"options": {"novel": 1}}):
        with refused():
            load(path=edited(**changes))
    load(path=edited())  # as with the version that wrote it


@trained("_files/_reading.py", "before anything else is computed.")
def other_precision():
    path = folder()[1] / "double.npz"
    with jax.enable_x64():
        run().save(path)
    try:
        load(path=path)
    except ValueError as err:
        (call,) = re.findall(r"`(jax\.config\.update\(.*?\))`", said(str(err)))
    try:
        eval(call, {"jax": jax})  # noqa: S307
        load(path=path)
    finally:
        eval(call.replace("True", "False"), {"jax": jax})  # noqa: S307


# -- how a run ends -------------------------------------------------------------------


@trained(
    "_train/verdict.py", "Train longer (`num_epochs`, `num_steps`, `num_particles`)"
)
def not_converged():
    assert not short().converged
    said(short().message)
    assert long().converged
    # The other ways out: another guide, another target.
    assert run(guide=autoguide.AutoMultivariateNormal, num_steps=400).restarts
    assert run(args=(1.0,), model=partial(line, target=0.0), num_steps=100).restarts


@trained("_train/verdict.py", "Use more of them (`num_evaluation`), or a statistic")
def too_few_draws():
    found = run(num_epochs=8, num_steps=100, num_evaluation=200)
    assert not found.converged
    said(found.message)
    assert long().converged

    def bounded():
        z = numpyro.sample("z", dist.Normal(0.0, 0.02))
        epi.emergent_property(jnp.tanh(z), mean=0.0, var=1.0, name="f")

    options = {"tolerance": 1.0}
    assert run(bounded, num_evaluation=100, **options).status


@trained("_train/verdict.py", "Use more restarts, or restrict the prior to latents")
def nothing_simulated():
    simulations = Simulations.start(short()._engine, KEY)
    simulations.know(seen=simulations.ledger.seen.add(np.array([[0.0], [2.0]])))
    status, message = verdict(simulations, Scores.failed(1))
    assert status is EPIStatus.NOT_CONVERGED
    said(message)

    def failing(low):
        z = numpyro.sample("z", dist.Uniform(low, 1.0))
        epi.emergent_property(jnp.log(z), mean=-1.0)

    engine = epi.EPI(partial(failing, 0.1), NORMAL, **TINY)._engine(KEY, (), {})
    Simulations.start(engine, KEY).pilot()
    assert len(run(num_restarts=2).restarts) == 2


@trained("_train/status.py", "Make the simulator return finite values there, {}")
def invalid_statistics():
    def failing(repair=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        value = jnp.where(z > -1.0, z, jnp.nan if repair is None else repair)
        epi.emergent_property(value, mean=0.5)

    def pilot(*args, **options):
        inference = epi.EPI(failing, NORMAL, **(TINY | options))
        return Simulations.start(inference._engine(KEY, args, {}), KEY).pilot()

    with refused(epi.InvalidStatisticError):
        pilot(on_invalid="raise")
    pilot(-1.0, on_invalid="raise")
    pilot(on_invalid="mask")


def seen(model, num=500):
    """Whether the targets of a model are out of reach, by draws of its prior."""
    engine = epi.EPI(model, NORMAL, **TINY)._engine(KEY, (), {})
    table, chunks = engine.problem.table, engine.chunks
    u = chunks.prior_draws(KEY[None], num)
    stats = chunks.simulate(u, KEY[None]).stats[0]
    return SeenRange.empty(table.num_statistics).add(stats).unreachable(table)


def bounded(top, mean, var=None):
    z = numpyro.sample("z", dist.Uniform(0.0, top))
    epi.emergent_property(z, mean=mean, var=var)


@case("_train/status.py", "Move the target, or widen the support of the latents.")
def mean_out_of_reach():
    said(seen(partial(bounded, 1.0, 2.0)))
    assert seen(partial(bounded, 1.0, 0.5)) is None
    assert seen(partial(bounded, 4.0, 2.0)) is None


@case("_train/status.py", "Lower the target variance.")
def variance_out_of_reach():
    said(seen(partial(bounded, 1.0, 0.5, 0.5)))
    assert seen(partial(bounded, 1.0, 0.5, 0.1)) is None


# -- reports --------------------------------------------------------------------------


def reported(restart, table):
    result = replace(short(), restarts=(restart,), table=table)
    return " ".join(_report.summary(result).split())


@trained("_report.py", "A gap of {} nats is large: a part with the property may be")
def large_gap():
    best = short()._best
    far = replace(best, log_normalizer=best.score + 2.0, dual_ess=500.0)
    text = reported(far, short().table)
    said(text)
    near = replace(best, log_normalizer=best.score + 0.1, dual_ess=500.0)
    assert "is large" not in reported(near, short().table)
    # More epochs, restarts and layers; and the diagnostic.
    first = diagnostics.duality_gap_diagnostic(short(), KEY, 2000)
    last = diagnostics.duality_gap_diagnostic(long(), KEY, 2000)
    assert last.gap < 0.1 < first.gap
    guide = partial(epi.guides.AutoRealNVP, num_flows=3, hidden_dims=(4,))
    assert guide(line).num_flows == 3
    epi.EPI(line, guide, num_restarts=3)


@case("_report.py", "Leave `var` out, or ask for less.")
def widened():
    def report(var):
        def model():
            z = numpyro.sample("z", dist.Normal(0, 1))
            epi.emergent_property(z, mean=0.0, var=var, name="f")

        rng = np.random.default_rng(0)
        z = np.sqrt(var or 1.0) * rng.normal(size=500)
        result = scenes.make_result(model, {"z": z}, {"f": z}, -0.5 * z**2)
        rows = [0.0] if var is None else [0.0, 0.5 * (1.0 / var - 1.0)]
        best = replace(result._best, multipliers={"f": np.array(rows)})
        return " ".join(_report._widened(result.table, best))

    said(report(4.0))
    assert not report(1.0)
    assert not report(None)


@trained("arviz.py", "Install it with `pip install arviz h5netcdf h5py`.")
def without_arviz():
    with mock.patch.dict(sys.modules, {"arviz": None}), refused(ImportError):
        epi.to_arviz(short())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        epi.to_arviz(short())


# -- diagnostics ----------------------------------------------------------------------


@trained("diagnostics/_restarts.py", "Run `EPI(model, num_restarts=4)`.")
def one_restart():
    with refused():
        diagnostics.restart_diagnostic(short())
    diagnostics.restart_diagnostic(run(num_restarts=4))


@trained("_train/guide.py", "cannot be inverted. Use `numpyro_epi.guides.AutoRealNVP`")
def draws_without_density():
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        epi.emergent_property(z.sum(), mean=1.0)

    small = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(4,))
    for guide, is_good in ((autoguide.AutoBNAFNormal, False), (small, True)):
        result = shaken(model, guide, num_evaluation=400, warm_start_size=100)
        draw = partial(diagnostics._mixture.draw_mixture, result, KEY, 100)
        if is_good:
            assert np.isfinite(draw().log_prior).all()
            continue
        with refused(NotImplementedError):
            draw()


@trained("diagnostics/_prices.py", "Run `EPI` on the model wrapped in")
def new_variance():
    with refused():
        diagnostics.what_if(short(), {"f": (1.0, 0.5)}, KEY)
    other = epi.handlers.retarget(line, {"f": (1.0, 0.5)})
    assert len(run(other).multipliers["f"]) == 2


@cache
def astray():
    """A result whose guide, of two steps, is nowhere near a far target."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        epi.emergent_property(z, mean=8.0, name="f")

    return model, run(model)


@cache
def arrived():
    return run(astray()[0], num_epochs=6, num_steps=200)


@trained("diagnostics/_prices.py", "Use more `num_samples`, or train longer.")
def unknown_prices():
    with refused():
        diagnostics.shadow_price_diagnostic(astray()[1], KEY, 500)
    found = diagnostics.shadow_price_diagnostic(arrived(), KEY, 2000)
    assert abs(found.mean["f"] + 8.0) < 1.0
    few, many = (
        diagnostics.shadow_price_diagnostic(long(), KEY, num) for num in (500, 20_000)
    )
    assert many.mean_error["f"] < few.mean_error["f"]


# -- figures --------------------------------------------------------------------------


@trained("plotting/_components.py", "Run it with a larger `num_evaluation`.")
def figure_without_draws():
    with refused():
        plotting.plot_pairs(replace(short(), restarts=()))
    plotting.plot_pairs(run(num_evaluation=600))
    plt.close("all")


@case("plotting/_curves.py", "Draw them in figures of their own.")
def curves_of_other_statistics():
    first = scenes.perturbation()
    cut = {k: {"total": v["total"]} for k, v in first._asdict().items() if is_dict(v)}
    other = first._replace(**cut)
    with refused():
        plotting.plot_perturbation({"a": first, "b": other})
    plotting.plot_perturbation({"a": first})
    plotting.plot_perturbation({"b": other})
    plt.close("all")


def is_dict(value):
    return isinstance(value, dict)


@case("plotting/_labels.py", "Correct the name, or label these too if")
def unknown_label():
    draw = partial(plotting.plot_pairs, scenes.three())
    with refused():
        draw(labels={"b": "x"})
    draw(labels={"scope/b": "x"})
    draw(labels={"b": "x", "a": "y", "scope/b": "z"})
    plt.close("all")


@trained(
    "plotting/_marks.py",
    'Call `sensitivity.directions(..., coordinates="constrained")`',
)
def directions_elsewhere():
    draw = partial(plotting.plot_pairs, long())
    at = {"z": 1.0}
    found = sensitivity.directions(long(), at, coordinates="unconstrained")
    with refused():
        draw(directions=found)
    draw(directions=sensitivity.directions(long(), at, coordinates="constrained"))
    plt.close("all")


@case("plotting/_marks.py", "Use functions that act on each element.")
def contour_of_a_number():
    draw = partial(plotting.plot_pairs, scenes.three())
    with refused():
        draw(contours={("a[0]", "a[1]"): (lambda x, y: 1.0, [0.5])})
    draw(contours={("a[0]", "a[1]"): (lambda x, y: x + y, [0.5])})
    plt.close("all")


@case("plotting/_mode_path.py", "`conditional_modes` at least one value.")
def empty_path():
    path = scenes.path()
    empty = path._replace(points=np.asarray(path.points)[:0])
    with refused():
        plotting.plot_mode_path(empty)
    plotting.plot_mode_path(path)
    plt.close("all")


@case("plotting/_predictive.py", "Leave it out with `statistics`.")
def statistic_without_values():
    result = scenes.three()
    best, statistics = result._best, dict(result.draws.statistics)
    statistics["total"] = np.full_like(statistics["total"], np.nan)
    draws = best.draws._replace(statistics=statistics)
    bad = replace(result, restarts=(replace(best, draws=draws),), best=0)
    with refused():
        plotting.plot_predictive(bad)
    plotting.plot_predictive(bad, statistics=["rows"])
    plt.close("all")


@case("plotting/_style.py", "Leave `ax` out for a new figure.")
def too_few_axes():
    with refused():
        plotting.plot_predictive(scenes.three(), ax=plt.figure().subplots())
    plotting.plot_predictive(scenes.three())
    plt.close("all")


# -- sensitivity ----------------------------------------------------------------------


def plane(gain=1.0):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    epi.emergent_property(gain * z[0], mean=1.0, name="f")


@cache
def planar():
    return run(plane, args=(1.0,), num_steps=200)


AT = {"z": np.array([1.0, 0.0])}


@trained(
    "sensitivity/_active.py", 'Use `coordinates="unconstrained"`, in which supports'
)
@trained("sensitivity/_active.py", "Look at the draws with the lowest log density")
def gradients_at_the_edge():
    check = sensitivity._active._check_gradient
    bad = np.ones((10, 2))
    bad[3] = np.nan
    for coordinates in ("constrained", "unconstrained"):
        with refused():
            check(bad, coordinates)
    huge = np.ones((1000, 2))
    huge[3] = 1e4
    with warned():
        check(huge, "constrained")
    sensitivity.active_subspace(planar(), coordinates="unconstrained")
    order = np.argsort(planar().draws.log_density)
    assert np.isfinite(planar().draws.latents["z"][order[:5]]).all()


@trained("sensitivity/_coordinates.py", "Use 'standardised' for latents of different")
def logarithm_of_negative():
    with refused():
        sensitivity.directions(planar(), AT, coordinates="log")
    sensitivity.directions(planar(), AT, coordinates="standardised")


@trained("sensitivity/_groups.py", "Leave that mode out, or raise `max_draws`.")
def group_that_is_not_full():
    path = sensitivity.conditional_modes(planar(), "z[0]", [0.0, 4.0])
    group = partial(sensitivity.group_by_mode, planar(), rng_key=KEY, num_per_group=5)
    with refused(RuntimeError):
        group(modes=path, max_draws=20)
    near = sensitivity.conditional_modes(planar(), "z[0]", [0.5])
    group(modes=near, max_draws=20)
    group(modes=path, max_draws=200_000)


@trained("sensitivity/_interventions.py", "for a single one.")
def one_intervention():
    with refused(TypeError):
        sensitivity.intervene(planar(), 2.0, KEY, argument="gain")
    sensitivity.intervene(planar(), [2.0], KEY, argument="gain", num_draws=20)


@trained("sensitivity/_interventions.py", "Pass the result that the groups are from.")
@trained("sensitivity/_interventions.py", "Ask `group_by_mode` for at least one draw a")
def groups_alone():
    path = sensitivity.conditional_modes(planar(), "z[0]", [0.5, 1.5])
    groups = sensitivity.group_by_mode(planar(), path, KEY, num_per_group=5)
    intervene = partial(sensitivity.intervene, argument="gain")
    with refused(TypeError):
        intervene(groups, [2.0], KEY)
    empty = groups._replace(points=groups.points[:, :0])
    with refused():
        intervene(empty, [2.0], KEY, result=planar())
    one = sensitivity.group_by_mode(planar(), path, KEY, num_per_group=1)
    for given in (groups, one):
        intervene(given, [2.0], KEY, result=planar())


@trained(
    "sensitivity/_layout.py", "Pick one, as in `{site: value[0] for site, value in"
)
def several_points():
    latents = planar().sample(KEY, 3)
    with refused():
        sensitivity.perturb(planar(), latents, [1.0, 0.0], [0.1, 0.2], KEY)
    one = {site: value[0] for site, value in latents.items()}
    sensitivity.perturb(planar(), one, [1.0, 0.0], [0.1, 0.2], KEY, num_simulations=2)


def unit():
    z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
    epi.emergent_property(z, mean=0.5, name="f")


@trained("sensitivity/_layout.py", "which is not between {} and {}. Stay nearer.")
def outside_the_support():
    result = run(unit)
    perturb = partial(sensitivity.perturb, result, {"z": 0.5}, [1.0], rng_key=KEY)
    with refused():
        perturb(deltas=[0.1, 0.9])
    perturb(deltas=[0.1, 0.2])


@trained("sensitivity/_perturb.py", "Add zero, for example.")
def equal_distances():
    test = partial(sensitivity.direction_test, planar(), AT, np.eye(2), rng_key=KEY)
    with refused():
        test(deltas=[0.1, 0.1, 0.1])
    test(deltas=[0.0, 0.1, 0.1, 0.1])


@trained("sensitivity/_tilted.py", "Use 'auto' or 'differences'.")
def no_second_derivatives():
    @jax.custom_vjp
    def once(x):
        return x**2

    def forward(x):
        return once(x), x

    def backward(x, cotangent):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        slope = jax.pure_callback(lambda v: 2 * v, shape, x, vmap_method="sequential")
        return (slope * cotangent,)

    once.defvjp(forward, backward)

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        epi.emergent_property(once(z), mean=1.0, name="f")

    result, at = run(model), {"z": np.array(1.0)}
    with refused():
        sensitivity.hessian(result, at, derivative="autodiff")
    for derivative in ("auto", "differences"):
        sensitivity.hessian(result, at, derivative=derivative)
