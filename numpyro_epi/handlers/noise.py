# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What of a model is simulation noise, drawn afresh in each run and never inferred?"""

from typing import Any

import numpyro
from numpyro.handlers import block
from numpyro.primitives import _PYRO_STACK, Messenger, plate

from .._typing import Message, Model


class noise(Messenger):
    """Draws simulation noise and hides it.

    Simulation noise are the sample sites marked `infer={"noise": True}`, unless they
    are observed. They are drawn from their own distribution, discrete ones too, with a
    key from `numpyro.prng_key`, which `numpyro.handlers.seed` around this handler
    supplies, and handlers around this one do not see them. So a guide of
    `noise(model)` has no noise among its latents. All other sites pass untouched.

    A model may also call `numpyro.prng_key` itself and simulate with that key, and a
    plate with a `subsample_size` draws its elements at random.

    Attributes:
        is_noisy: Whether the last run drew simulation noise, of any of these kinds. A
            key that is fixed inside of this handler, by `numpyro.handlers.seed`, does
            not count, nor do elements of a plate that another handler has chosen.
        subsampled: Plates whose elements the last run drew, and how many of how many:
            `{name: (subsample_size, size)}`.

    Args:
        fn: A model.

    Raises:
        RuntimeError: In a run with noise, if nothing supplies a key.

    Example:
        >>> import jax, numpyro, numpyro_epi as epi
        >>> import numpyro.distributions as dist
        >>> from numpyro.handlers import seed, trace
        >>> def model():
        ...     a = numpyro.sample("a", dist.Normal())
        ...     spikes = dist.Poisson(jax.numpy.exp(a))
        ...     count = numpyro.sample("count", spikes, infer={"noise": True})
        ...     epi.emergent_property(count, mean=3.0)
        >>> noisy = epi.handlers.noise(model)
        >>> list(trace(seed(noisy, jax.random.key(0))).get_trace())
        ['a', 'emergent_property']
        >>> noisy.is_noisy
        True
    """

    def __init__(self, fn: Model | None = None) -> None:
        super().__init__(fn)
        self.is_noisy = False
        self.subsampled: dict[str, tuple[int, int]] = {}
        self._waiting: list[str] = []

    def __enter__(self) -> None:
        super().__enter__()
        self.is_noisy = False
        self.subsampled = {}
        # Types of the messages that passed and whose value is not known yet: what
        # arrives meanwhile was sent by a handler, or by the body of a `scan`.
        self._waiting = []

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "prng_key":
            self.is_noisy |= self._is_for_the_model(msg)
            return
        if msg["type"] == "plate" and msg["value"] is None:
            self._watch(msg)
        self._waiting.append(msg["type"])
        if _is_noise(msg):
            self._draw(msg)

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] != "prng_key":
            self._waiting.pop()

    def note_subsampling(self, name: str, subsample_size: int, size: int) -> None:
        """Called when elements of a plate are about to be drawn."""
        self.is_noisy = True
        self.subsampled[name] = (subsample_size, size)

    def _watch(self, msg: Message) -> None:
        """Take note if the elements of a plate are drawn: a handler may choose them."""
        if msg["kwargs"]["rng_key"] is not None:
            return  # a key that is fixed inside of this handler
        draw, name, (size, subsample_size) = msg["fn"], msg["name"], msg["args"]

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.note_subsampling(name, subsample_size, size)
            return draw(*args, **kwargs)

        msg["fn"] = noted

    def _is_for_the_model(self, msg: Message) -> bool:
        if self._waiting:
            # A handler wants a key for the site of another message, except that the
            # body of a `scan` runs, with keys split from that of the `scan`.
            return self._waiting[-1] == "control_flow"
        return msg["kwargs"]["rng_key"] is None

    def _draw(self, msg: Message) -> None:
        """Let the site be drawn here, if it has no value yet."""
        msg["stop"] = True
        if msg["value"] is not None:  # from a handler inside, or drawn by `scan`
            self.is_noisy |= msg.get("_control_flow_done", False)
            return
        self._expand_by_outer_plates(msg)
        if msg["kwargs"]["rng_key"] is None:
            self.is_noisy = True
            msg["kwargs"]["rng_key"] = numpyro.prng_key()
        if msg["kwargs"]["rng_key"] is None:
            raise RuntimeError(
                f"Expected a random key for the noise site `{msg['name']}`, got none. "
                "Run the model under `numpyro.handlers.seed`."
            )

    def _expand_by_outer_plates(self, msg: Message) -> None:
        """Apply the plates around this handler, which a stopped message misses."""
        outer = _PYRO_STACK[: _PYRO_STACK.index(self)]
        for handler in reversed(outer):
            if isinstance(handler, block) and handler.hide_fn(msg):
                break
            if isinstance(handler, plate):
                handler.process_message(msg)


def _is_noise(msg: Message) -> bool:
    """Whether a message comes from a site that is marked as noise, and not observed."""
    is_marked = msg["type"] == "sample" and msg.get("infer", {}).get("noise", False)
    return bool(is_marked) and not msg["is_observed"]
