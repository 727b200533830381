# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which coordinates latents have: circles that are cut elsewhere, masked elements."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from scipy import stats

import numpyro_epi as epi
from guides.tables import quick_jit
from numpyro_epi import _coordinates
from numpyro_epi._charts import Charted, find_centre, kept_rows, turned_circular
from numpyro_epi._files import _reading, _writing
from numpyro_epi._model.problem import Problem
from numpyro_epi._sites import find_latents, sample_unconstrained
from numpyro_epi._train.chunks import Chunks
from numpyro_epi._train.circles import cut_circles
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.options import Options
from numpyro_epi.sensitivity._interventions import _sibling
from numpyro_epi.sensitivity._layout import layout_of
from small_results import shaken

GUIDE = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(4,))
MASK = np.array([True, False, True])
OBS = np.array([1.0, np.nan, 2.0])


# -- supports -------------------------------------------------------------------------

ROWS = {"shape": (3,), "rows": (0, 2), "event_dim": 0}
CENTRES = jnp.array([3.0, -1.0, 0.5])
# Support, shape of a value, and which numbers of a value its coordinates move freely.
SUPPORTS = {
    "circle": (turned_circular(2.5), (), [0]),
    "circles": (turned_circular(CENTRES), (3,), [0, 1, 2]),
    "torus": (constraints.independent(turned_circular(CENTRES), 1), (3,), [0, 1, 2]),
    "kept numbers": (kept_rows(constraints.positive, **ROWS), (3,), [0, 2]),
    "kept circles": (kept_rows(turned_circular(CENTRES), **ROWS), (3,), [0, 2]),
    "kept in an event": (
        kept_rows(constraints.interval(-1.0, 3.0), (2, 2), (1,), 2),
        (2, 2),
        [1],
    ),
    "kept vectors": (
        kept_rows(constraints.ordered_vector, (2, 3), (1,), 1),
        (2, 3),
        [3, 4, 5],
    ),
    "kept simplices": (
        kept_rows(constraints.simplex, (3, 3), (0, 2), 1),
        (3, 3),
        [0, 1, 6, 7],
    ),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_coordinates_of_supports(name):
    support, shape, free = SUPPORTS[name]
    transform = biject_to(support)
    inner = transform.inverse_shape(shape)

    @quick_jit
    def laws(batch):
        values = transform(batch)
        # Elements without coordinates may be anything on the way back.
        spoilt = jnp.where((values == values[0]).all(axis=0), jnp.nan, values)
        jacobian = jax.jacfwd(lambda u: transform(u).ravel()[jnp.array(free)])(batch[1])
        return (
            values,
            support(values),
            transform.inv(spoilt),
            transform.log_abs_det_jacobian(batch, values),
            jnp.linalg.slogdet(jacobian.reshape(len(free), len(free)))[1],
        )

    batch = 2 * jax.random.normal(jax.random.key(0), (4, *inner))
    values, is_inside, back, log_det, expected = laws(batch)
    assert values.shape == (4, *shape) == transform.forward_shape(batch.shape)
    assert is_inside.all()
    assert is_inside.shape == log_det.shape
    assert log_det.shape == values.shape[: values.ndim - support.event_dim]
    np.testing.assert_allclose(back, batch, atol=2e-4)
    np.testing.assert_allclose(np.sum(log_det[1]), expected, atol=1e-4)
    leaves, tree = jax.tree.flatten(support)
    assert jax.tree.unflatten(tree, leaves) == support


def test_the_coordinate_is_that_of_numpyro_without_a_turn_and_has_no_edge():
    own, turned = biject_to(constraints.circular), biject_to(turned_circular(0.0))
    u = jnp.linspace(-6, 6, 9)
    np.testing.assert_allclose(turned(u), own(u), atol=1e-5)
    np.testing.assert_allclose(
        turned.log_abs_det_jacobian(u, turned(u)),
        own.log_abs_det_jacobian(u, own(u)),
        atol=1e-5,
    )
    assert np.isfinite(turned.inv(jnp.array([-jnp.pi, jnp.pi]))).all()
    # Neighbours across pi are neighbours in a coordinate that is cut elsewhere.
    u = biject_to(turned_circular(3.0)).inv(jnp.array([jnp.pi - 1e-3, -jnp.pi + 1e-3]))
    assert abs(float(u[1] - u[0])) < 3e-3


# -- where a circle is cut ------------------------------------------------------------


def distance(a, b):
    return np.abs(np.angle(np.exp(1j * (np.asarray(a) - b))))


def test_circles_are_cut_where_draws_are_rare():
    # In all three laws fewer than 1 in 1,000 draws are within 1 + 0.3 of the true cut,
    # where 0.3 is the sd of the smoothing; that on the wrong side is 3.1 away.
    rng = np.random.default_rng(0)
    angles = np.stack(
        [
            rng.vonmises(3.0, 4.0, 4000),
            rng.vonmises(np.where(rng.random(4000) < 0.5, 0.0, 2.0), 20.0),
            rng.normal(-2.0, 0.01, 4000),
        ],
        axis=1,
    )
    np.testing.assert_array_less(distance(find_centre(angles), [3.0, 1.0, -2.0]), 1.0)
    # Weights move the law to the other side.
    weights = np.exp(-8.0 * np.cos(angles[:, 0] - 3.0))
    assert distance(find_centre(angles[:, :1], weights), 3.0 - np.pi) < 1.0


def mixture():
    return dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.5, 0.5])),
        dist.VonMises(jnp.array([2.2, -2.2]), 8.0),
    )


