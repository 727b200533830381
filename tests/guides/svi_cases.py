# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The cases of NumPyro's own tests of guides, written anew, with independent truths.

Each is run by `SVI` with one draw a step and a constant rate, as there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuideList, AutoNormal


class Case(NamedTuple):
    """A model, how it is trained, and its posterior means.

    Attributes:
        model: Without arguments.
        truth: Posterior means, by site.
        rate: Of Adam.
        num_steps: Of Adam.
        atol: Largest error of a mean, plus `rtol` times the mean.
        rtol: See `atol`.
        first: The site that `AutoNormal` guides, in a list of guides.
    """

    model: Callable
    truth: dict[str, np.ndarray]
    rate: float
    num_steps: int
    atol: float = 0.0
    rtol: float = 0.0
    first: str | None = None

    def guide(self, kind):
        """A guide of the kind, or a list of `AutoNormal` and such a guide."""
        if self.first is None:
            return kind(self.model)
        guide = AutoGuideList(self.model)
        guide.append(AutoNormal(handlers.block(self.model, expose=[self.first])))
        guide.append(kind(handlers.block(self.model, hide=[self.first])))
        return guide


def beta_bernoulli():
    """Two shares with a uniform prior, and ten tosses of each."""
    heads = np.array([8, 4])
    tosses = (np.arange(10)[:, None] < heads).astype(float)

    def model():
        share = numpyro.sample("share", dist.Beta(1.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("tosses", 10):
            numpyro.sample("y", dist.Bernoulli(share).to_event(1), obs=tosses)

    return Case(model, {"share": (heads + 1) / 12}, 0.01, 3_000, atol=0.05)


def logistic_regression():
    """Three coefficients, 1, 2, 3, and 3,000 labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 3))
    labels = (rng.uniform(size=3_000) < 1 / (1 + np.exp(-x @ [1, 2, 3]))).astype(float)

    def model():
        coefs = numpyro.sample("coefs", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.plate("data", 3_000):
            logits = jnp.asarray(x, float) @ coefs
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=labels)

    return Case(model, {"coefs": logistic_mean(x, labels)}, 0.01, 2_000, rtol=0.1)


def logistic_mean(x, labels):
    """By Newton's method, then importance sampling of a Gaussian at the mode."""
    mode = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ mode))
        precision = (x * (p * (1 - p))[:, None]).T @ x + np.eye(len(mode))
        mode = mode + np.linalg.solve(precision, x.T @ (labels - p) - mode)
    cholesky = np.linalg.cholesky(np.linalg.inv(precision))
    e = np.random.default_rng(1).normal(size=(2_000, len(mode)))
    draws = mode + e @ cholesky.T
    logits = draws @ x.T
    log_p = (labels * logits - np.logaddexp(0, logits)).sum(1) - (draws**2).sum(1) / 2
    log_ratio = log_p + (e**2).sum(1) / 2
    weights = np.exp(log_ratio - log_ratio.max())
    return weights @ draws / weights.sum()


def list_of_guides():
    """Intercept by `AutoNormal`, slopes by the flow: 500 data of sd 0.05.

    The posterior is 500 times narrower than the prior, and the rate is 0.1.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    y = 1 + x @ [-0.5, -1.0] + 0.05 * rng.normal(size=500)

    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(jnp.ones(2), 1.0).to_event(1))
        with numpyro.plate("data", 500):
            loc = a + jnp.asarray(x, float) @ b
            numpyro.sample("y", dist.Normal(loc, 0.05), obs=y)

    design = np.column_stack([np.ones(500), x]) / 0.05
    prior = np.array([0.0, 1.0, 1.0])
    mean = np.linalg.solve(design.T @ design + np.eye(3), design.T @ y / 0.05 + prior)
    truth = {"a": mean[0], "b": mean[1:]}
    return Case(model, truth, 0.1, 500, atol=0.05, first="a")


def hierarchy():
    """Six groups with means of their own, data in plates of which half is seen."""
    num_groups, num_data = 6, 40
    rng = np.random.default_rng(0)
    y = 1.0 + 0.8 * rng.normal(size=(num_groups, 1))
    y = y + rng.normal(size=(num_groups, num_data))

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = numpyro.sample("tau", dist.HalfNormal(2.0))
        with numpyro.plate("groups", num_groups, dim=-2):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            with numpyro.plate("data", num_data, subsample_size=20, dim=-1):
                batch = numpyro.subsample(jnp.asarray(y), event_dim=0)
                numpyro.sample("y", dist.Normal(theta, 1.0), obs=batch)

    return Case(model, hierarchy_means(y), 0.003, 4_000, atol=0.15)


def hierarchy_means(y):
    """Given tau all is Gaussian; tau by quadrature."""
    means, variance = y.mean(1), 1 / y.shape[1]
    grid = np.linspace(1e-3, 8, 4_000)
    spread = grid**2 + variance
    size = len(means)
    # Of `means` given tau, mu integrated out: spread on the diagonal, plus 4.
    total = (means**2).sum() / spread
    total -= means.sum() ** 2 / spread**2 / (1 / 4 + size / spread)
    log_det = size * np.log(spread) + np.log1p(4 * size / spread)
    log_p = -0.5 * (total + log_det) - grid**2 / 8
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    mu = means.sum() / spread / (1 / 4 + size / spread)
    pull = grid**2 / spread
    theta = mu[:, None] + (means - mu[:, None]) * pull[:, None]
    return {
        "mu": weights @ mu,
        "tau": weights @ grid,
        "theta": (weights @ theta)[:, None],
    }


CASES = {
    "beta_bernoulli": beta_bernoulli,
    "logistic_regression": logistic_regression,
    "list_of_guides": list_of_guides,
    "hierarchy": hierarchy,
}
