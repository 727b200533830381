# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""One gradient step: the guide is fitted to the model tilted by the multipliers.

The objective of a batch of particles u ~ q is

    mean(log q - log p0 - log L) + lambda . V + c/2 |V|^2.

How its gradient passes through the statistics is a choice (`stat_gradient`):

- "reverse": differentiate the simulator backwards.
- "forward": replace T(u) by sg(T) + sg(J) (u - sg(u)) with J from forward mode, so that
  memory does not grow with simulated time (sg: stop gradient).
- "score": the simulator is not differentiated. The gradient is the covariance of
  `log q - log p0 - log L + lambda . T` with the score d log q, which has no variance
  where q equals the tilted model (Richter et al., VarGrad, NeurIPS 2020, eq. 9).
- "replay": the same at draws that were simulated before the epoch and are used again
  and again, with importance weights: the simulator does not run during the steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax, random, vmap
from jax.flatten_util import ravel_pytree

from numpyro_epi._math.constraints import Targets, deviations
from numpyro_epi._math.lagrangian import (
    blend,
    linear_terms,
    split_half_mean,
    tilt_multipliers,
)
from numpyro_epi._model.problem import Problem, Simulation
from numpyro_epi._solver.devices import Devices
from numpyro_epi._train.gate import gated, is_finite
from numpyro_epi._train.guide import GuideFunctions, Params
from numpyro_epi._train.state import GuideState, StepInfo

# Of the moving average of the violation that the penalty acts on: about 20 steps.
VIOLATION_RATE = 0.05
# Largest importance weight of a draw that is used again.
MAX_WEIGHT = 10.0
# Nats by which a draw of the pool counts at most, and draws of it for each particle.
MAX_SURPRISE, POOL_SHARE = 1.0, 0.25


class Particles(NamedTuple):
    """Simulated particles: log densities (P,), deviations (P, K), validity (P,)."""

    log_prior: jax.Array
    log_likelihood: jax.Array
    deviations: jax.Array
    is_valid: jax.Array

    @classmethod
    def from_simulation(
        cls, sim: Simulation, targets: Targets, has_var: Any
    ) -> "Particles":
        """Deviations are zero where the simulation failed."""
        sim, is_valid = mask_invalid(sim)
        devs = deviations(sim.stats, targets, has_var)
        devs = jnp.where(is_valid[:, None], devs, 0.0)
        return cls(sim.log_prior, sim.log_likelihood, devs, is_valid)


def mask_invalid(sim: Simulation) -> tuple[Simulation, jax.Array]:
    """Replace the outputs of failed simulations by zeros, and say which failed."""
    is_valid = is_finite(sim)
    return sim._replace(
        log_likelihood=jnp.where(is_valid, sim.log_likelihood, 0.0),
        stats=jnp.where(is_valid[..., None], sim.stats, 0.0),
    ), is_valid