def circles():
    numpyro.sample("fixed", dist.VonMises(jnp.array([4.0, -1.0]), 2.0))
    loc = numpyro.sample("loc", dist.Normal(3.0, 0.1))
    numpyro.sample("drawn", dist.VonMises(loc, 5.0).expand([2]).to_event(1))
    numpyro.sample("two", mixture())


def test_without_targets_circles_are_cut_opposite_to_the_prior():
    found = find_latents(circles)
    np.testing.assert_allclose(
        found["fixed"].centre, [4.0 - 2 * np.pi, -1.0], rtol=1e-5
    )
    expected = {"drawn": [3.0, 3.0], "two": np.pi}
    for name, centre in expected.items():
        np.testing.assert_array_less(distance(found[name].centre, centre), 1.0)
        assert found[name].unconstrained_shape == found[name].shape
    assert found["loc"].centre is None


def one_circle(loc, concentration, mean, var=None):
    def model():
        z = numpyro.sample("z", dist.VonMises(loc, concentration))
        epi.emergent_property(jnp.cos(z), mean=mean, var=var)

    return model


# The law, where the prior alone would have it, and where it is.
@pytest.mark.parametrize(
    ("loc", "concentration", "mean"), [(0.0, 0.5, -0.7), (0.0, 4.0, -0.9)]
)
def test_circles_are_cut_where_the_law_is_rare(loc, concentration, mean):
    problem = Problem(one_circle(loc, concentration, mean), (), {}, jax.random.key(0))
    assert distance(problem.sites[0].centre, 0.0) < 1e-5
    cut_circles(problem, None, Options())
    assert distance(problem.sites[0].centre, np.pi) < 0.5
    assert problem.num_pilot_simulations == 4000


def test_failed_simulations_and_noise_do_not_keep_circles_from_being_cut():
    def model(share):
        z = numpyro.sample("z", dist.VonMises(0.0, 0.5))
        noise = jax.random.normal(numpyro.prng_key())
        stat = jnp.cos(z) + 0.1 * noise
        epi.emergent_property(jnp.where(noise < share, stat, jnp.nan), mean=-0.7)

    for share, centre in ((1.0, np.pi), (-10.0, None)):
        problem = Problem(model, (share,), {}, jax.random.key(0))
        cut_circles(problem, None, Options())
        if centre is not None:
            assert distance(problem.sites[0].centre, centre) < 0.5


def fit_of_a_gaussian(u):
    """KL(law || Gaussian with its moments) in nats, by the spacings of draws (n,)."""
    u = np.sort(np.asarray(u, np.float64))
    m = int(np.sqrt(u.size))  # Vasicek's estimator of the entropy
    entropy = np.log(np.maximum(u[m:] - u[:-m], 1e-9) * u.size / m).mean()
    return 0.5 * np.log(2 * np.pi * np.e * u.var()) - entropy


