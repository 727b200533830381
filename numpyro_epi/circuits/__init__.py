# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulators, statistics and ready models of neural circuits."""

from . import colliculus, linear, rnn, spectrum, stg, v1

__all__ = ["colliculus", "linear", "rnn", "spectrum", "stg", "v1"]
