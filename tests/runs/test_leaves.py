"""What Orbax is given to write."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.runs.leaves import undivided


def test_small_arrays_that_all_devices_have_are_written_by_the_first():
    mesh = jax.make_mesh((4,), ("data",))
    put = lambda size, spec: jax.device_put(np.arange(size, dtype=np.float32), NamedSharding(mesh, spec))
    tree = {
        "small": put(8, PartitionSpec()),
        "large": put(2**18, PartitionSpec()),
        "divided": put(8, PartitionSpec("data")),
        "host": np.arange(3),
    }
    found = undivided(tree)
    assert found["small"].devices() == {jax.local_devices()[0]}
    np.testing.assert_array_equal(found["small"], tree["small"])
    assert all(found[name] is tree[name] for name in ("large", "divided", "host"))