def test_a_law_across_pi_is_in_one_piece():
    # Of 4,000 draws; Vasicek's estimator is good to 0.05 nats here.
    def model(centre):
        prior = dist.VonMises(3.0, 4.0)
        numpyro.sample(
            "z", prior if centre is None else Charted(prior, centre, None, ())
        )

    def misfit(centre):
        here = partial(model, centre)
        u = sample_unconstrained(here, find_latents(here), 4000, (), {})
        return fit_of_a_gaussian(u[:, 0])

    assert misfit(None) < 0.15
    assert misfit(jnp.zeros(())) > 0.5  # broken twin: the cut of NumPyro


@pytest.mark.filterwarnings("ignore:Continuous inference poorly handles circular")
def test_a_guide_that_has_met_its_model_keeps_its_cuts():
    model = one_circle(0.0, 0.5, -0.7)
    problem = Problem(model, (), {}, jax.random.key(0))
    for guide, centre in ((AutoMultivariateNormal(model), 0.0), (GUIDE(model), 0.0)):
        cut_circles(problem, guide, Options(warm_start_size=200))
        assert problem.num_pilot_simulations > 0
        with handlers.seed(rng_seed=0):
            guide._setup_prototype()
        problem.num_pilot_simulations = 0
        cut_circles(problem, guide, Options())
        assert problem.num_pilot_simulations == 0
        assert distance(problem.sites[0].centre, centre) < 1e-5


# -- masked elements ------------------------------------------------------------------


def missing(mask=MASK):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0).expand([3]), obs=OBS, obs_mask=mask)
    epi.emergent_property(z, mean=1.0, var=0.1)


def independent_latents():
    """Masks over batches of numbers, simplices and angles, and over a whole site."""
    with handlers.mask(mask=jnp.array([True, False])), numpyro.plate("two", 2):
        numpyro.sample("a", dist.LogNormal(jnp.array([0.5, 9.0]), 0.5))
        numpyro.sample("c", dist.Dirichlet(jnp.array([[1.0, 2.0, 3.0], [9.0, 9, 9]])))
    numpyro.sample("e", dist.VonMises(3.0, 2.0).expand([3]).mask(MASK))


NUM_KEPT = {"a": 1, "c": 2, "e": 2}
# Differential entropies of what is kept; of the simplex with two coordinates.
KEPT_ENTROPY = {
    "a": 0.5 + 0.5 * np.log(2 * np.pi * np.e * 0.25),
    "c": float(stats.dirichlet([1.0, 2.0, 3.0]).entropy()),
    "e": 2 * float(stats.vonmises(2.0).entropy()),
}


def test_masked_elements_have_no_coordinates():
    found = find_latents(independent_latents)
    assert {name: site.num_coordinates for name, site in found.items()} == NUM_KEPT
    assert all(site.has_density and site.is_fixed for site in found.values())
    assert found["c"].is_kept.tolist() == [[True] * 3, [False] * 3]
    assert {n: s.num_coordinates for n, s in find_latents(missing).items()} == {
        "z": 1,
        "y_unobserved": 1,
    }
    (only,) = find_latents(partial(missing, np.ones(3, bool))).values()
    assert only.name == "z"


def test_masked_coordinates_would_count_if_they_were_kept(monkeypatch):
    # Broken twin: of NumPyro's coordinates, where a missing value has three.
    monkeypatch.setattr(
        _coordinates, "_kept", lambda prior, shape: np.ones(shape, bool)
    )
    assert find_latents(missing)["y_unobserved"].num_coordinates == 3
    guide = GUIDE(independent_latents)
    with handlers.seed(rng_seed=0):
        guide._setup_prototype()
    assert guide.latent_dim == 2 + 4 + 3


@cache
def untrained():
    """A guide of independent latents, and its parameters."""
    guide = GUIDE(independent_latents)
    with handlers.seed(rng_seed=0), handlers.trace() as found:
        guide()
    params = {k: m["value"] for k, m in found.items() if m["type"] == "param"}
    return guide, params


