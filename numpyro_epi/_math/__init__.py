# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Mathematics on arrays: nothing here knows of NumPyro, models or guides."""
