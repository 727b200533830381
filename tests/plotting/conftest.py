# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

import matplotlib
import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def _figures_are_closed_and_settings_kept():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before
