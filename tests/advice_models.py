# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Advice on models, options, guides and handlers, followed."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.sharding import Mesh
from numpyro import handlers
from numpyro.distributions import constraints, transforms
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide
from numpyro.infer.reparam import CircularReparam, TransformReparam

import numpyro_epi as epi
from advice_table import case, refused, said
from numpyro_epi._model.problem import Problem
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.options import Options

KEY = jax.random.key(0)
TINY = {
    "num_particles": 4,
    "num_epochs": 1,
    "num_steps": 2,
    "num_evaluation": 100,
    "warm_start_size": 100,
    "progress_bar": False,
}


def z_model(scale=1.0):
    z = numpyro.sample("z", dist.Normal(0.0, scale))
    epi.emergent_property(z, mean=1.0)


def problem(model, *args, **kwargs):
    return Problem(model, args, kwargs, KEY)


def accepted(model, *args, **kwargs):
    """The model's names of latents; that is, nothing is wrong with it."""
    return [site.name for site in problem(model, *args, **kwargs).sites]


def trace(model, key=KEY):
    return handlers.trace(handlers.seed(model, key)).get_trace()


# -- sites ----------------------------------------------------------------------------


@case(
    "_sites.py", "Call the guide, or `SVI.init`, once outside of `jax.jit`.", slow=True
)
def traced_arguments():
    def model(scale):
        numpyro.sample("z", dist.Normal(0.0, scale))

    for once in (False, True):
        guide = epi.guides.AutoRealNVP(model, num_flows=1)
        run = jax.jit(lambda scale, guide=guide: handlers.seed(guide, KEY)(scale))
        if once:
            handlers.seed(guide, KEY)(1.0)
            assert set(run(1.0)) == {"z"}
            continue
        with refused(RuntimeError):
            run(1.0)
    svi = SVI(model, guide, optax.adam(1e-3), Trace_ELBO())
    jax.jit(svi.update)(svi.init(KEY, 1.0), 1.0)


@case("_sites.py", "if it is simulation noise, or replace it by a continuous latent")
def discrete_latent():
    poisson = dist.Poisson(2.0)

    def model(prior=poisson, infer=None):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        n = numpyro.sample("n", prior, infer=infer)
        epi.emergent_property(n, mean=1.0)

    with refused():
        accepted(model)
    assert accepted(model, infer={"noise": True}) == ["z"]
    assert accepted(model, dist.Gamma(2.0)) == ["z", "n"]


@case("_sites.py", "Reparametrise: sample a fraction from a fixed support")
def support_of_latents():
    def model():
        top = numpyro.sample("top", dist.LogNormal(0.0, 1.0))
        b = numpyro.sample("b", dist.Uniform(0.0, top))
        epi.emergent_property(b, mean=1.0)

    def fixed():
        top = numpyro.sample("top", dist.LogNormal(0.0, 1.0))
        fraction = numpyro.sample("b_fraction", dist.Uniform(0, 1))
        epi.emergent_property(fraction * top, mean=1.0)

    with refused():
        accepted(model)
    assert accepted(fixed) == ["top", "b_fraction"]


class Halved(dist.Normal):
    """On a support that NumPyro cannot map to the line."""

    support = constraints.dependent(is_discrete=False, event_dim=0)


@case(
    "_sites.py", "Reparametrise the site, for example with `numpyro.handlers.reparam`"
)
def strange_support():
    halved = Halved(0.0, 1.0)

    def model(prior=halved):
        z = numpyro.sample("z", prior)
        epi.emergent_property(z, mean=1.0)

    with refused():
        accepted(model)
    prior = dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), transforms.AffineTransform(1.0, 2.0)
    )
    other = handlers.reparam(partial(model, prior), {"z": TransformReparam()})
    assert accepted(other) == ["z_base"]


@case("_sites.py", "Drop `subsample_size`.")
def subsampled_latents():
    def model(**options):
        with numpyro.plate("rows", 4, **options):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        epi.emergent_property(z.sum(), mean=1.0)

    with refused():
        accepted(model, subsample_size=2)
    assert accepted(model) == ["z"]


