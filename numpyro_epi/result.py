# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The result of a run: a distribution that samples, has a density and explains itself.

Nothing here trains. Only `EPIResult.predict` runs the simulator.
What is kept of each restart is in `_restart`; storing and printing results is left to
`_files` and `_report`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi import _report
from numpyro_epi._checks import as_count, as_key
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._model.problem import Simulation
from numpyro_epi._restart import EPIDraws, EPIHistory, EPIRestart
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.guide import Params
from numpyro_epi._train.pilot import GradientHealth
from numpyro_epi._train.state import GuideState
from numpyro_epi._train.status import EPIStatus
from numpyro_epi.law import EPILaw

if TYPE_CHECKING:
    from numpyro_epi.diagnostics import DualityGap, Restarts


@dataclass(frozen=True, eq=False, repr=False)
class EPIResult:
    """Distribution over the latents that has the emergent property.

    The best restart is the one that converged and has the largest score; its fields
    are the result's (`result.entropy` is `result.restarts[result.best].entropy`).

    Attributes:
        restarts: all restarts, in the order of their keys.
        best: index of the best one.
        table: constraints with their targets and scales.
        state: of the guides at the end of training, all restarts.
        gradient: how statistics were differentiated, and why.
        is_noisy: whether statistics differ between simulations of the same latents.
        has_noisy_likelihood: whether the log likelihood does, in the model as it is
            written: by `subsample_size` of a plate, or by random keys. The law then has
            exp(E[log L | z]).
        masks_invalid: whether the target is the prior restricted to latents that can be
            simulated: not with `on_invalid="raise"`.
        tolerance: of the equivalence test, scaled units.
        num_simulations: simulations of the whole run.
        seconds: wall-clock time of the whole run, compilation included.
        num_invalid: simulations that failed and were left out, those of single steps
            not counted.
        stopped_by: why the run has ended: "done", or "budget", "callback", "interrupt"
            or "hand" (a state that was not advanced to its end).
    """

    restarts: tuple[EPIRestart, ...]
    best: int
    table: ConstraintTable
    state: GuideState
    gradient: GradientHealth
    is_noisy: bool
    masks_invalid: bool
    tolerance: float
    num_simulations: int
    seconds: float
    _engine: Engine = field(repr=False)
    num_invalid: int = 0
    stopped_by: str = "done"
    has_noisy_likelihood: bool = False
    # What `sensitivity` has made of the result, to be used again.
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def _needs_averages(self) -> bool:
        """Whether E[T | z] or E[log L | z] takes more than one simulation."""
        return self.is_noisy or self._is_likelihood_noisy

    @property
    def _is_likelihood_noisy(self) -> bool:
        """Whether log L of a simulation is: not if it takes whole minibatch plates."""
        return (
            self.has_noisy_likelihood and self._engine.problem.likelihood_noise.is_left
        )

    # -- the best restart -------------------------------------------------------------

    @property
    def _best(self) -> EPIRestart:
        return self.restarts[self.best]

    @property
    def params(self) -> Params:
        """Parameters of the guide, as `SVI.get_params` returns them."""
        return self._best.params

    @property
    def losses(self) -> np.ndarray:
        """Loss of each step."""
        return self._best.losses

    @property
    def multipliers(self) -> dict[str, np.ndarray]:
        """Multipliers of raw T by site, `(2, *shape)` or `(1, *shape)`."""
        return self._best.multipliers

    @property
    def multipliers_source(self) -> str:
        """Where `multipliers` come from: the exact "dual", or training, "guide"."""
        return self._best.multipliers_source

    @property
    def history(self) -> EPIHistory:
        """One row per epoch."""
        return self._best.history

    @property
    def status(self) -> EPIStatus:
        """How the run ended."""
        return self._best.status

    @property
    def message(self) -> str:
        """How the run ended, in words."""
        return self._best.message

    @property
    def converged(self) -> bool:
        """Whether every constraint is shown to be met within the tolerance."""
        return self.status is EPIStatus.CONVERGED

    @property
    def entropy(self) -> float:
        """Differential entropy in nats, in the constrained latent space.

        It changes with the units of the latents. A support of fewer dimensions than its
        values have numbers (a simplex, a correlation matrix) has no volume in them:
        there the entropy, like `log_prob`, is with respect to the coordinates that
        NumPyro's transforms use, the first D - 1 of the D shares of a simplex.
        """
        return self._best.entropy

    @property
    def divergence(self) -> float:
        """KL(q || p0) in nats: what property and data cost.

        Where a prior is improper (`ImproperUniform`), there is no KL: it is
        E[log q - log p0] with a p0 whose scale is arbitrary, and may be negative.
        """
        return self._best.divergence

    @property
    def score(self) -> float:
        """Violation-corrected objective `-KL + E log L - lambda . violation`, nats."""
        return self._best.score

    @property
    def draws(self) -> EPIDraws:
        """Stored evaluation draws; the simulator is not run for them again."""
        return self._best.draws

    @property
    def law(self) -> EPILaw | None:
        """The exact law, as weighted draws; None if none was found: see `law_reason`.

        Its own verdict (`law.converged`) does not depend on how good the guide is.
        """
        return self._best.law

    @property
    def law_reason(self) -> str:
        """Why there is no law, or why it is not trusted; empty if it is."""
        return self._best.law_reason

    @property
    def guide(self) -> Any:
        """The guide, for NumPyro's own tools (with `params`)."""
        return self._engine.guide.guide

    # -- the distribution -------------------------------------------------------------

    def _unconstrained_params(self) -> Params:
        return jax.tree.map(lambda x: x[self.best], self.state.average)

    def _draws(self, rng_key: jax.Array, num_samples: Any) -> np.ndarray:
        """Unconstrained draws, shape (n, D)."""
        params = jax.tree.map(lambda x: x[None], self._unconstrained_params())
        num = as_count("num_samples", num_samples)
        return self._engine.chunks.draws(params, as_key(rng_key)[None], num)[0][0]

    def sample(self, rng_key: jax.Array, num_samples: int) -> dict[str, jax.Array]:
        """Draw latents; the simulator is not run.

        Unless `on_invalid` is "raise", the share `restarts[best].invalid` of these
        draws cannot be simulated; `predict` and the stored draws leave them out.

        Args:
            rng_key: random key.
            num_samples: number of independent draws n.

        Returns:
            `{site: (n, *shape)}`, constrained.

        Raises:
            TypeError: if `rng_key` is not a key.
            ValueError: if `num_samples` is not a positive integer.
        """
        u = jnp.asarray(self._draws(rng_key, num_samples))
        return self._engine.problem.constrain(u)[0]

    def log_prob(self, latents: Mapping[str, Any]) -> jax.Array:
        """Log density of q in the constrained space, nats.

        It is the density of `sample`, not restricted to latents that can be
        simulated. On simplex-like supports it is with respect to
        the coordinates that `entropy` names.

        Args:
            latents: `{site: (..., *shape)}` with the same leading axes at every site.

        Returns:
            Shape (...); -inf outside the support and on its edge. Differentiable (the
            gradient outside is zero), and safe under `jit` and `vmap`.

        Raises:
            ValueError: if a site is unknown, missing or has the wrong shape.
            NotImplementedError: if the guide has no density at given points.
        """
        values = self._engine.problem.check_latents(latents)
        return self._compiled_log_prob(self._unconstrained_params(), values)

    @cached_property
    def _compiled_log_prob(self) -> Callable[[Params, dict], jax.Array]:
        problem, guide = self._engine.problem, self._engine.guide

        def log_prob(params: Params, latents: dict[str, jax.Array]) -> jax.Array:
            inside = problem.is_inside(latents)
            # Outside, a point inside stands in: it keeps the gradient from being NaN.
            u = problem.unconstrain(problem.nudge_inside(latents, inside))
            log_q = guide.log_prob(params, u) - problem.constrain(u)[1]
            return jnp.where(inside, log_q, -jnp.inf)

        return jax.jit(log_prob)

    def predict(
        self, rng_key: jax.Array, num_samples: int, *, batch_size: int = 1000
    ) -> dict[str, np.ndarray]:
        """Draw latents and simulate each once.

        The result does not depend on `batch_size`.

        Args:
            rng_key: random key.
            num_samples: number of draws n.
            batch_size: simulations that run at a time, which bounds the memory.

        Returns:
            Latents and statistics, `{site: (n, *shape)}`. Draws that cannot be
            simulated are left out, so n may be smaller; with `on_invalid="raise"` their
            statistics are whatever the simulator returns, such as NaN.

        Raises:
            TypeError: if `rng_key` is not a key.
            ValueError: if `num_samples` or `batch_size` is not a positive integer.
        """
        size = as_count("batch_size", batch_size)
        draw_key, simulation_key = jax.random.split(as_key(rng_key))
        u = self._draws(draw_key, num_samples)
        stats, log_likelihood = self._simulate(u, simulation_key, size)
        if self.masks_invalid:
            rows = np.isfinite(stats).all(axis=-1) & np.isfinite(log_likelihood)
            u, stats = u[rows], stats[rows]
        latents, _ = self._engine.problem.constrain(jnp.asarray(u))
        return jax.tree.map(np.asarray, latents) | self.table.split(stats)

    def _simulate(
        self, u: np.ndarray, rng_key: jax.Array, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Statistics (n, S) and log likelihood (n,) of draws u, shape (n, D)."""
        keys = jax.random.split(rng_key, len(u))
        num_batches = -(-len(u) // batch_size)
        size = -(-len(u) // num_batches)  # even batches: one shape, compiled once
        batches = []
        for i in range(num_batches):
            rows = np.arange(i * size, (i + 1) * size) % len(u)
            batches.append(self._compiled_simulate(u[rows], keys[rows]))
            jax.block_until_ready(batches[-1])
        stats = np.concatenate([np.asarray(batch.stats) for batch in batches])
        log_lik = np.concatenate(
            [np.asarray(batch.log_likelihood) for batch in batches]
        )
        return stats[: len(u)], log_lik[: len(u)]

    @cached_property
    def _compiled_simulate(self) -> Callable[[np.ndarray, jax.Array], Simulation]:
        return jax.jit(jax.vmap(self._engine.problem.simulate))

    # -- reports ----------------------------------------------------------------------

    def print_summary(
        self,
        certificate: "DualityGap | None" = None,
        restarts: "Restarts | None" = None,
    ) -> None:
        """Print targets, achieved values, entropy and cost, in 100 columns.

        Args:
            certificate: from `diagnostics.duality_gap_diagnostic`, to print it too.
            restarts: from `diagnostics.restart_diagnostic`, to print it too.
        """
        print(_report.summary(self, certificate, restarts))

    def __repr__(self) -> str:
        return (
            f"EPIResult({self.status}, entropy={self.entropy:.3f} nats, "
            f"{self._divergence_name}={self.divergence:.3f} nats, "
            f"worst violation={np.abs(self._best.violation).max():.3f} of "
            f"{self.tolerance:g}, restarts={len(self.restarts)})"
        )

    @property
    def _divergence_name(self) -> str:
        is_improper = bool(self._engine.problem.improper)
        return "E[log q - log prior]" if is_improper else "KL from prior"

    def save(self, path: str | Path) -> None:
        """Write an `.npz` file of plain arrays, with a format version, without pickle.

        No code is stored: `load` asks for the model again. An interrupted save leaves
        an older file as it was.

        Args:
            path: where to, exactly: no suffix is added. An existing file is replaced.
        """
        from numpyro_epi import _files

        _files.save(self, Path(path))

    @staticmethod
    def load(
        path: str | Path,
        model: Callable,
        guide: Any = None,
        optim: Any = None,
        *,
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> "EPIResult":
        """Read a result back.

        Args:
            path: file that `save` wrote.
            model: the model of the run; code is not stored.
            guide: the guide of the run, as it was given to `EPI`.
            optim: the optimiser of the run, if one was given to `EPI`.
            model_args: positional arguments of the model.
            model_kwargs: keyword arguments of the model.

        Returns:
            The result: the same key gives the same draws on the same machine. A `mesh`
            is not restored.

        Raises:
            ValueError: if the file is not of this format, or damaged, or made with
                another model, other arguments, another guide or optimiser; the message
                names what differs.
        """
        from numpyro_epi import _files

        kwargs = dict(model_kwargs or {})
        return _files.load(Path(path), model, guide, optim, tuple(model_args), kwargs)
