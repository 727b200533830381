# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact law of a model, as weighted draws; the first stage of the next solver.

`EPI` does not use it yet: it is raced beside today's trainer; `docs/experiments.md` has
the figures.
"""
