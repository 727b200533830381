# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The tables that laws run over. A new guide is one more line."""

from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from numpyro_epi.guides import AutoNeuralSpline, AutoRealNVP

# Most of the time of these tests is compilation, which this halves.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SMALL = {"num_flows": 1, "hidden_dims": (4,)}

GUIDES = {
    "real_nvp": partial(AutoRealNVP, num_flows=3, hidden_dims=(8,)),
    "real_nvp, directed": partial(
        AutoRealNVP, num_flows=3, hidden_dims=(8,), directed=True
    ),
    "neural_spline": partial(
        AutoNeuralSpline, num_flows=2, hidden_dims=(8,), num_bins=4
    ),
}

# Priors on all kinds of supports: each is the only latent, `z`, of a model.
PRIORS = {
    "real": lambda: dist.Normal(100.0, 0.1),
    "heavy tails": lambda: dist.Cauchy(3.0, 0.5),
    "two modes": lambda: dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.5, 0.5])),
        dist.Normal(jnp.array([-3.0, 3.0]), 1.0),
    ),
    "interval": lambda: dist.Uniform(-10.0, 30.0),
    "truncated": lambda: dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0),
    "unit interval": lambda: dist.Beta(0.5, 1.5),
    "positive": lambda: dist.LogNormal(2.0, 0.5),
    "positive, near zero": lambda: dist.Gamma(0.3, 5.0),
    "half real": lambda: dist.HalfNormal(3.0),
    "vector": lambda: dist.MultivariateNormal(
        jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]])
    ),
    "matrix": lambda: dist.Uniform(jnp.zeros((2, 1)), 3.0).expand([2, 3]).to_event(2),
    "simplex": lambda: dist.Dirichlet(jnp.array([0.5, 1.0, 2.0])),
    "correlation": lambda: dist.LKJCholesky(3, 1.5),
    "zero sum": lambda: dist.ZeroSumNormal(1.0, (3,)),
    "ordered": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([3]).to_event(1),
        dist.transforms.OrderedTransform(),
    ),
}

IMPROPER = {
    "ordered": constraints.ordered_vector,
    "simplex": constraints.simplex,
    "positive vector": constraints.positive,
}


def latents(num, prior=None):
    """A model with one vector of latents, by default uniform."""

    def model():
        prior_ = dist.Uniform(-10.0, 10.0) if prior is None else prior
        numpyro.sample("z", prior_.expand([num]).to_event(1))

    return model


def single(prior, plate_size=None):
    """A model with one site, `z`, perhaps in a plate."""

    def model():
        if plate_size is None:
            return numpyro.sample("z", prior())
        with numpyro.plate("plate", plate_size):
            return numpyro.sample("z", prior())

    return model


def untrained(guide, *args, seed=0):
    """Parameters of a guide as it starts."""
    if guide.prototype_trace is None:
        guide._setup_prototype(*args)
    seeded = handlers.seed(guide._get_posterior, jax.random.key(seed))
    trace = handlers.trace(seeded).get_trace()
    return {k: site["value"] for k, site in trace.items() if site["type"] == "param"}


def met(model, **options):
    """A small guide that has met its model, and its parameters."""
    guide = AutoRealNVP(model, **(SMALL | options))
    return guide, untrained(guide)


def quick_sample(guide, params, *shape):
    def draw(key):
        return guide.sample_posterior(key, params, sample_shape=shape)

    return quick_jit(draw)(jax.random.key(0))


def at_random(guide, params, scale=0.03, seed=1):
    """Weights of a flow that is curved, but not so that float32 loses track."""
    leaves, treedef = jax.tree.flatten(params)
    sizes = jax.tree.leaves(guide.step_sizes(params))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        leaf + scale / size * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf, size in zip(keys, leaves, sizes, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def prior_log_density(guide, u):
    """Log density of the model's prior at unconstrained u, shape (n, D)."""
    total = 0.0
    for name, piece in guide._unpack_latent(u).items():
        prior = guide.prototype_trace[name]["fn"]
        transform = biject_to(prior.support)
        value = transform(piece)
        terms = prior.log_prob(value), transform.log_abs_det_jacobian(piece, value)
        total += sum(term.reshape(len(u), -1).sum(-1) for term in terms)
    return total
