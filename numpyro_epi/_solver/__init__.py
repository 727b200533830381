# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The solver: the exact law first, as weighted particles; see `docs/how_it_works.md`."""
