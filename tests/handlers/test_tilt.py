# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The tilted model: its law, its place among handlers, and what may run on it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import (
    AIES,
    HMC,
    MCMC,
    NUTS,
    SVI,
    BarkerMH,
    DiscreteHMCGibbs,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
    autoguide,
)
from numpyro.infer.util import log_density

from numpyro_epi import emergent_property
from numpyro_epi.handlers import Property, collect, noise, tilt
from numpyro_epi.handlers.tilt import log_tilt

KEY = jax.random.key(0)
NAME = "emergent_property"

# A standard Normal with f = a, tilted by (l1, l2), is a Normal with
#   precision 1 + 2 l2, mean (2 l2 mean - l1) / (1 + 2 l2).
TARGET = 0.5, 0.4  # mean, var of the property
L = np.array([-0.5, 0.3])
TILTED = dist.Normal((0.6 * 0.5 + 0.5) / 1.6, 1.6**-0.5)


def model():
    a = numpyro.sample("a", dist.Normal())
    emergent_property(a, *TARGET)
    return a


def log_p(fn, a, *args):
    return log_density(fn, args, {}, {"a": jnp.asarray(a)})[0]


def log_factor(fn, a):
    sites = handlers.trace(handlers.substitute(fn, {"a": jnp.asarray(a)})).get_trace()
    return sites["tilt"]["fn"].log_prob(sites["tilt"]["value"])


# The law


def check_density(fn):
    points = np.linspace(-3.0, 4.0, 15)
    got = np.array([log_p(fn, a) for a in points])
    expected = TILTED.log_prob(points)
    np.testing.assert_allclose(got - got[0], expected - expected[0], atol=1e-5)


@pytest.mark.core
def test_density_is_that_of_the_closed_form():
    check_density(tilt(model, {NAME: L}))


@pytest.mark.core
def test_density_check_flags_a_flipped_sign():
    with pytest.raises(AssertionError):
        check_density(tilt(model, {NAME: -L}))


def test_factor_is_centred_on_the_targets():
    expected = -L[0] * (2.0 - 0.5) - L[1] * ((2.0 - 0.5) ** 2 - 0.4)
    np.testing.assert_allclose(log_factor(tilt(model, {NAME: L}), 2.0), expected, 1e-6)


def check_draws(multipliers):
    """Mean and variance of NUTS draws against the closed form.

    Estimators: means of d and of d^2 - 1, with d standardised by the true law, over
    4,000 draws with an effective size of at least 500, each within 5 standard errors:
    false alarm 1.2e-6. Detects a shift of the mean by 0.5 sd, or of the variance by
    70%, at worst.
    """
    kernel = NUTS(tilt(model, {NAME: multipliers}))
    mcmc = MCMC(kernel, num_warmup=300, num_samples=4000, progress_bar=False)
    mcmc.run(KEY)
    deviation = np.asarray((mcmc.get_samples()["a"] - TILTED.loc) / TILTED.scale)
    for estimate in (deviation, deviation**2 - 1):
        size = effective_sample_size(estimate[None])
        assert size > 500
        assert abs(estimate.mean()) < 5 * estimate.std() / np.sqrt(size)


@pytest.mark.long
def test_nuts_draws_from_the_closed_form():
    check_draws(L)


@pytest.mark.long
def test_draws_check_flags_a_flipped_sign():
    with pytest.raises(AssertionError):
        check_draws(-L)


SCALES = [1e7, 1e-9, 1e-3, 1e12, 1e-18]


@pytest.mark.core
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("traced", [False, True])
def test_units_of_the_statistic_do_not_matter(scale, traced):
    def scaled(multipliers):
        a = numpyro.sample("a", dist.Normal())
        emergent_property(scale * a, scale * TARGET[0], scale**2 * TARGET[1])
        return a

    def density(a, multipliers):
        return log_p(tilt(scaled, {NAME: multipliers}), a, None)

    multipliers = L / np.array([scale, scale**2])
    if traced:
        got = jax.jit(density)(2.0, jnp.asarray(multipliers, jnp.float32))
    else:
        got = density(2.0, multipliers)
    np.testing.assert_allclose(got, log_p(tilt(model, {NAME: L}), 2.0), rtol=1e-5)


def stable(stat, mean, var, multipliers):
    return log_tilt(Property(stat, mean, var), multipliers)


def unstable(stat, mean, var, multipliers):
    deviation = stat - jnp.float32(mean)
    tilts = jnp.stack([deviation, deviation**2 - jnp.float32(var)])
    return -jnp.sum(jnp.asarray(multipliers, jnp.float32) * tilts)


