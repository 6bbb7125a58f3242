"""What the orders in the catalogue leave out: the last step, to the clean image, is the image predicted before it."""

import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.samplers.catalogue import make_table

S = schedules.linear()
# Those of a high order, and some that draw noise: all but the first-order ones forget what they know.
NAMES = ["unipc", "unipc_3", "deis", "dpm_solver_pp_2m", "dpm_solver_pp_3m_corrected", "heun", "ddim", "ddpm"]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_row_returns_the_predicted_image(name):
    table = make_table(name, S, 8)
    np.testing.assert_allclose(table.rows.update[-1, 0, -3:], [1, 0, 0], atol=1e-12)
