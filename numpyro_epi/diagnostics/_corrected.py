# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""From draws of the flow to draws of the exact tilted law."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import HMC, MCMC

from numpyro_epi._checks import as_key, describe
from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._math.psis import MAX_KHAT, pareto_smooth
from numpyro_epi._train.pilot import GradientHealth, check_gradient
from numpyro_epi._train.simulations import NUM_PILOT
from numpyro_epi.diagnostics._mixture import draw_mixture
from numpyro_epi.result import EPIResult

METHODS = ("auto", "importance", "hmc")
# Chains that run side by side.
MAX_CHAINS = 200
# Leapfrog steps of a transition. All chains move together, so one whose adapted step is
# small must not ask for hundreds: each transition costs the same.
NUM_LEAPFROG = 8
# Transitions between two draws that are kept.
THINNING = 5
# What chains must show to be trusted.
MIN_ACCEPTANCE, MAX_DIVERGENT, MAX_R_HAT = 0.5, 0.05, 1.1


class CorrectedDraws(NamedTuple):
    """Result of `corrected_draws`.

    Attributes:
        latents: draws of the exact tilted law, `{site: (n, *shape)}`. Importance draws
            are resampled with replacement; draws of a chain are correlated.
        method: "importance" or "hmc".
        khat: Pareto shape of the importance weights.
        ess: effective number of importance draws.
        acceptance: mean acceptance probability of HMC, NaN without it.
        divergent: share of HMC's transitions that diverged, NaN without it.
        r_hat: largest split r-hat over coordinates, NaN without HMC. Chains that start
            in separate modes stay there, and raise it.
        log_normalizer_bound: `E_p[log p~ - log q]` over HMC draws, nats: an upper bound
            on log Z if the chains cover the law; NaN without HMC.
        log_normalizer_bound_error: its standard error, from the means of chains.
    """

    latents: dict[str, np.ndarray]
    method: str
    khat: float
    ess: float
    acceptance: float
    divergent: float
    r_hat: float
    log_normalizer_bound: float
    log_normalizer_bound_error: float