def linearised(simulate: Callable, num_latents: int) -> Callable:
    """A simulator whose gradient in u is taken in forward mode.

    The value is sg(f) + sg(J) (u - sg(u)); without both stop-gradients the gradient
    would be counted twice.
    """

    def outputs(u: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        sim = simulate(u, key)
        return sim.log_likelihood, sim.stats

    def call(u: jax.Array, key: jax.Array) -> Simulation:
        fixed = lax.stop_gradient(u)
        values, columns = vmap(
            lambda e: jax.jvp(lambda v: outputs(v, key), (fixed,), (e,)),
            out_axes=(None, 0),
        )(jnp.eye(num_latents, dtype=u.dtype))
        change = u - fixed
        is_valid = is_finite(Simulation(0.0, *values))
        log_lik, stats = (
            lax.stop_gradient(value)
            + jnp.tensordot(
                change,
                lax.stop_gradient(jnp.where(is_valid, column, 0.0)),
                axes=1,
            )
            for value, column in zip(values, columns, strict=True)
        )
        return Simulation(simulate(u, key).log_prior, log_lik, stats)

    return call


class Objective:
    """Loss of one restart, as a function whose gradient is the step's.

    Args:
        problem: the model.
        guide: the guide.
        num_particles: P.
        stat_gradient: "reverse", "forward", "score" or "replay".
        masks_invalid: whether any number of failed simulations is left out.
        rate: of the moving average of the violation; 1 for none.
        devices: that share the particles; None for one.
    """

    def __init__(
        self,
        problem: Problem,
        guide: GuideFunctions,
        *,
        num_particles: int,
        stat_gradient: str,
        masks_invalid: bool,
        rate: float = VIOLATION_RATE,
        devices: Devices | None = None,
    ) -> None:
        self.problem = problem
        self.guide = guide
        self.num_particles = num_particles
        self.replays = stat_gradient == "replay"
        self.uses_score = masks_invalid or stat_gradient in ("score", "replay")
        self.rate = rate
        self.devices = Devices() if devices is None else devices
        self.has_var = problem.table.has_var
        simulate = problem.simulate_step
        if stat_gradient == "forward" and not self.uses_score:
            simulate = linearised(simulate, problem.num_latents)
        elif not self.uses_score:
            simulate = gated(simulate)
        self.simulate = simulate

    def particles(self, u: jax.Array, key: jax.Array, targets: Targets) -> Particles:
        """Simulate each particle once."""
        keys = self.devices.spread(random.split(key, u.shape[0]))
        sim = vmap(self.simulate)(self.devices.spread(u), keys)
        return Particles.from_simulation(sim, targets, self.has_var)

    def _draw(
        self, params: Params, state: GuideState, draw_key: jax.Array, sim_key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Particles]:
        """Log q (P,), importance weights (P,) and particles of this step."""
        if self.replays:
            return self._replay(params, state, draw_key)
        u, log_q = self.guide.sample_evenly(params, draw_key, self.num_particles)
        if self.uses_score:
            u = lax.stop_gradient(u)
            log_q = self.guide.log_prob(params, u)
        particles = self.particles(u, sim_key, state.targets)
        return log_q, jnp.ones_like(log_q), particles

    def _replay(
        self, params: Params, state: GuideState, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Particles]:
        """Particles from the memory, weighted by how q has changed since.

        Weights are cut off at `MAX_WEIGHT` (truncated importance sampling: Ionides, J.
        Comput. Graph. Stat. 2008).
        """
        size = state.memory.u.shape[0]
        rows = random.randint(key, (self.num_particles,), 0, size)
        memory = jax.tree.map(lambda x: x[rows], state.memory)
        log_q = self.guide.log_prob(params, self.devices.spread(memory.u))
        ratio = lax.stop_gradient(log_q) - memory.log_q
        weights = jnp.exp(jnp.minimum(ratio, jnp.log(MAX_WEIGHT)))
        sim = Simulation(memory.log_prior, memory.log_likelihood, memory.stats)
        return (
            log_q,
            weights,
            Particles.from_simulation(sim, state.targets, self.has_var),
        )

    def __call__(
        self, params: Params, state: GuideState, key: jax.Array
    ) -> tuple[jax.Array, StepInfo]:
        """Loss to differentiate with respect to `params`, and what to report."""
        draw_key, sim_key, pool_key = random.split(key, 3)
        log_q, weights, parts = self._draw(params, state, draw_key, sim_key)
        valid = weights * parts.is_valid
        first, second = split_half_mean(parts.deviations, valid)
        plain = log_q - parts.log_prior - parts.log_likelihood
        mean_plain = (valid * plain).sum() / jnp.maximum(valid.sum(), 1.0)
        tilts = tilt_multipliers(
            state.multipliers, state.penalty, first, second, state.running, self.rate
        )
        if self.uses_score:
            loss = self._score_loss(log_q, weights, plain, parts, tilts)
        else:
            loss = mean_plain + linear_terms(tilts, first, second)
        loss = loss + self._anchor_loss(params, state, pool_key)
        change = 0.5 * (first + second)
        info = StepInfo(
            mean_plain + state.multipliers @ change,
            change,
            1.0 - parts.is_valid.mean(),
            jnp.zeros((), bool),
        )
        return loss, info

    def _score_loss(
        self,
        log_q: jax.Array,
        weights: jax.Array,
        plain: jax.Array,
        parts: Particles,
        tilts: tuple[jax.Array, jax.Array],
    ) -> jax.Array:
        """Surrogate whose gradient is the covariance of the integrand with the score.

        Over valid particles this is the gradient of the divergence between q and the
        tilted prior, both restricted to valid z. A second term, the score of the
        valid share, moves q's mass off the region where simulations fail.
        """
        half = self.num_particles // 2
        valid = weights * parts.is_valid
        parts_of = (slice(0, half), slice(half, None))
        integrands = [
            plain[rows] + parts.deviations[rows] @ tilt
            for rows, tilt in zip(parts_of, tilts, strict=True)
        ]
        means = [
            (valid[rows] * values).sum() / jnp.maximum(valid[rows].sum(), 1.0)
            for rows, values in zip(parts_of, integrands, strict=True)
        ]
        loss = jnp.zeros(())
        # The baseline comes from the other half: independent, so without bias, also
        # where the draws of one half are not independent of each other.
        for rows, values, baseline in zip(
            parts_of, integrands, means[::-1], strict=True
        ):
            w, total = valid[rows], jnp.maximum(weights[rows].sum(), 1.0)
            centred = w * (values - baseline) / jnp.maximum(w.sum(), 1.0)
            share = w.sum() / total
            leak = (share * weights[rows] - w) / jnp.maximum(share, 0.1) / total
            loss += 0.5 * (lax.stop_gradient(centred + leak) * log_q[rows]).sum()
        return loss

    def _anchor_loss(
        self, params: Params, state: GuideState, key: jax.Array
    ) -> jax.Array:
        """How far the guide is from the tilted model at draws of the pool.

        The pool has draws of every mode: where the guide loses one, its log density
        falls behind. The log-variance divergence (Richter et al., VarGrad, NeurIPS
        2020, equation 6) is zero where q is exact, at any set of draws: unlike a fit by
        maximum likelihood, it does not learn the gaps between them. Differences are cut
        off at `MAX_SURPRISE`, so that a lost mode pulls as in a fit by likelihood.
        Noisy statistics hide the density of the tilted model: then it is that fit.
        """
        pool = state.pool
        size = pool.u.shape[0]
        if size == 0:
            return jnp.zeros(())
        num = max(int(POOL_SHARE * self.num_particles), 1)
        rows = random.randint(key, (num,), 0, size)
        log_q = self.guide.log_prob(params, pool.u[rows])
        if not pool.has_density:
            return -state.anchor * log_q.mean()
        log_model, devs = pool.log_model[rows], pool.deviations[rows]
        excess = lax.stop_gradient(log_q) - log_model + devs @ state.multipliers
        excess = jnp.clip(excess - excess.mean(), -MAX_SURPRISE, MAX_SURPRISE)
        return state.anchor * ((excess - excess.mean()) * log_q).mean()


def make_update(
    objective: Objective,
    optim: optax.GradientTransformation,
    *,
    average_decay: float,
    decays: bool,
) -> Callable[[GuideState], tuple[GuideState, StepInfo]]:
    """One gradient step of one restart, as a pure function.

    Args:
        objective: loss.
        optim: optimiser.
        average_decay: of the moving average of the parameters; 0 for none.
        decays: whether `GuideState.rate` is a factor of the steps.
    """

    def update(state: GuideState) -> tuple[GuideState, StepInfo]:
        key, next_key = random.split(state.rng_key)
        (_, info), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params, state, key
        )
        updates, optim_state = optim.update(grads, state.optim_state, state.params)
        # On flat vectors: a few operations to compile instead of a few for each array.
        is_good = jnp.isfinite(ravel_pytree(grads)[0]).all()
        old, unravel = ravel_pytree(state.params)
        change = ravel_pytree(updates)[0]
        if decays:
            change *= state.rate
        new = jnp.where(is_good, old + change, old)
        count = state.num_steps + 1
        # Debiased at the start: the average never lags by more than it has seen.
        decay = jnp.minimum(average_decay, count / (count + 10.0))
        before = ravel_pytree(state.average)[0]
        mean = jnp.where(is_good, decay * before + (1.0 - decay) * new, before)
        optim_state = jax.tree.map(
            lambda new, old: jnp.where(is_good, new, old),
            optim_state,
            state.optim_state,
        )
        running = blend(state.running, info.violation, objective.rate)
        state = state._replace(
            running=jnp.where(jnp.isfinite(running).all(), running, state.running),
            params=unravel(new),
            average=unravel(mean),
            optim_state=optim_state,
            rng_key=next_key,
            num_steps=count,
        )
        return state, info._replace(is_skipped=~is_good)

    return update
