# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How many simulations will a run make, and how long will it take? A rough estimate.

Counted from the options: a search for the law of a typical length, then epochs.
Runs that are near their maximum early make fewer epochs, those that are far from it or
have a way to go make up to three times as many; hence "about".
"""

from typing import NamedTuple

from jax import random

from numpyro_epi._model.cost import Cost
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.first_fit import NUM_CHUNKS
from numpyro_epi._train.fit import DECAYS, FIT_BATCH, FIT_CHUNK
from numpyro_epi._train.options import Options
from numpyro_epi._train.simulations import NUM_PILOT, NUM_REPEATS
from numpyro_epi._train.training import REPLAY_SHARE

# Draws of a typical search for a law, in units of its size.
LAW_DRAWS = 2.8
# Epochs of a typical run.
EPOCHS = 10
# Passes through a simulator or a guide that a derivative in reverse mode is worth.
REVERSE_FACTOR = 4.0
# Scalar operations of a guide per second, on a machine that has nothing else to do, and
# what compilation takes there.
GUIDE_SPEED, COMPILE_SECONDS = 3e10, 20.0


class Plan(NamedTuple):
    """A rough estimate.

    Attributes:
        num_simulations: of the whole run.
        seconds: of the whole run.
    """

    num_simulations: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"a run: about {_round(self.num_simulations):,} simulations, roughly "
            f"{_duration(self.seconds)}"
        )


def plan(engine: Engine, gradient: str, seconds_each: float, *, is_noisy: bool) -> Plan:
    """Estimate a run.

    Args:
        engine: of the run.
        gradient: how statistics are differentiated.
        seconds_each: of one simulation.
        is_noisy: whether statistics are simulated repeatedly.
    """
    options = engine.options
    between, in_steps = count_simulations(engine, gradient, is_noisy=is_noisy)
    factor = {"reverse": REVERSE_FACTOR, "forward": 1.0 + engine.problem.num_latents}
    work = between + factor.get(gradient, 1.0) * in_steps
    steps = _epochs(options) * options.num_steps * options.num_particles
    if _has_law(engine):
        steps += len(DECAYS) * NUM_CHUNKS * FIT_CHUNK * FIT_BATCH
    params = engine.guide.init(random.key(0))
    draw = Cost.of(lambda key: engine.guide.sample(params, key, 1), random.key(0))
    training = REVERSE_FACTOR * steps * draw.num_operations / GUIDE_SPEED
    return Plan(
        between + in_steps,
        COMPILE_SECONDS + work * seconds_each + options.num_restarts * training,
    )


def count_simulations(
    engine: Engine, gradient: str, *, is_noisy: bool
) -> tuple[int, int]:
    """Simulations between gradient steps, and in them, of all restarts."""
    options = engine.options
    between = (1 + is_noisy) * min(NUM_PILOT, options.warm_start_size)
    if _has_law(engine):
        num_repeats = NUM_REPEATS if is_noisy else 1
        between += num_repeats * int(LAW_DRAWS * options.warm_start_size)
    if options.schedule is None:
        between += options.num_evaluation // 4
    each, in_steps = max(options.num_evaluation, options.num_particles), 0
    if gradient == "replay":
        each = max(int(REPLAY_SHARE * options.num_evaluation), options.num_particles)
        between += each
    else:
        in_steps = _epochs(options) * options.num_steps * options.num_particles
    between += _epochs(options) * each + options.num_evaluation
    return options.num_restarts * between, options.num_restarts * in_steps


def _epochs(options: Options) -> int:
    """How many a run takes, typically."""
    return options.num_epochs if options.schedule else min(options.num_epochs, EPOCHS)


def _has_law(engine: Engine) -> bool:
    return (
        engine.options.warm_start is not False
        and engine.options.schedule is None
        and engine.guide.has_fast_density
        and engine.problem.can_sample_prior
    )


def _round(num: int) -> int:
    """Two digits are more than is known."""
    return int(float(f"{num:.2g}"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    if seconds < 7200:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.2g} hours"