@case(
    "guides/_prior.py",
    "Make it a constant of the model, or `numpyro.deterministic`.",
    slow=True,
)
def constant_latent():
    def model(kind):
        if kind == "sample":
            a = numpyro.sample("a", dist.LogNormal(1.0, narrow()))
        else:
            a = numpyro.deterministic("a", 2.0) if kind == "named" else 2.0
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        epi.emergent_property(a * z, mean=1.0)

    def narrow():
        return 1e-30 * jnp.exp(numpyro.sample("w", dist.Normal(0.0, 1.0)))

    for kind in ("sample", "named", "constant"):
        guide = epi.guides.AutoRealNVP(model, num_flows=1)
        if kind == "sample":
            with refused():
                handlers.seed(guide, KEY)(kind)
        else:
            assert set(handlers.seed(guide, KEY)(kind)) == {"z"}


# -- the model ------------------------------------------------------------------------


@case(
    "_model/problem.py", "Add `numpyro.sample` sites with continuous priors, which are"
)
def no_latents():
    with refused():
        accepted(lambda: epi.emergent_property(1.0, mean=1.0))
    assert accepted(z_model) == ["z"]


@case("_model/problem.py", "to it, or use `numpyro.infer.SVI`.", slow=True)
def no_property():
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=0.0)

    with refused():
        accepted(model)
    assert accepted(z_model) == ["z"]
    guide = autoguide.AutoNormal(model)
    SVI(model, guide, optax.adam(0.1), Trace_ELBO()).run(KEY, 2, progress_bar=False)


def flat(name="m"):
    return numpyro.sample(name, dist.ImproperUniform(constraints.real, (), ()))


@case(
    "_model/improper.py",
    "Give it a proper prior, such as a wide `dist.Normal` or",
    slow=True,
)
def improper():
    def model(prior=None, data=None):
        m = flat() if prior is None else numpyro.sample("m", prior)
        if data is not None:
            numpyro.sample("y", dist.Normal(m, 1.0), obs=data)
        epi.emergent_property(m, mean=1.0)

    with refused():
        accepted(model)
    assert accepted(model, dist.Normal(0.0, 100.0)) == ["m"]
    assert accepted(model, dist.LogNormal(0.0, 10.0)) == ["m"]
    assert accepted(model, data=3.0) == ["m"]


@case(
    "_model/improper.py",
    "Give `{}` a proper prior, such as a wide `dist.Normal`.",
    slow=True,
)
def improper_and_nowhere():
    def model(prior=None):
        m = flat() if prior is None else numpyro.sample("m", prior)
        is_there = jnp.abs(m - 1234.567) < 1e-2
        numpyro.factor("there", jnp.where(is_there, 0.0, -jnp.inf))
        epi.emergent_property(m, mean=1.0)

    with refused():
        accepted(model)
    assert accepted(model, dist.Normal(0.0, 1e4)) == ["m"]


@case("_model/improper.py", "If it comes from `CircularReparam`, leave that out")
def circular():
    def model():
        angle = numpyro.sample("angle", dist.VonMises(0.3, 4.0))
        epi.emergent_property(jnp.cos(angle), mean=0.5)

    with refused():
        accepted(handlers.reparam(model, {"angle": CircularReparam()}))
    assert accepted(model) == ["angle"]


@case("_model/params.py", "or make it a `numpyro.sample` site with a prior.")
def trained_parameter():
    def model(prior=None):
        w = numpyro.param("w", 2.0)
        if prior is not None:
            w = numpyro.sample("w_prior", prior)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        epi.emergent_property(w * z, mean=1.0)

    with refused():
        accepted(model)
    assert accepted(handlers.substitute(model, {"w": 1.0})) == ["z"]
    assert accepted(model, dist.LogNormal(0.0, 1.0)) == ["w_prior", "z"]


@case("_model/outside.py", "Pass arrays that change as arguments of the model, as in")
def array_from_outside():
    y = np.zeros(2)

    def model(data):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=data)
        epi.emergent_property(z, mean=1.0)

    inference = epi.EPI(lambda: model(y), autoguide.AutoNormal)
    inference._engine(KEY, (), {})
    y[:] = 1.0
    with refused():
        inference._engine(KEY, (), {})
    epi.EPI(model, autoguide.AutoNormal)._engine(KEY, (y,), {})


# -- the primitive and handlers -------------------------------------------------------


@case("primitives.py", "Leave `var` out to constrain the mean only.")
def no_variance():
    with refused():
        epi.emergent_property(1.0, mean=1.0, var=0.0)
    epi.emergent_property(1.0, mean=1.0)


