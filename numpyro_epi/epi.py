# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""`EPI`: from a NumPyro program with emergent properties to a distribution."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import random

from numpyro_epi._assemble import assemble
from numpyro_epi._checks import as_key
from numpyro_epi._files import Checkpoint
from numpyro_epi._model.arguments import Arguments, private
from numpyro_epi._model.outside import check_outside
from numpyro_epi._model.problem import Problem
from numpyro_epi._run import Limits, model_keywords, run_on
from numpyro_epi._train.check import EPICheck, check_problem
from numpyro_epi._train.circles import cut_circles
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.optim import as_optax
from numpyro_epi._train.options import GONE, Options
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.solver import EPIState, Solver
from numpyro_epi._train.status import plain_solver_errors
from numpyro_epi.result import EPIResult


class EPI:
    r"""Emergent property inference on a NumPyro program.

    Finds the guide q that solves

    .. math:: \min_q KL(q \| p_0) - E_q[\log L] \quad\text{subject to}\quad E_q[T] = 0,

    with p0 the prior of the latents, L the likelihood of observed sites (1 without
    any), and T the deviations of every `emergent_property` from its targets. With
    uniform priors this is the maximum-entropy distribution with the property.

    Args:
        model: NumPyro program with `sample` sites for the latents and at least one
            `emergent_property`. Simulation noise comes from `numpyro.prng_key()` or
            from sites marked `infer={"noise": True}`. Masked elements of a site are no
            latents: draws have a fixed point of the support there. Its arguments are
            copied, and compared by value from one run to the next.
        guide: None for `guides.AutoRealNVP`, or a guide class, or a guide instance
            built for `model` (NumPyro's continuous guides too).
        optim: None for Adam with clipped gradients and cosine decay, or an optimiser of
            optax or of NumPyro, which is used as it is.
        num_particles: draws per gradient step, P, even.
        num_epochs: most epochs E of training, after each of which the guide is judged
            and multipliers are updated. It ends earlier where the guide is shown to
            meet its targets within `gap_tolerance` of the maximum, or where it gains
            nothing any more: where two epochs bring no 0.001 nats, the best guide so
            far goes on at half the rate, three times at most.
        num_steps: gradient steps per epoch.
        num_restarts: independent runs trained together, R; the best is returned.
        num_evaluation: draws behind the final report, stored with the result.
        tolerance: largest harmless violation of a constraint in scaled units: 0.05 is a
            mean off by a twentieth of the target's standard deviation, or of its
            spread under the law where no variance is asked for.
        gap_tolerance: nats below the maximum (log Z of the law) that are not worth more
            epochs; 0 to train until nothing is gained.
        z_score: standard errors added to a violation before it is compared with the
            tolerance.
        learning_rate: of the default optimiser, at its start.
        penalty: penalty coefficient, scaled units.
        warm_start: "auto" to search for the exact law first (`EPIResult.law`), and to
            fit the guide to its draws; True to insist that one can be searched for;
            False to train the guide without one. A guide that it fits 20 nats off, or
            more, is left for an untrained one; its multipliers stay.
        warm_start_size: draws of the search: a round of it has a fifth, and its verdict
            0.4 to 3.2 times as many.
        anchor: weight in the loss of how far the guide is from the tilted model at
            importance-weighted draws, which keeps every mode that they found: spread
            of the log density ratio, or cross entropy if the simulations are noisy; 0
            for none.
        stat_gradient: how statistics are differentiated: "reverse" or "forward" mode,
            "score" (they need no derivative), "replay" (the same, on simulations that
            are used again: for dear simulators), or "auto" to decide on a pilot.
        schedule: a `PublishedSchedule` for the algorithm of the paper.
        on_invalid: what simulations do whose statistics, or log likelihood, are not
            finite. "auto" to leave them out with one warning, which restricts the prior
            to latents that can be simulated, and to stop where they are more than 5%,
            by three standard errors, of the latest simulations; "mask" to leave any
            number out, without a warning; "raise" to stop at the first one.
        progress_bar: whether to show one.
        mesh: `jax.sharding.Mesh` over whose first axis draws, simulations, chains and
            particles are spread, in every stage.

    Raises:
        TypeError: for an unknown option or an argument of the wrong kind.
        ValueError: for an option out of its range.

    Example:
        >>> import jax, numpyro, numpyro_epi as epi
        >>> import numpyro.distributions as dist
        >>> def model():
        ...     z = numpyro.sample("z", dist.Normal(0, 1))
        ...     epi.emergent_property(z, mean=1.0, var=0.25)
        >>> options = dict(num_epochs=2, num_steps=50, progress_bar=False)
        >>> result = epi.EPI(model, **options).run(jax.random.key(0))
        >>> result.sample(jax.random.key(1), 5)["z"].shape
        (5,)

    References:
        Bittner et al., Interrogating theoretical models of neural computation with
        emergent property inference, eLife 2021, doi:10.7554/eLife.56265.
    """

    def __init__(
        self, model: Callable, guide: Any = None, optim: Any = None, **options: Any
    ) -> None:
        if not callable(model):
            raise TypeError(
                f"`model` must be a NumPyro program (a callable), but got {model!r}."
            )
        for name in sorted(set(options) & set(GONE)):
            raise TypeError(f"`{name}` is no option any more. {GONE[name]}.")
        unknown = sorted(set(options) - set(Options.names()))
        if unknown:
            raise TypeError(
                f"Unknown option `{unknown[0]}`. The options are "
                f"{', '.join(Options.names())}."
            )
        self.model = model
        self.guide = guide
        self.optim = as_optax(optim)
        self.options = Options(**options)
        if self.optim is not None and "learning_rate" in options:
            raise ValueError(
                "`learning_rate` is that of the default optimiser and is not used with "
                "`optim`. Pass one of them."
            )
        if self.optim is not None and self.options.schedule is not None:
            raise ValueError(
                "`optim` is not used with `schedule`, whose Adam is part of the "
                "algorithm. Pass one of them."
            )
        self._last: tuple[Arguments, Engine] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "update":
            raise AttributeError(
                "`EPI.update` is gone. Use `EPI.advance`, which takes a run a whole "
                "step further: a round of the search, an epoch, or the verdict."
            )
        raise AttributeError(f"`EPI` has no attribute `{name}`.")

    def _engine(self, rng_key: jax.Array, args: tuple, kwargs: dict) -> Engine:
        """Compiled functions for these model arguments; kept for the next call."""
        last = None if self._last is None else self._last[0]
        arguments = Arguments(self.model, args, kwargs, last)
        check_outside(self.model)
        if self._last is not None and arguments == last:
            return self._last[1]
        args, kwargs = private((args, kwargs))
        with plain_solver_errors():
            problem = Problem(self.model, args, kwargs, rng_key)
            cut_circles(problem, self.guide, self.options)
            guide = GuideFunctions(self.guide, problem, rng_key)
            engine = Engine(problem, guide, self.options, self.optim)
        self._last = arguments, engine
        return engine

    def init(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> EPIState:
        """Begin a run that goes on by hand: after draws of the prior.

        Args:
            rng_key: random key, as for `run`.
            *args: of the model.
            **kwargs: of the model.

        Returns:
            State for `advance`.

        Example:
            >>> import jax, numpyro, numpyro_epi as epi
            >>> import numpyro.distributions as dist
            >>> def model():
            ...     z = numpyro.sample("z", dist.Normal(0, 1))
            ...     epi.emergent_property(z, mean=1.0, var=0.25)
            >>> inference = epi.EPI(model, num_epochs=2, num_steps=50)
            >>> state = inference.init(jax.random.key(0))
            >>> while not state.is_done and state.num_simulations < 100_000:
            ...     state = inference.advance(state)
            >>> result = inference.result(state)
        """
        engine, run_key = self._begin(rng_key, args, kwargs)
        with plain_solver_errors():
            return Solver(engine).init(run_key)

    def advance(self, state: EPIState, *args: Any, **kwargs: Any) -> EPIState:
        """Take a run a step further: a round of the search, an epoch, the verdict.

        Args:
            state: from `init` or `advance`; it stays as it is.
            *args: of the model, as for `init`.
            **kwargs: of the model.

        Returns:
            The next state; the same one if the run is done.
        """
        engine = self._engine(random.key(0), args, kwargs)
        with plain_solver_errors():
            return Solver(engine).advance(state)

    def result(self, state: EPIState, *args: Any, **kwargs: Any) -> EPIResult:
        """What a run has found at any moment.

        Args:
            state: from `init` or `advance`.
            *args: of the model, as for `init`.
            **kwargs: of the model.

        Returns:
            The result. Of a run that is not done its status is "interrupted", unless
            guide or law are shown to meet their targets already.
        """
        engine = self._engine(random.key(0), args, kwargs)
        with plain_solver_errors():
            outcome = Solver(engine).outcome(state, "hand")
            return assemble(engine, outcome)

    def _begin(
        self, rng_key: jax.Array, args: tuple, kwargs: dict
    ) -> tuple[Engine, jax.Array]:
        setup_key, run_key = random.split(as_key(rng_key))
        return self._engine(setup_key, args, kwargs), run_key

    def run(
        self,
        rng_key: jax.Array,
        *args: Any,
        init_state: EPIState | None = None,
        max_seconds: float | None = None,
        max_simulations: int | None = None,
        checkpoint: str | Path | None = None,
        callbacks: Sequence[Callable[[EPIState], Any]] = (),
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> EPIResult:
        """Infer the distribution.

        Args:
            rng_key: random key; the same key on the same machine gives the same result.
            *args: of the model.
            init_state: state from which the run goes on, instead of its beginning; not
                where there is a `checkpoint` already.
            max_seconds: after which this run stops, at the end of a step of it, to be
                judged by a few draws.
            max_simulations: in all, those of earlier parts of the run too, up to what a
                step takes. A tenth of them is kept for the draws that judge the result.
            checkpoint: path of a file that holds the latest state, so that a run that
                is killed, or has used up a budget, goes on where it was: call it again
                with the same arguments. Bit for bit the run that was never stopped (on
                one machine, and without `max_seconds`). Written whole or not at all,
                in at most 5% of the time.
            callbacks: functions that are called with each `EPIState`; the run stops
                where one returns a true value.
            model_kwargs: keyword arguments of the model, if it has one of these names.
            **kwargs: of the model.

        Returns:
            The result, whatever its status: see `EPIResult.status`, `converged` and
            `stopped_by`. An interrupt from the keyboard (after draws of the prior)
            leaves a result, too.

        Raises:
            InvalidStatisticError: if simulations fail, as `on_invalid` says.
            ContradictoryTargetsError: if statistics depend on each other (a copy in
                other units, shares of one, an indicator) and the targets say otherwise,
                by more than `tolerance`. Below it the nearest targets that agree are
                used instead, and a warning prints them.
            RuntimeError: if a solver of diffrax gives up and throws an error.
            TypeError: for a limit, a callback or a state of the wrong kind, or an
                argument that both this method and the model have.
            ValueError: if the model has no emergent property or no latents, or latents
                that no continuous guide can have, parameters to train, or an improper
                prior that the data leave improper; or the guide is of another model; or
                the checkpoint is of another run.

        Example:
            >>> import jax, numpyro, numpyro_epi as epi
            >>> import numpyro.distributions as dist
            >>> def model():
            ...     z = numpyro.sample("z", dist.Normal(0, 1))
            ...     epi.emergent_property(z, mean=1.0, var=0.25)
            >>> inference = epi.EPI(model, num_epochs=2, num_steps=50)
            >>> result = inference.run(jax.random.key(0), max_simulations=20_000)
            >>> result.num_simulations < 25_000
            True
        """
        began = time.perf_counter()
        limits = Limits.checked(max_seconds, max_simulations, callbacks)
        given = {
            "init_state": init_state,
            "max_seconds": max_seconds,
            "max_simulations": max_simulations,
            "checkpoint": checkpoint,
            "callbacks": callbacks or None,
            "model_kwargs": model_kwargs,
        }
        kwargs = model_keywords(self.model, kwargs, model_kwargs, given)
        if not (init_state is None or isinstance(init_state, EPIState)):
            raise TypeError(
                "`init_state` must be an `EPIState`, but got "
                f"{type(init_state).__name__}. Make one with `EPI.init`."
            )
        engine, run_key = self._begin(rng_key, args, kwargs)
        kept, state = None, init_state
        if checkpoint is not None:
            kept = Checkpoint(Path(checkpoint), engine, run_key)
            found = kept.read()
            state = state if found is None else found
        with plain_solver_errors(), Progress(self.options) as progress:
            solver = Solver(engine, progress)
            state = solver.init(run_key) if state is None else state
            state, stopped_by = run_on(solver, state, limits, kept, began)
            num_draws = limits.num_draws_left(state, self.options.num_restarts)
            return assemble(engine, solver.outcome(state, stopped_by, num_draws))

    def check(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> EPICheck:
        """Look at the model before any training: targets, failures, cost, gradient.

        Args:
            rng_key: random key.
            *args: of the model.
            **kwargs: of the model.

        Returns:
            A report to print.
        """
        rng_key = as_key(rng_key)
        engine = self._engine(rng_key, args, kwargs)
        with plain_solver_errors():
            return check_problem(engine, rng_key)
