# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What happens between epochs: multipliers, penalties, and how many epochs are left."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.convergence import is_equivalent
from numpyro_epi._math.lagrangian import grow_penalty, update_multipliers
from numpyro_epi._train.options import Options
from numpyro_epi._train.records import EpochRecord, Scores
from numpyro_epi._train.state import EPIState, choose_restarts

# A guide this many nats from the maximum gets so many times the epochs and the rate.
LARGE_GAP, LONG_FACTOR, FAR_RATE = 0.5, 3, 3.0
# One this many nats from it after its first epoch or its second gets them at once.
HUGE_GAP = 2.0
# Factor of the penalty after an epoch whose single steps swing about the targets.
CALM = 0.5
# Epochs in which the learning rate of a guide that is near its target falls to its end.
NUM_LAST_EPOCHS = 2
# Nats that an epoch may lose, and the factor of the rate when it is taken back.
MAX_FALL, RETREAT_RATE = 5.0, 0.25


def is_met(scores: Scores, options: Options) -> np.ndarray:
    """Which constraints are shown to be met within the tolerance, shape (K,)."""
    return is_equivalent(
        scores.violation,
        scores.violation_error,
        tolerance=options.tolerance,
        z_score=options.z_score,
    )


def is_within(scores: Scores, options: Options) -> bool:
    """Whether all violations are within the tolerance, with too few draws or enough."""
    return float(np.abs(scores.violation).max()) <= options.tolerance


def gaps(
    bounds: np.ndarray, scores: Sequence[Scores], multipliers: np.ndarray
) -> np.ndarray:
    """Nats that each restart has to gain, shape (R,); NaN where that is not known.

    A bound is log Z of the warm start (weak duality), and the guide's score is
    corrected for its violation, so a guide cannot come near by missing its targets.

    Args:
        bounds: of each restart, shape (R,).
        scores: of each restart's guide.
        multipliers: of each restart, shape (R, K).
    """
    corrected = [
        s.log_likelihood - s.divergence - np.asarray(lam) @ s.violation
        for s, lam in zip(scores, multipliers, strict=True)
    ]
    return bounds - np.array(corrected)


def is_near(bounds: np.ndarray, record: EpochRecord, options: Options) -> bool:
    """Whether no restart has more than `gap_tolerance` nats to gain."""
    is_close = gaps(bounds, record.scores, record.multipliers) < options.gap_tolerance
    are_within = all(is_within(s, options) for s in record.scores)
    return are_within and bool(is_close.all())


def has_diverged(
    state: EPIState, before: Sequence[Scores], record: EpochRecord
) -> np.ndarray:
    """Whether an epoch has ruined the guide of each restart, shape (R,).

    Its augmented Lagrangian, at the multipliers and penalties of the epoch, has fallen
    by `MAX_FALL` nats and by half of what the constraints cost before.

    Args:
        state: after the epoch, before its multipliers are updated.
        before: of each restart, after the last epoch that was not taken back.
        record: of the epoch.
    """
    is_lost = []
    for r, (old, new) in enumerate(zip(before, record.scores, strict=True)):
        multipliers, penalty = (
            np.asarray(x[r]) for x in (state.multipliers, state.penalty)
        )
        costs = [
            np.array([multipliers @ s.violation, 0.5 * penalty @ s.violation**2])
            for s in (old, new)
        ]
        was, now = (
            s.log_likelihood - s.divergence - cost.sum()
            for s, cost in zip((old, new), costs, strict=True)
        )
        fall = MAX_FALL + 0.5 * np.abs(costs[0]).sum()
        is_lost.append(bool(np.isfinite(was) and not now > was - fall))
    return np.array(is_lost)


def retreat(is_lost: np.ndarray, before: EPIState, after: EPIState) -> EPIState:
    """Take an epoch back, and go on more slowly from where it began."""
    slower = before._replace(rate=before.rate * RETREAT_RATE)
    kept = ("rng_key", "num_steps", "horizon", "memory")
    return choose_restarts(is_lost, slower, after, keep=kept)