@case("primitives.py", "Split a complex statistic with `jnp.real` and `jnp.imag`.")
def complex_statistic():
    value = jnp.array(1.0 + 2.0j)
    with refused(TypeError):
        epi.emergent_property(value, mean=1.0)
    both = jnp.stack([jnp.real(value), jnp.imag(value)])
    assert epi.emergent_property(both, mean=1.0).shape == (2,)


@case("primitives.py", "Join numbers by `jnp.stack`, or call `emergent_property` once")
def ragged_statistic():
    a, b = jnp.ones(2), jnp.ones(3)
    with refused(TypeError):
        epi.emergent_property([a, b], mean=1.0)
    epi.emergent_property(jnp.stack([a[0], b[0]]), mean=1.0)

    def model():
        epi.emergent_property(a, mean=1.0, name="a")
        epi.emergent_property(b, mean=1.0, name="b")

    assert set(trace(model)) == {"a", "b"}


@case("primitives.py", "write targets as Python numbers or with `numpy`")
def traced_target():
    def model(mean):
        epi.emergent_property(1.0, mean=mean, name="f")

    with refused(TypeError):
        jax.jit(lambda: model(jnp.ones(2)[0]))()
    jax.jit(lambda: model(1.0))()
    jax.jit(lambda: model(np.ones(2)[0]))()
    jax.jit(lambda: epi.handlers.retarget(model, {"f": (2.0,)})(1.0))()


@case("handlers/_sites.py", "Pass `name=` to `emergent_property`, or wrap a part of")
def two_of_one_name():
    def model(name=None, scope=None):
        epi.emergent_property(1.0, mean=1.0, **({"name": name} if name else {}))
        inner = partial(epi.emergent_property, 2.0, mean=1.0)
        (handlers.scope(inner, prefix=scope) if scope else inner)()

    def names(**given):
        with epi.handlers.collect() as found:
            model(**given)
        return list(found.properties)

    with refused():
        names()
    assert names(name="a") == ["a", "emergent_property"]
    assert names(scope="s") == ["emergent_property", "s/emergent_property"]


def noisy_model():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", dist.Normal(z, 1.0), infer={"noise": True})
    epi.emergent_property(x, mean=0.5, name="f")


@case("handlers/noise.py", "Run the model under `numpyro.handlers.seed`.")
def noise_without_key():
    model = epi.handlers.noise(handlers.substitute(noisy_model, {"z": 0.0}))
    with refused(RuntimeError):
        model()
    handlers.seed(model, KEY)()


TILT = {"f": jnp.array([0.1])}


@case(
    "handlers/tilt.py",
    "Use SVI on the tilted model, which averages T over the noise",
    slow=True,
)
def tilt_with_noise():
    def expected():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        epi.emergent_property(z, mean=0.5, name="f")

    def sample(model):
        mcmc = MCMC(NUTS(model), num_warmup=1, num_samples=1, progress_bar=False)
        mcmc.run(KEY)

    tilted = epi.handlers.tilt(noisy_model, TILT)
    with refused(RuntimeError):
        sample(epi.handlers.noise(tilted))
    guide = autoguide.AutoNormal(epi.handlers.noise(tilted))
    model = epi.handlers.noise(tilted)
    SVI(model, guide, optax.adam(0.1), Trace_ELBO()).run(KEY, 2, progress_bar=False)
    sample(epi.handlers.tilt(expected, TILT))
    seeded = handlers.seed(epi.handlers.noise(noisy_model), KEY)
    sample(epi.handlers.tilt(seeded, TILT))


@case("handlers/tilt.py", "Put `numpyro.handlers.mask` inside the model.")
def mask_around_tilt():
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]))
        epi.emergent_property(z.sum(), mean=0.5, name="f")

    mask = jnp.array([True, False])
    with refused():
        trace(handlers.mask(epi.handlers.tilt(model, TILT), mask))
    trace(epi.handlers.tilt(handlers.mask(model, mask), TILT))


# -- options and guides ---------------------------------------------------------------


def obey_pass(text):
    """Options as a message says to pass them: `name=value` in back quotes."""
    found = re.search(r"Pass for instance `(\w+)=(\d+)`", text)
    return {found[1]: int(found[2])}


