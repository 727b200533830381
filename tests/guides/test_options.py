# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Options that guides refuse, with one clear message each."""

import jax.numpy as jnp
import pytest

from guides.tables import latents, untrained
from numpyro_epi.guides import AutoFlow, AutoNeuralSpline, AutoRealNVP

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_flows": 0}, "`num_flows`, got 0"),
        ({"num_flows": 2.5}, "`num_flows`, got 2.5"),
        ({"hidden_dims": [50]}, r"`hidden_dims`, got \[50\]"),
        ({"hidden_dims": (50, 0)}, r"`hidden_dims`, got \(50, 0\)"),
        ({"hidden_dims": ()}, "`hidden_dims`"),
        ({"multimodal": 2}, "`multimodal`, got 2"),
        ({"mixing": "LU"}, "`mixing`, got 'LU'"),
        ({"base": "posterior"}, "`base`, got 'posterior'"),
        ({"base_scale": 0.0}, "`base_scale`, got 0.0"),
    ],
)
@pytest.mark.parametrize("kind", [AutoRealNVP, AutoNeuralSpline])
def test_options_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(latents(2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_bins": 1}, "`num_bins`, got 1"), ({"bound": 0.0}, "`bound`, got 0.0")],
)
def test_options_of_splines_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoNeuralSpline(latents(2), **options)


def test_a_wrong_choice_of_directions_is_refused():
    with pytest.raises(ValueError, match="`directed`, got 'both'"):
        AutoRealNVP(latents(2), directed="both")


@pytest.mark.parametrize(
    ("latent_dim", "directed", "expected", "num_flows"),
    [
        (1, True, False, 8),
        (2, None, False, 8),
        (2, True, True, 8),
        (8, None, False, 12),
        (8, True, True, 8),
        (16, None, True, 8),
        (16, False, False, 12),
    ],
)
def test_directions_and_layers_by_default(latent_dim, directed, expected, num_flows):
    guide = AutoRealNVP(latents(latent_dim), directed=directed)
    guide._setup_prototype()
    assert (guide.directed, guide.num_flows) == (expected, num_flows)


@pytest.mark.parametrize("mixing", [None, True, False])
def test_directed_layers_have_linear_maps_between_them_only_if_asked(mixing):
    guide = AutoRealNVP(latents(16), num_flows=1, hidden_dims=(4,), mixing=mixing)
    untrained(guide)
    assert guide.mixing is bool(mixing)


@pytest.mark.parametrize("option", ["base_loc", "base_scale"])
def test_a_base_of_the_wrong_shape_is_refused(option):
    with pytest.raises(ValueError, match=rf"shape \(2,\) as `{option}`"):
        untrained(AutoRealNVP(latents(2), **{option: jnp.ones(3)}))


@pytest.mark.parametrize("kind", [AutoRealNVP, AutoNeuralSpline])
@pytest.mark.parametrize(
    ("latent_dim", "mixing", "expected"),
    [(1, True, False), (2, None, True), (2, False, False), (200, None, False)],
)
def test_linear_maps_by_default_up_to_many_latents(kind, latent_dim, mixing, expected):
    guide = kind(latents(latent_dim), num_flows=1, hidden_dims=(4,), mixing=mixing)
    untrained(guide)
    assert guide.mixing is expected


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="num_layers"):
        AutoRealNVP(latents(2), num_layers=3)
    with pytest.raises(TypeError, match="num_layers"):
        AutoNeuralSpline(latents(2), num_layers=3)


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        AutoFlow(latents(2))