def corrected_draws(
    result: EPIResult,
    rng_key: Any,
    num_samples: int = 1000,
    *,
    method: str = "auto",
    num_warmup: int = 100,
) -> CorrectedDraws:
    """Draw from the exact tilted law, with the trained flow as the starting point.

    "importance" resamples draws of a defensive mixture by their weights; it needs a
    k-hat of at most 0.7 and as many effective draws as are asked for. "hmc" moves draws
    of the flow by Hamiltonian Monte Carlo in the coordinates of the flow's base, where
    the tilted law is nearly a standard one (Hoffman et al., NeuTra-lizing bad geometry,
    2019), in vectorised chains. "auto" takes the first of the two that can be trusted.

    HMC needs deterministic statistics and a deterministic log likelihood, because with
    noise the tilted law is defined by E[T | z] and E[log L | z], which one simulation
    does not give. It also needs their gradients.

    Args:
        result: of a run.
        rng_key: random key.
        num_samples: draws n.
        method: "auto", "importance" or "hmc".
        num_warmup: steps of each chain that are left out.

    Returns:
        A `CorrectedDraws`.

    Raises:
        TypeError: if `rng_key` is not a key.
        ValueError: if an argument is out of range, or HMC is asked for a result with
            noisy statistics, a noisy log likelihood, or one whose gradients are not
            used; if the log likelihood is too noisy to weight draws.
        RuntimeError: if no method, or not the one asked for, can be trusted.
        NotImplementedError: if the guide has no density at given points.
    """
    rng_key = as_key(rng_key)
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}, but got {method!r}.")
    for name, value in (("num_samples", num_samples), ("num_warmup", num_warmup)):
        is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not is_int or value < 1:
            raise ValueError(
                f"`{name}` must be a positive integer, but got {describe(value)}."
            )
    why_not = _why_no_hmc(result)
    if method == "hmc" and why_not:
        raise ValueError(f"HMC cannot correct these draws: {why_not}.")
    draw_key, offset_key, hmc_key = random.split(rng_key, 3)
    draws = draw_mixture(result, draw_key, max(4 * num_samples, 4000))
    scaled = result.table.scaled_multipliers(result.multipliers)
    log_w, _ = draws.tilted_log_weights(draws.averages(result.table), scaled)
    smooth = pareto_smooth(log_w)
    weights = np.exp(smooth.log_weights)
    ess = float(1.0 / (weights**2).sum())
    is_good = smooth.khat <= MAX_KHAT and ess >= num_samples
    offset = float(random.uniform(offset_key))
    if method == "importance" or (method == "auto" and is_good):
        if not is_good:
            raise RuntimeError(_distrust(smooth.khat, ess, num_samples))
        rows = systematic_resample(weights, num_samples, offset)
        latents, _ = result._engine.problem.constrain(jnp.asarray(draws.u[rows]))
        return CorrectedDraws(
            {name: np.asarray(value) for name, value in latents.items()},
            "importance",
            smooth.khat,
            ess,
            *[np.nan] * 5,
        )
    if why_not:
        raise RuntimeError(
            f"{_distrust(smooth.khat, ess, num_samples)} HMC cannot help: {why_not}."
        )
    num_chains = min(MAX_CHAINS, num_samples)
    # Weights place the chains where they can: HMC does not move between modes.
    has_weights = smooth.khat <= MAX_KHAT and ess >= num_chains
    if has_weights:
        start = draws.u[systematic_resample(weights, num_chains, offset)]
    else:
        start = result._draws(offset_key, num_chains)
    chains = _run_hmc(result, scaled, start, hmc_key, num_samples, num_warmup)
    if not has_weights and chains.r_hat > MAX_R_HAT:
        raise RuntimeError(
            f"The chains disagree (r-hat {chains.r_hat:.2f}) and the weights cannot "
            f"place them (k-hat {smooth.khat:.2f}), so their draws are not those of "
            "the exact law. Use more `num_warmup`, or train longer."
        )
    return CorrectedDraws(
        chains.latents,
        "hmc",
        smooth.khat,
        ess,
        chains.acceptance,
        chains.divergent,
        chains.r_hat,
        chains.bound,
        chains.bound_error,
    )


def _why_no_hmc(result: EPIResult) -> str:
    if result.has_noisy_likelihood:
        noise = result._engine.problem.likelihood_noise
        way = "Use `method='importance'`"
        if noise.plates:
            plates = ", ".join(f"`{name}`" for name in noise.plates)
            way += f", or drop `subsample_size` of {plates}"
        return (
            f"the log likelihood is noisy ({noise.sources}), and a chain would sample "
            f"the law of one frozen draw of the noise. {way}"
        )
    if result.is_noisy:
        return (
            "the statistics are noisy, and the tilted law needs their mean at each "
            "point"
        )
    if result.gradient.choice == "score":
        return f"the gradient of the statistics is not used ({result.gradient.reason})"
    if result._engine.problem.derivatives.reverse:
        return "JAX cannot differentiate the model in reverse mode"
    health = _gradient_health(result)
    if not health.is_trusted:
        return (
            f"derivatives miss {health.missed:.0%} of the change of a statistic, and "
            f"{health.non_finite:.1%} of them are not finite"
        )
    return ""


def _gradient_health(result: EPIResult) -> GradientHealth:
    """That of the run, or a look at draws of the guide if it had no use for one."""
    if result.gradient.is_known:
        return result.gradient
    if "gradient" not in result._kept:
        engine, key = result._engine, random.key(0)
        u = result._draws(key, NUM_PILOT)
        look = check_gradient(
            engine.problem, engine.pilot, u, result.table.targets, key
        )
        result._kept["gradient"] = result.gradient._replace(
            missed=look.missed, non_finite=look.non_finite
        )
    return result._kept["gradient"]


def _distrust(khat: float, ess: float, num_samples: int) -> str:
    return (
        f"Importance weights cannot correct these draws: k-hat is {khat:.2f} (at most "
        f"{MAX_KHAT}) and there are {ess:.0f} effective draws for {num_samples}. Ask "
        "for fewer `num_samples`, train longer, or use a more flexible guide."
    )