def test_an_untrained_guide_is_the_prior_of_what_is_kept():
    # Mean of 4,000 log densities, sd < 3: a false alarm at 5 standard errors, 6e-7. A
    # masked coordinate that counted would move it by a nat or more.
    guide, params = untrained()
    assert guide.base_kind == "prior"
    assert guide.latent_dim == sum(NUM_KEPT.values())
    sites = find_latents(independent_latents)

    @quick_jit
    def draw(key):
        u = guide.get_posterior(params).sample(key, (4000,))
        log_q = guide.get_posterior(params).log_prob(u)
        for name, part in jax.vmap(guide._unpack_latent)(u).items():
            to = sites[name].transform
            terms = to.log_abs_det_jacobian(part, to(part))
            log_q -= terms.reshape(4000, -1).sum(axis=1)
        return log_q, guide._unpack_and_constrain(u, params)

    log_q, draws = draw(jax.random.key(1))
    error = 5 * log_q.std() / np.sqrt(len(log_q))
    assert abs(-log_q.mean() - sum(KEPT_ENTROPY.values())) < error < 0.3
    assert draws["a"].shape == (4000, 2)
    assert np.ptp(np.asarray(draws["a"][:, 1])) == 0


def test_the_elbo_of_svi_leaves_masked_elements_out():
    # The guide is the prior: the ELBO is zero for each draw, up to rounding.
    guide, params = untrained()
    elbo = Trace_ELBO()
    loss = quick_jit(lambda key: elbo.loss(key, params, independent_latents, guide))
    assert abs(float(loss(jax.random.key(0)))) < 1e-3


def test_masked_elements_do_not_matter_where_latents_are_given():
    problem = Problem(missing, (), {}, jax.random.key(0))
    assert problem.num_latents == 2
    assert problem.can_sample_prior
    u = jnp.array([[0.3, -1.0], [1.0, 2.0]])
    latents, log_det = problem.constrain(u)
    assert latents["y_unobserved"].shape == (2, 3)
    np.testing.assert_array_equal(log_det, 0.0)
    other = {**latents, "y_unobserved": latents["y_unobserved"].at[:, 0].set(jnp.nan)}
    np.testing.assert_allclose(problem.unconstrain(other), u)
    assert problem.is_inside(other).all()
    sim = problem.simulate(u[0], jax.random.key(0))
    expected = dist.Normal().log_prob(0.3) + dist.Normal(0.3, 1.0).log_prob(-1.0)
    np.testing.assert_allclose(sim.log_prior, expected, rtol=1e-5)
    seen = dist.Normal(0.3, 1.0).log_prob(jnp.array([1.0, 2.0])).sum()
    np.testing.assert_allclose(sim.log_likelihood, seen, rtol=1e-5)


def used(mask):
    with handlers.mask(mask=mask):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]))
    epi.emergent_property(z[1], mean=1.0)


def used_by_data(mask):
    with handlers.mask(mask=mask):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=0.3)


def used_by_a_prior(mask):
    with handlers.mask(mask=mask):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(z, 1.0))


USED = {
    "statistic": (used, [True, False], "`emergent_property` depends on those of `z`"),
    "all of a site": (used, [False, False], "`emergent_property` depends"),
    "data": (used_by_data, False, "`y` depends on those of `z`.*outside of"),
    "prior": (used_by_a_prior, False, "`b` depends on those of `z`"),
}


@pytest.mark.parametrize("name", USED)
def test_a_model_that_uses_masked_elements_is_refused(name):
    model, mask, message = USED[name]
    with pytest.raises(ValueError, match=message):
        find_latents(model, (jnp.asarray(mask),))
    # The advice: sample what is used under a mask that is True for it.
    assert find_latents(model, (jnp.ones_like(jnp.asarray(mask)),))["z"].has_density