def end_after(state: EPIState, num_epochs: int, options: Options) -> EPIState:
    """The learning rate falls to its end within this number of epochs in all."""
    end = float(num_epochs * options.num_steps)
    return state._replace(horizon=jnp.full_like(state.horizon, end))


def take_time(
    state: EPIState, bounds: np.ndarray, record: EpochRecord, *, is_first: bool = False
) -> tuple[EPIState, int]:
    """Factor of the number of epochs for a guide that is far from its maximum.

    Its target is hard for it: it gets more and larger steps, and no anchor, which
    agrees with the objective only where the guide can be exact. After the first epochs
    (`is_first`) only a huge distance counts, of which no more epochs would make little.
    """
    left = gaps(bounds, record.scores, record.multipliers)
    is_far = (left > HUGE_GAP) & np.isfinite(left) if is_first else left > LARGE_GAP
    if not is_far.any():
        return state, 1
    state = state._replace(
        horizon=state.horizon * LONG_FACTOR,
        anchor=jnp.where(is_far, 0.0, state.anchor),
        pool=state.pool.empty if is_far.all() else state.pool,
        rate=jnp.where(is_far, FAR_RATE, state.rate),
    )
    return state, LONG_FACTOR


def swings(records: Sequence[EpochRecord], options: Options) -> np.ndarray:
    """Whether guides of single steps swing about their targets, shape (R,).

    Guides that miss a mean, now this way and now that, have a second moment that the
    averaged guide lacks. Multipliers follow the steps, so that the averaged guide stays
    below its targets for as long as it goes on. A guide that comes from above is on its
    way: it does not swing.
    """
    is_swinging = []
    for steps, scores in zip(records[-1].violation, records[-1].scores, strict=True):
        noise = options.z_score * scores.violation_error
        is_low = scores.violation + noise < -options.tolerance
        is_apart = steps - scores.violation - noise > options.tolerance
        is_swinging.append(bool((is_low & is_apart).any()))
    return np.array(is_swinging)


def law_multipliers(state: EPIState, record: EpochRecord) -> EPIState:
    """Multipliers of the guide as the last epoch has left it, lambda + c V.

    Those that the next epoch would begin with are for a law with a smaller violation.
    """
    own = record.multipliers + record.penalty * record.violation
    return state._replace(multipliers=jnp.asarray(own, float))


def update_duals(
    state: EPIState,
    records: Sequence[EpochRecord],
    options: Options,
    shares: np.ndarray | float = 1.0,
) -> EPIState:
    """Update multipliers and penalties; copies share both, by `shares`, shape (K,).

    Five that took a whole Newton step each would go five times as far, never to arrive.
    """
    is_swinging = swings(records, options)
    penalty = np.asarray(state.penalty)
    multipliers, penalties = [], []
    for r, scores in enumerate(records[-1].scores):
        violation = records[-1].violation[r]
        # Within the tolerance a Newton step would add more noise than it takes away.
        is_off = np.abs(violation) > options.tolerance
        multipliers.append(
            update_multipliers(
                np.asarray(state.multipliers[r]),
                penalty[r],
                violation,
                np.where(is_off, scores.variance / shares, np.inf),
            )
        )
        base, previous = float((penalty[r] / shares)[0]), None
        if len(records) > 1:
            previous = records[-2].violation[r]
        grown = grow_penalty(
            base,
            violation,
            scores.violation_error,
            previous,
            growth=options.penalty_growth,
            reduction=0.5,
            tolerance=options.tolerance,
            max_penalty=options.max_penalty,
        )
        if is_swinging[r]:
            # A strong pull on a violation that lags behind the guide is what swings.
            grown = max(CALM * base, min(options.penalty, base))
        penalties.append(grown * shares * np.ones_like(penalty[r]))
    return state._replace(
        multipliers=jnp.asarray(np.stack(multipliers), float),
        penalty=jnp.asarray(np.stack(penalties), float),
        running=jnp.asarray(records[-1].violation, float),
    )