class _Chains(NamedTuple):
    latents: dict[str, np.ndarray]
    acceptance: float
    divergent: float
    r_hat: float
    bound: float
    bound_error: float


def _run_hmc(
    result: EPIResult,
    multipliers: np.ndarray,
    start: np.ndarray,
    rng_key: jax.Array,
    num_samples: int,
    num_warmup: int,
) -> _Chains:
    """Vectorised chains from draws u, shape (C, D); `num_samples` draws in all."""
    problem, guide = result._engine.problem, result._engine.guide
    params = result._unconstrained_params()
    to_base, from_base = _base_map(guide.posterior(params))
    table, lam = result.table, jnp.asarray(multipliers, float)
    targets, num_stats = table.targets, table.num_statistics
    second = np.flatnonzero(table.has_var)

    def log_target(u: jax.Array) -> jax.Array:
        sim = problem.simulate(u, random.key(0))
        first = targets.standardise(sim.stats)
        tilt = lam[:num_stats] @ first
        tilt += lam[num_stats:] @ ((first[second] ** 2 - 1.0) / np.sqrt(2.0))
        return sim.log_prior + sim.log_likelihood - tilt

    def potential(x: jax.Array) -> jax.Array:
        u, log_det = from_base(x)
        value = -(log_target(u) + log_det)
        return jnp.where(jnp.isfinite(value), value, 1e10)

    num_chains = len(start)
    per_chain = max(-(-num_samples // num_chains), 20)
    mcmc = MCMC(
        HMC(
            potential_fn=potential,
            num_steps=NUM_LEAPFROG,
            trajectory_length=None,
            adapt_mass_matrix=False,  # the flow has whitened the law
            target_accept_prob=0.85,
        ),
        num_warmup=num_warmup,
        num_samples=THINNING * per_chain,
        thinning=THINNING,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    x0 = jax.vmap(to_base)(jnp.asarray(start))
    mcmc.run(rng_key, init_params=x0, extra_fields=("accept_prob", "diverging"))
    x = mcmc.get_samples(group_by_chain=True)
    fields = mcmc.get_extra_fields()
    acceptance = float(np.mean(fields["accept_prob"]))
    divergent = float(np.mean(fields["diverging"]))
    if not acceptance >= MIN_ACCEPTANCE or divergent > MAX_DIVERGENT:
        raise RuntimeError(
            f"HMC cannot be trusted here: it accepts {acceptance:.0%} of its proposals "
            f"(at least {MIN_ACCEPTANCE:.0%}) and {divergent:.1%} diverge (at most "
            f"{MAX_DIVERGENT:.0%}). Use more `num_warmup`, or train longer."
        )
    u = jax.vmap(jax.vmap(lambda v: from_base(v)[0]))(x)
    flat = u.reshape(-1, u.shape[-1])
    log_ratio = jax.jit(jax.vmap(log_target))(flat) - guide.log_prob(params, flat)
    means = np.asarray(log_ratio, np.float64).reshape(num_chains, -1).mean(axis=1)
    # One draw after another in time, so that every chain is used alike.
    ordered = jnp.swapaxes(u, 0, 1).reshape(flat.shape)[-num_samples:]
    latents, _ = problem.constrain(ordered)
    return _Chains(
        {name: np.asarray(value) for name, value in latents.items()},
        acceptance,
        divergent,
        float(np.max(split_gelman_rubin(np.asarray(u, np.float64)))),
        float(means.mean()),
        float(means.std(ddof=1) / np.sqrt(num_chains)) if num_chains > 1 else np.inf,
    )


def _base_map(posterior: Any) -> tuple[Callable, Callable]:
    """From u to the base of a flow and back; the identity for other guides."""
    transforms = getattr(posterior, "transforms", ())

    def to_base(u: jax.Array) -> jax.Array:
        for transform in reversed(transforms):
            u = transform.inv(u)
        return u

    def from_base(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_det = jnp.zeros(())
        for transform in transforms:
            y, parts = transform.call_with_intermediates(x)
            term = transform.log_abs_det_jacobian(x, y, parts)
            log_det = log_det + term.sum()
            x = y
        return x, log_det

    return to_base, from_base