@case("_train/options.py", "must be an integer of at least {}, but got {}. Pass for")
def counts():
    for name in ("num_epochs", "num_steps", "num_particles", "num_evaluation"):
        try:
            Options(**{name: 0})
        except ValueError as err:
            Options(**obey_pass(said(str(err))))


@case("_train/options.py", "`stat_gradient='replay'` contradicts `schedule`")
def replay_and_schedule():
    schedule = epi.PublishedSchedule()
    with refused():
        Options(stat_gradient="replay", schedule=schedule)
    Options(stat_gradient="replay")
    Options(schedule=schedule)


@case("_train/options.py", "The penalty stays what it is: pass `penalty`")
def penalties_that_grew():
    for name in ("penalty_growth", "max_penalty"):
        with refused(TypeError):
            epi.EPI(pair_model, **{name: 2.0})
    epi.EPI(pair_model, penalty=2.0)


@case("_train/options.py", "`warm_start=True` contradicts `schedule`")
def warm_start_and_schedule():
    schedule = epi.PublishedSchedule()
    with refused():
        Options(warm_start=True, schedule=schedule)
    Options(warm_start=True)
    Options(schedule=schedule)


@case("_train/options.py", "Pass for instance `jax.make_mesh(")
def mesh():
    with refused(TypeError):
        Options(mesh="all")
    given = jax.make_mesh((jax.device_count(),), ("particles",))
    assert isinstance(Options(mesh=given).mesh, Mesh)


@case("epi.py", "`learning_rate` is that of the default optimiser")
def rate_and_optimiser():
    with refused():
        epi.EPI(z_model, optim=optax.adam(0.1), learning_rate=0.1)
    epi.EPI(z_model, optim=optax.adam(0.1))
    epi.EPI(z_model, learning_rate=0.1)


@case("epi.py", "`optim` is not used with `schedule`")
def optimiser_and_schedule():
    schedule = epi.PublishedSchedule()
    with refused():
        epi.EPI(z_model, optim=optax.adam(0.1), schedule=schedule)
    epi.EPI(z_model, optim=optax.adam(0.1))
    epi.EPI(z_model, schedule=schedule)


@case("epi.py", "Use `EPI.advance`, which takes a run a whole", slow=True)
def update():
    inference = epi.EPI(z_model, autoguide.AutoNormal, **TINY)
    with refused(AttributeError):
        inference.update  # noqa: B018
    state = inference.init(KEY)
    assert inference.advance(state).num_simulations > state.num_simulations


def guide_of(guide, model=z_model):
    return GuideFunctions(guide, problem(model), KEY)


@case("_train/guide.py", "or a guide of NumPyro such as `AutoMultivariateNormal`.")
def guide_without_entropy():
    with refused():
        guide_of(autoguide.AutoDelta)
    guide_of(epi.guides.AutoRealNVP)
    guide_of(autoguide.AutoMultivariateNormal)


@case("_train/guide.py", "must be an AutoContinuous guide or AutoNormal, but got")
def guide_of_another_kind():
    with refused(TypeError):
        guide_of(lambda model: autoguide.AutoSemiDAIS)
    guide_of(epi.guides.AutoRealNVP)


@case("_train/guide.py", ". Build the guide from the same model, wrapped in")
def guide_of_another_model():
    def other():
        numpyro.sample("w", dist.Normal(0.0, 1.0))

    with refused():
        guide_of(epi.guides.AutoRealNVP(other))
    noisy = epi.handlers.noise(noisy_model)
    guide_of(epi.guides.AutoRealNVP(noisy), noisy_model)
    guide_of(epi.guides.AutoRealNVP)


def pair_model():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    epi.emergent_property(z.sum(), mean=1.0)


@case("_train/guide.py", "which are fast both ways.", slow=True)
def guide_without_density():
    found = guide_of(autoguide.AutoBNAFNormal, pair_model)
    u = jnp.zeros((1, 2))
    with refused(NotImplementedError):
        found.log_prob(found.init(KEY), u)
    for kind in (epi.guides.AutoRealNVP, epi.guides.AutoNeuralSpline):
        found = guide_of(partial(kind, num_flows=1), pair_model)
        assert np.isfinite(found.log_prob(found.init(KEY), u)).all()