@pytest.mark.parametrize(("formula", "is_exact"), [(stable, True), (unstable, False)])
def test_multipliers_beyond_float32_are_scaled_on_the_host(formula, is_exact):
    scale = 1e-25
    mean, var = np.asarray(scale * TARGET[0]), np.asarray(scale**2 * TARGET[1])
    with np.errstate(over="ignore"):
        got = formula(jnp.asarray(2 * scale), mean, var, L / [scale, scale**2])
    expected = -L[0] * 1.5 - L[1] * (1.5**2 - 0.4)
    assert np.isclose(got, expected, rtol=1e-5) == is_exact


def test_mean_only_and_matrix_statistics():
    def both():
        a = numpyro.sample("a", dist.Normal())
        emergent_property(a, 0.5, name="mean")
        emergent_property(a * jnp.ones((2, 3)), 0.5, [[0.1], [0.4]], name="matrix")

    rng = np.random.default_rng(0)
    one, many = rng.normal(size=1), rng.normal(size=(2, 2, 3))
    d = 2.0 - 0.5
    second = d**2 - np.array([[0.1], [0.4]])
    expected = -one[0] * d - np.sum(many[0] * d + many[1] * second)
    got = log_factor(tilt(both, {"mean": one, "matrix": many}), 2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gradient_in_the_multipliers_is_minus_the_deviation():
    gradient = jax.grad(lambda x: log_p(tilt(model, {NAME: x}), 2.0))(jnp.asarray(L))
    np.testing.assert_allclose(gradient, [-1.5, -(1.5**2 - 0.4)], rtol=1e-5)


def test_integer_multipliers_and_counts():
    def count():
        a = numpyro.sample("a", dist.Normal())
        emergent_property((a > jnp.arange(3)).sum(), mean=1, var=1)

    assert log_factor(tilt(count, {NAME: [2, 1]}), 10.0) == -2 * 2 - (4 - 1)


# The place among handlers


@pytest.mark.core
def test_adds_one_factor_and_leaves_the_rest_alone():
    before = handlers.trace(handlers.seed(model, KEY)).get_trace()
    after = handlers.trace(handlers.seed(tilt(model, {NAME: L}), KEY)).get_trace()
    assert list(after) == [*before, "tilt"]
    for name, site in before.items():
        assert site["value"] == after[name]["value"]
    assert after["tilt"]["is_observed"]
    assert after["tilt"]["fn"].batch_shape == ()


@pytest.mark.core
def test_zeros_leave_the_density_as_it_is():
    assert log_p(tilt(model, {NAME: np.zeros(2)}), 2.0) == log_p(model, 2.0)


@pytest.mark.core
def test_returns_what_the_model_returns():
    assert handlers.seed(tilt(model, {NAME: L}), KEY)() == handlers.seed(model, KEY)()


def test_works_as_a_context_and_as_a_decorator():
    def context():
        with tilt(multipliers={NAME: L}):
            model()

    @tilt(multipliers={NAME: L})
    def decorated():
        model()

    assert log_p(context, 2.0) == log_p(decorated, 2.0)
    assert log_p(context, 2.0) == log_p(tilt(model, {NAME: L}), 2.0)


def property_in_plate():
    a = numpyro.sample("a", dist.Normal())
    with numpyro.plate("cells", 7):
        emergent_property(a, *TARGET)


def property_in_scope_in_plate():
    a = numpyro.sample("a", dist.Normal())
    with numpyro.plate("cells", 7), handlers.scope(prefix="x"):
        emergent_property(a, *TARGET)


def property_in_mask_and_scale():
    a = numpyro.sample("a", dist.Normal())
    with handlers.mask(mask=False), handlers.scale(scale=3.0):
        emergent_property(a, *TARGET)


INSIDE = [
    (property_in_plate, NAME),
    (property_in_scope_in_plate, f"x/{NAME}"),
    (property_in_mask_and_scale, NAME),
    (handlers.do(model, {"unknown": 0.0}), NAME),
]


@pytest.mark.core
@pytest.mark.parametrize(("fn", "name"), INSIDE)
def test_factor_counts_once_whatever_is_around_the_property(fn, name):
    tilted = tilt(fn, {name: L})
    expected = -L[0] * 1.5 - L[1] * (1.5**2 - 0.4)
    np.testing.assert_allclose(log_factor(tilted, 2.0), expected, rtol=1e-6)
    np.testing.assert_allclose(log_p(tilted, 2.0) - log_p(fn, 2.0), expected, rtol=1e-5)


def no_latent():
    emergent_property(2.0, *TARGET)


def in_plates(fn):
    def plated():
        with numpyro.plate("rows", 4, dim=-2), numpyro.plate("columns", 3):
            fn()

    return plated


def in_subsample(fn):
    def subsampled():
        with numpyro.plate("rows", 4, subsample_size=2):
            fn()

    return subsampled


@pytest.mark.core
@pytest.mark.parametrize("around", [in_plates, in_subsample])
def test_factor_counts_once_whatever_plate_is_around_the_tilt(around):
    around_tilt = around(tilt(no_latent, {NAME: L}))
    sites = handlers.trace(handlers.seed(around_tilt, KEY)).get_trace()
    assert sites["tilt"]["fn"].batch_shape == ()
    assert sites["tilt"]["scale"] is None


def test_plated_statistics_have_multipliers_for_each_element():
    def plated(multipliers):
        with numpyro.plate("cells", 3):
            tilt(model, {NAME: multipliers})()

    many = np.array([[1.0, 2.0, 3.0], [0.5, 0.0, -0.5]])
    a = jnp.arange(3.0)
    expected = -np.sum(many[0] * (a - 0.5) + many[1] * ((a - 0.5) ** 2 - 0.4))
    total = log_p(plated, a, many) - log_p(plated, a, np.zeros((2, 3)))
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_scale_around_the_tilt_scales_the_factor():
    tilted = tilt(model, {NAME: L})
    scaled = handlers.scale(tilted, scale=3.0)
    np.testing.assert_allclose(log_p(scaled, 2.0), 3 * log_p(tilted, 2.0), rtol=1e-6)


def test_scope_around_the_tilt_renames_the_factor():
    scoped = handlers.scope(tilt(model, {NAME: L}), "x")
    assert "x/tilt" in handlers.trace(handlers.seed(scoped, KEY)).get_trace()


@pytest.mark.core
def test_nested_tilts_add_up_under_names_of_their_own():
    more = np.array([0.1, -0.2])
    nested = tilt(tilt(tilt(model, {NAME: L}), {NAME: more}), {NAME: more})
    sites = handlers.trace(handlers.seed(nested, KEY)).get_trace()
    assert list(sites)[-3:] == ["tilt", "tilt_1", "tilt_2"]
    expected = log_p(tilt(model, {NAME: L + 2 * more}), 2.0)
    np.testing.assert_allclose(log_p(nested, 2.0), expected, rtol=1e-6)


def test_name_of_the_factor_can_be_chosen():
    sites = handlers.trace(handlers.seed(tilt(model, {NAME: L}, name="a"), KEY))
    assert list(sites.get_trace())[-1] == "a_1"


def test_collect_inside_and_outside_see_the_properties():
    inside = collect(model)
    outside = collect(tilt(inside, {NAME: L}))
    handlers.seed(outside, KEY)()
    assert inside.properties == outside.properties


def test_tilts_the_steps_of_a_scan():
    def scanned():
        def step(total, x):
            emergent_property(jnp.stack([x, 2 * x]), *TARGET)
            return total + x, None

        a = numpyro.sample("a", dist.Normal().expand([3]).to_event(1))
        scan(step, 0.0, a)

    a = np.arange(3.0)
    multipliers = np.random.default_rng(0).normal(size=(2, 3, 2))
    d = np.stack([a, 2 * a], -1) - 0.5
    expected = -np.sum(multipliers * np.stack([d, d**2 - 0.4]))
    got = log_factor(tilt(scanned, {NAME: multipliers}), a)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.core
def test_one_instance_serves_many_jitted_runs_without_leaks():
    tilted = tilt(model, {NAME: jnp.asarray(L)})

    def run(a):
        return log_p(tilted, a)

    with jax.checking_leaks():
        jitted = jax.jit(run)(2.0)
        jax.jit(lambda a, x: log_p(tilt(model, {NAME: x}), a))(2.0, jnp.asarray(L))
        mapped = jax.vmap(run)(jnp.arange(4.0))
    np.testing.assert_allclose(jitted, run(2.0), rtol=1e-6)
    np.testing.assert_allclose(mapped, [run(a) for a in range(4)], rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("given", [{}, {"posterior_samples": {"a": jnp.arange(5.0)}}])
def test_predictive_ignores_the_factor(given):
    number = {} if given else {"num_samples": 5}
    before = Predictive(model, **given, **number)(KEY)
    after = Predictive(tilt(model, {NAME: L}), **given, **number)(KEY)
    assert before.keys() == after.keys()
    for name, draws in before.items():
        np.testing.assert_array_equal(draws, after[name])


# What may run on a noisy tilted model


def noisy_key():
    a = numpyro.sample("a", dist.Normal())
    emergent_property(a + jax.random.normal(numpyro.prng_key()), *TARGET)


def noisy_site():
    a = numpyro.sample("a", dist.Normal())
    e = numpyro.sample("e", dist.Normal(), infer={"noise": True})
    emergent_property(a + e, *TARGET)


def noisy_scan():
    def step(total, _):
        return total + jax.random.normal(numpyro.prng_key()), None

    a = numpyro.sample("a", dist.Normal())
    emergent_property(scan(step, a, None, length=2)[0], *TARGET)


def noisy_site_in_scan():
    def step(total, _):
        e = numpyro.sample("e", dist.Normal(), infer={"noise": True})
        return total + e, None

    a = numpyro.sample("a", dist.Normal())
    emergent_property(scan(step, a, None, length=2)[0], *TARGET)


NOISY = [noisy_key, noisy_site, noisy_scan, noisy_site_in_scan]


def guide():
    numpyro.sample("a", dist.Normal(0.3, 0.7))


def check_loss(fn):
    """Loss of `guide` against its closed form, where T is averaged over the noise.

    Estimator: mean of 20,000 losses of one particle, within 5 standard errors: false
    alarm 6e-7. A frozen draw e of the noise shifts it by .14 e + .3 (e^2 - 1): missed
    for e in [-1.4, -1.2] and [.7, .8] at most.
    """
    keys = jax.random.split(KEY, 20_000)
    loss = Trace_ELBO().loss
    losses = jax.jit(jax.vmap(lambda key: loss(key, {}, fn, guide)))(keys)
    d, s2 = 0.3 - 0.5, 0.7**2
    expected = L[0] * d + L[1] * (d**2 + s2 + 1 - 0.4)
    expected += 0.5 * (s2 + 0.3**2 - 1) - np.log(0.7)
    error = losses.std() / np.sqrt(losses.size)
    assert error < 0.02
    assert abs(losses.mean() - expected) < 5 * error


@pytest.mark.core
@pytest.mark.parametrize("fn", [noisy_key, noisy_site])
def test_svi_averages_over_the_noise(fn):
    check_loss(tilt(fn, {NAME: L}))


@pytest.mark.parametrize("fn", [noisy_key, noisy_site])
def test_loss_check_flags_frozen_noise(fn):
    with pytest.raises(AssertionError):
        check_loss(tilt(handlers.seed(fn, jax.random.key(1)), {NAME: L}))


RUNS = [
    (noisy_key, Trace_ELBO(num_particles=2), autoguide.AutoNormal),
    (noisy_key, TraceMeanField_ELBO(), autoguide.AutoDiagonalNormal),
    (noisy_site, RenyiELBO(), autoguide.AutoDiagonalNormal),
    (noisy_site, Trace_ELBO(), autoguide.AutoDAIS),
    (noisy_scan, Trace_ELBO(), autoguide.AutoDelta),
]


@pytest.mark.parametrize(("fn", "elbo", "build"), RUNS)
def test_svi_is_never_refused(fn, elbo, build):
    tilted = tilt(fn, {NAME: L})
    svi = SVI(tilted, build(tilted), numpyro.optim.Adam(0.01), elbo)
    assert np.isfinite(svi.evaluate(svi.init(KEY)))
    assert tilted.is_noisy


KERNELS = {
    "NUTS": (NUTS, {}),
    "HMC": (HMC, {}),
    "BarkerMH": (BarkerMH, {}),
    "DiscreteHMCGibbs": (lambda fn: DiscreteHMCGibbs(NUTS(fn)), {}),
    "AIES": (AIES, {"num_chains": 4, "chain_method": "vectorized"}),
}
REFUSAL = "simulation noise.*tilted.*MCMC.*SVI.*handlers.seed"


def sample(kernel, **options):
    mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False, **options)
    mcmc.run(KEY)


def start(kernel):
    """The potential energy at the start, where a refusal would come."""
    return kernel.init(KEY, 1, None, (), {}).potential_energy


@pytest.mark.core
@pytest.mark.parametrize("fn", NOISY)
def test_nuts_is_refused(fn):
    with pytest.raises(RuntimeError, match=REFUSAL):
        sample(NUTS(tilt(fn, {NAME: L})))
    with pytest.raises(RuntimeError, match=REFUSAL):
        sample(NUTS(handlers.seed(tilt(fn, {NAME: L}), 0)))


def discrete(fn):
    def mixed():
        numpyro.sample("c", dist.Bernoulli(0.5))
        fn()

    return mixed


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_refused(kernel):
    build, options = KERNELS[kernel]
    fn = discrete(noisy_site) if kernel == "DiscreteHMCGibbs" else noisy_site
    with pytest.raises(RuntimeError, match=REFUSAL):
        sample(build(tilt(fn, {NAME: L})), **options)


@pytest.mark.parametrize("fn", [model, handlers.seed(noisy_key, 0)])
def test_nuts_is_not_refused_without_noise(fn):
    assert np.isfinite(start(NUTS(tilt(fn, {NAME: L}))))


def test_nuts_is_not_refused_for_a_key_that_a_handler_wants():
    def observed():
        model()
        numpyro.sample("obs", dist.Normal(), obs=0.0)

    energy = start(NUTS(handlers.uncondition(tilt(observed, {NAME: L}))))
    assert np.isfinite(energy)


def test_hides_noise_like_the_handler():
    tilted = handlers.trace(handlers.seed(tilt(noisy_site, {NAME: L}), KEY)).get_trace()
    hidden = handlers.trace(handlers.seed(noise(noisy_site), KEY)).get_trace()
    assert list(tilted) == [*hidden, "tilt"]
    assert tilted[NAME]["value"] == hidden[NAME]["value"]


# What it refuses


def two_properties():
    emergent_property(0.0, 0.0, name="rate")
    emergent_property(jnp.ones((2, 3)), 0.0, 1.0, name="pair")


RIGHT = {"rate": np.zeros(1), "pair": np.zeros((2, 2, 3))}
REFUSED = {
    "unknown": ({"rat": L}, ValueError, r"\(`rate`, `pair`\).*`tilt`.*got `rat`"),
    "unscoped": ({"x/rate": L}, ValueError, "`rate`.*got `x/rate`"),
    "missing": ({"pair": ...}, ValueError, "of emergent property `pair`.*Zeros"),
    "no second row": (
        {"pair": np.zeros((1, 2, 3))},
        ValueError,
        r"\(2, 2, 3\).*`pair`",
    ),
    "second row": ({"rate": np.zeros(2)}, ValueError, r"\(1,\).*`rate`.*mean only"),
    "no axis": ({"rate": 0.0}, ValueError, r"\(1,\).*`rate`.*\(\)"),
    "broadcastable": (
        {"pair": np.zeros(2)},
        ValueError,
        r"\(2, 2, 3\).*`pair`.*\(2,\)",
    ),
    "transposed": ({"pair": np.zeros((2, 3, 2))}, ValueError, "`pair`"),
    "nan": ({"rate": [np.nan]}, ValueError, "finite.*`multipliers`.*`rate`"),
    "text": ({"rate": "one"}, TypeError, "real.*`multipliers`.*`rate`.*'one'"),
    "complex": ({"rate": [1j]}, TypeError, "real.*`rate`"),
}


@pytest.mark.core
@pytest.mark.parametrize("case", REFUSED)
def test_refuses_multipliers_that_do_not_fit(case):
    changes, error, message = REFUSED[case]
    multipliers = {k: v for k, v in (RIGHT | changes).items() if v is not ...}
    with pytest.raises(error, match=message):
        tilt(two_properties, multipliers)()
    tilt(two_properties, RIGHT)()


def test_refuses_traced_multipliers_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(2,\).*`emergent_property`.*\(3,\)"):
        jax.jit(lambda x: log_p(tilt(model, {NAME: x}), 0.0))(jnp.zeros(3))


@pytest.mark.parametrize("multipliers", [None, L, [("rate", L)]])
def test_refuses_what_is_no_mapping(multipliers):
    with pytest.raises(TypeError, match="mapping.*`multipliers` of `tilt`"):
        tilt(model, multipliers)


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (3, TypeError)])
def test_refuses_a_name_that_is_no_name(name, error):
    with pytest.raises(error, match="`name` of `tilt`"):
        tilt(model, {NAME: L}, name=name)


def test_refuses_a_mask_with_an_array_around_it():
    masked = handlers.mask(tilt(no_latent, {NAME: L}), mask=jnp.array([True, False]))
    with pytest.raises(ValueError, match=r"mask around `tilt`.*\(2,\)"):
        masked()
    # A single one is fine.
    single = jnp.asarray(1.0) > 0
    log_p(handlers.mask(tilt(model, {NAME: L}), mask=single), 0.0)


def test_an_error_in_the_model_comes_first():
    def broken():
        raise RuntimeError("simulator")

    with pytest.raises(RuntimeError, match="simulator"):
        tilt(broken, {NAME: L})()
    assert not numpyro.primitives._PYRO_STACK
