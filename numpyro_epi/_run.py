# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The loop of a run, and what may end it before it is done."""

import inspect
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from numpyro_epi._checks import as_count
from numpyro_epi._files import Checkpoint
from numpyro_epi._train.solver import EPIState, Solver

# One in so many simulations of a budget is for the draws that judge the result.
LAST_SHARE = 10


class Limits(NamedTuple):
    """What ends a run, whatever it has found.

    Attributes:
        max_seconds: of this part of it, or None.
        max_simulations: in all, or None.
        callbacks: functions of each state, a true value of which ends it.
    """

    max_seconds: float | None = None
    max_simulations: int | None = None
    callbacks: tuple[Callable[[EPIState], Any], ...] = ()

    @classmethod
    def checked(
        cls, max_seconds: Any, max_simulations: Any, callbacks: Sequence[Callable]
    ) -> "Limits":
        """From what a user passes."""
        is_number = isinstance(max_seconds, Real) and not isinstance(max_seconds, bool)
        if max_seconds is not None and not (is_number and float(max_seconds) > 0):
            raise ValueError(
                "`max_seconds` must be a positive number of seconds, or None, but got "
                f"{max_seconds!r}. Leave it out for a run without a limit."
            )
        if max_simulations is not None:
            max_simulations = as_count("max_simulations", max_simulations)
        callbacks = (callbacks,) if callable(callbacks) else tuple(callbacks or ())
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(
                    "`callbacks` must be functions of an `EPIState`, but got "
                    f"{callback!r}. Pass `callbacks=[function]`."
                )
        return cls(max_seconds, max_simulations, callbacks)

    def num_draws_left(self, state: EPIState, num_restarts: int) -> int | None:
        """Draws of each guide that may judge a result, at least 100; None for any."""
        most = np.inf
        if self.max_simulations is not None:
            most = self.max_simulations - state.num_simulations
        if self.max_seconds is not None:
            each = state.seconds / max(state.num_simulations, 1)
            most = min(most, self.max_seconds / LAST_SHARE / max(each, 1e-9))
        return None if most == np.inf else max(int(most / num_restarts), 100)

    def left(self, state: EPIState, began: float) -> str:
        """What is left of the budgets, in words."""
        words = []
        if self.max_seconds is not None:
            seconds = self.max_seconds - (time.perf_counter() - began)
            words.append(f"{max(seconds, 0.0):,.0f} s")
        if self.max_simulations is not None:
            num = self.max_simulations - state.num_simulations
            words.append(f"{max(num, 0):,} simulations")
        return ", ".join(words)

    def is_late(self, began: float) -> bool:
        """Whether a run that began then has used up its seconds."""
        limit = self.max_seconds
        return limit is not None and time.perf_counter() - began >= limit

    def is_too_dear(self, num_simulations: int) -> bool:
        """Whether so many simulations leave too few for those that judge a result."""
        limit = self.max_simulations
        return limit is not None and num_simulations > limit - limit // LAST_SHARE


def model_keywords(
    model: Callable,
    kwargs: Mapping[str, Any],
    model_kwargs: Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Keyword arguments of a model, from those that `EPI.run` was called with.

    Args:
        model: whose they are.
        kwargs: what `EPI.run` does not know.
        model_kwargs: what is said to be the model's.
        given: arguments of `EPI.run`, None where they were not passed.
    """
    own = dict(model_kwargs or {})
    taken = sorted(set(own) & set(kwargs))
    if taken:
        raise TypeError(
            f"Expected the argument `{taken[0]}` of the model once, got it directly "
            "and in `model_kwargs`. Leave out one of them."
        )
    for name, value in given.items():
        if value is None or name in own or name not in parameters(model):
            continue
        raise TypeError(
            f"`{name}` is an argument of `EPI.run` and of the model. Pass that of the "
            f"model as `model_kwargs={{{name!r}: ...}}`."
        )
    return {**kwargs, **own}


def parameters(model: Callable) -> tuple[str, ...]:
    """Names in the signature of a model, as far as it has one."""
    try:
        return tuple(inspect.signature(model).parameters)
    except (TypeError, ValueError):
        return ()


def run_on(
    solver: Solver,
    state: EPIState,
    limits: Limits,
    checkpoint: Checkpoint | None,
    began: float,
) -> tuple[EPIState, str]:
    """Advance a state until it is done, or until something ends it.

    Args:
        solver: of the run.
        state: from which it goes on.
        limits: what may end it.
        checkpoint: where states are kept, or None.
        began: when this part of the run did.

    Returns:
        The last state, and what ended it: "done", "budget", "callback", "interrupt".
    """
    stopped_by = "done"
    if checkpoint is not None and not state.is_done:
        checkpoint.write(state, is_last=True)  # what fails does so before the work
    try:
        while not state.is_done:
            cost = state.num_simulations + solver.cost_of_next(state)
            if limits.is_late(began) or limits.is_too_dear(cost):
                stopped_by = "budget"
                break
            solver.progress.left = limits.left(state, began)
            state = solver.advance(state)
            if any([callback(state) for callback in limits.callbacks]):
                stopped_by = "done" if state.is_done else "callback"
                break
            if checkpoint is not None:
                checkpoint.write(state)
    except KeyboardInterrupt:
        stopped_by = "interrupt"
    if checkpoint is not None:
        try:
            checkpoint.write(state, is_last=True)
        except OSError as err:  # a result is worth more than its file
            warnings.warn(
                f"The last state could not be written to `{checkpoint.path}`: {err}.",
                RuntimeWarning,
                stacklevel=3,
            )
    return state, stopped_by