@case("_train/laws.py", "Pass `warm_start='auto'`", slow=True)
def warm_start_without_a_law():
    from numpyro_epi._train.laws import Laws
    from numpyro_epi._train.simulations import Simulations

    def reason(*, warm_start):
        inference = epi.EPI(pair_model, **TINY, warm_start=warm_start)
        engine = inference._engine(KEY, (), {})
        simulations = Simulations.start(engine, KEY)
        simulations.know(has_weights=False)
        return Laws(engine, simulations).reason

    with refused():
        reason(warm_start=True)
    assert "noise" in reason(warm_start="auto")


def opaque():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    shape = jax.ShapeDtypeStruct((), z.dtype)
    total = jax.pure_callback(
        lambda v: np.sum(v, dtype=v.dtype), shape, z, vmap_method="sequential"
    )
    epi.emergent_property(total, mean=1.0)


@case("_train/pilot.py", " Use `numpyro_epi.guides.AutoRealNVP`.")
@case("_model/derivatives.py", "Use {}. (A solver of diffrax has forward mode with")
def derivatives():
    from numpyro_epi._train.pilot import choose_gradient

    def choose(requested, can_score, model):
        given = problem(model)
        u, targets = np.zeros((4, given.num_latents)), given.table.targets
        return choose_gradient(
            given, None, u, targets, KEY, requested=requested, can_score=can_score
        ).choice

    with refused():
        choose("auto", can_score=False, model=opaque)
    assert guide_of(epi.guides.AutoRealNVP, opaque).has_fast_density
    assert choose("auto", can_score=True, model=opaque) == "score"
    with refused():
        choose("reverse", can_score=True, model=opaque)
    assert choose("score", can_score=True, model=opaque) == "score"


@case("_math/constraints.py", "Start from `result.multipliers`.")
def multipliers_of_other_sites():
    table = problem(z_model).table.with_scale(np.array([[0.0], [1.0]]))
    with refused():
        table.scaled_multipliers({"f": np.zeros((1,))})
    table.scaled_multipliers(table.raw_multipliers(np.zeros(1)))


@case("_math/psis.py", "Drop failed draws or set them to -inf.")
def weights_that_are_no_numbers():
    from numpyro_epi._math.psis import pareto_smooth

    log_w = np.random.default_rng(0).normal(size=100)
    log_w[3] = np.nan
    with refused():
        pareto_smooth(log_w)
    pareto_smooth(np.delete(log_w, 3))
    pareto_smooth(np.where(np.isnan(log_w), -np.inf, log_w))


@case("_train/precision.py", "Give the site a prior around zero and add the constant")
def latent_far_from_zero():
    def far():
        z = numpyro.sample("z", dist.Normal(1e7, 1.0))
        epi.emergent_property(z - 1e7, mean=0.3)

    def near():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("shifted", 1e7 + z)
        epi.emergent_property(z, mean=0.3)

    with refused():
        epi.EPI(far, **TINY).init(KEY)
    epi.EPI(near, **TINY).init(KEY)


@case("diagnostics/_mixture.py", "Drop `subsample_size` of {}", slow=True)
def minibatches_too_noisy():
    def model(num=2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        x = 10.0 * jnp.arange(20.0)
        with numpyro.plate("data", 20, subsample_size=num) as i:
            mean = x[i].mean()
        # No sum over elements, so that minibatches cannot be taken in turns.
        numpyro.factor("f", -((z - mean) ** 2))
        epi.emergent_property(z, mean=0.3, name="p")

    result = epi.EPI(model, **TINY, warm_start=False).run(KEY)
    with refused():
        epi.diagnostics.duality_gap_diagnostic(result, KEY, 1000)
    whole = epi.EPI(model, **TINY, warm_start=False).run(KEY, 20)
    epi.diagnostics.duality_gap_diagnostic(whole, KEY, 1000)


@case("_model/likelihood_noise.py", "make the noise a latent, without `infer=")
def noise_in_the_data():
    def model(infer=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        e = numpyro.sample("e", dist.Normal(0.0, 1.0), infer=infer)
        numpyro.sample("y", dist.Normal(z + e, 1.0), obs=0.5)
        epi.emergent_property(z, mean=0.3)

    noisy = problem(model, {"noise": True})
    for sentence in noisy.likelihood_noise.sentences():
        said(sentence)
    assert accepted(model) == ["z", "e"]
    assert not problem(model).likelihood_noise.observed