def dependent_mask(mask, shift=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    if shift is None:
        mask = mask ^ (z > 1.0)
    numpyro.sample("y", dist.Normal(z, 1.0).expand([3]), obs=OBS, obs_mask=mask)


def test_a_mask_that_depends_on_latents_is_refused():
    # 64 runs, of which one in six has z > 1: a miss has probability 1e-5.
    with pytest.raises(ValueError, match=r"fixed mask at.*`y_unobserved`.*argument"):
        find_latents(dependent_mask, (MASK,))
    # The advice: the mask is an argument.
    assert "y_unobserved" in find_latents(dependent_mask, (MASK, 0.0))


def test_guides_of_numpyro_have_the_same_coordinates():
    problem = Problem(missing, (), {}, jax.random.key(0))
    functions = GuideFunctions(AutoMultivariateNormal, problem, jax.random.key(1))
    params = functions.init(jax.random.key(2))
    assert functions.sample(params, jax.random.key(3), 5)[0].shape == (5, 2)
    draws = functions.guide.sample_posterior(
        jax.random.key(4), functions.constrain(params), sample_shape=(5,)
    )
    assert draws["y_unobserved"].shape == (5, 3)
    met = AutoMultivariateNormal(partial(missing, jnp.asarray(MASK)))
    with handlers.seed(rng_seed=0):
        met._setup_prototype()
    with pytest.raises(ValueError, match="masked elements of `y_unobserved`.*class"):
        GuideFunctions(met, problem, jax.random.key(1))


# -- results --------------------------------------------------------------------------


def both(limit=2.0):
    z = numpyro.sample("z", dist.VonMises(0.0, 0.5))
    y = numpyro.sample("y", dist.Uniform(-limit, limit).expand([3]).mask(MASK))
    numpyro.sample("whole", dist.Normal(0.0, 1.0).mask(mask=False))
    epi.emergent_property(jnp.cos(z) + 0.1 * (y[0] + y[2]), mean=-0.7)


@cache
def result():
    return shaken(both, GUIDE, warm_start_size=1000, num_evaluation=400)


@pytest.mark.long
def test_a_result_has_these_coordinates_in_all_that_follows():
    found = result()
    draws = found.sample(jax.random.key(1), 100)
    assert {k: v.shape for k, v in draws.items()} == {"z": (100,), "y": (100, 3)}
    assert np.ptp(np.asarray(draws["y"][:, 1])) == 0
    spoilt = {**draws, "y": draws["y"].at[:, 1].set(jnp.inf)}
    np.testing.assert_allclose(found.log_prob(spoilt), found.log_prob(draws))
    assert found.predict(jax.random.key(2), 10)["y"].shape == (10, 3)
    # The law goes on across pi, and so does its density.
    y = jnp.broadcast_to(draws["y"][0], (2, 3))
    near = {"z": jnp.array([jnp.pi - 1e-3, -jnp.pi + 1e-3]), "y": y}
    assert abs(float(jnp.diff(found.log_prob(near))[0])) < 0.1


def test_sensitivity_has_components_for_what_is_kept_and_no_jump():
    found = result()
    layout = layout_of(found)
    assert layout.names == ("z", "y[0]", "y[2]")
    draws = found.sample(jax.random.key(1), 100)
    points = layout.check(draws, where="test")
    low, high = layout.bounds
    centre = float(found._engine.problem.sites[0].centre)
    np.testing.assert_allclose([low[0], high[0]], [centre - np.pi, centre + np.pi])
    assert ((low < points) & (points < high)).all()
    back = layout.latents(points)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), back, draws)
    u = layout.to_u(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(layout.from_u(u)[0], points, atol=1e-4)
    # Two neighbours across pi are neighbours as points, too.
    near = {"z": jnp.array([3.14, -3.14]), "y": draws["y"][:2]}
    assert abs(np.diff(layout.flatten(near)[:, 0])[0]) < 0.01


def test_interventions_keep_the_coordinates_of_the_result():
    other = _sibling(result(), "limit", 2.0)
    for old, new in zip(result()._engine.problem.sites, other.sites, strict=True):
        assert str(old.prior.support) == str(new.prior.support)


def test_a_file_brings_the_coordinates_back_without_a_simulation(monkeypatch):
    engine = result()._engine
    header = {
        "options": _writing.pack_options(engine.options),
        "has_own_optim": False,
        "centres": _writing.centres(engine),
        "num_pilot_simulations": engine.problem.num_pilot_simulations,
    }
    header = json.loads(json.dumps(header))
    monkeypatch.delattr(Chunks, "simulate")
    again = _reading._engine(header, both, GUIDE, None, (), {}).problem
    for old, new in zip(engine.problem.sites, again.sites, strict=True):
        assert str(old.prior.support) == str(new.prior.support)
    assert again.num_pilot_simulations == 2000
