# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The model: a NumPyro program as pure functions, and what is known of it."""
