# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Parts of the trainer; the public face is `numpyro_epi.EPI`."""
