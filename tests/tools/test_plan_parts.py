"""What the pod planner computes with: slices and their links, HLO as compilers write it, bounds, suggestions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ddpm_jax.tools.plan import suggestions
from ddpm_jax.tools.plan.chips import CHIPS, parse
from ddpm_jax.tools.plan.hlo import Collective, collectives
from ddpm_jax.tools.plan.roofline import roofline, sent_bytes

# ------------------------------------------------------------------------------------------------------- topologies


@pytest.mark.parametrize(
    ("name", "num_chips", "links"),
    [
        ("v5e:1x1", 1, 0),
        ("v5e:2x2", 4, 2),
        ("v5e:4x8", 32, 2),
        ("v5e:8x16", 128, 3),
        ("v5e:16x16", 256, 4),
        ("v4:2x2x1", 4, 2),
        ("v5p:4x4x4", 64, 6),
        ("v6e:2x4", 8, 2),
    ],
)
def test_slices(name, num_chips, links):
    topology = parse(name)
    assert topology.num_chips == num_chips
    assert topology.egress == links * topology.chip.link_bandwidth


@pytest.mark.parametrize(("name", "pod", "all_reduce"), [("v5e", 256, 51.2e12), ("v6e", 256, 102.4e12)])
def test_link_rates_agree_with_the_rates_of_pods(name, pod, all_reduce):
    """The pages also give the all-reduce bandwidth of a whole pod: that of all links, one way."""
    chip = CHIPS[name]
    assert pod * 2 * chip.num_axes * chip.link_bandwidth == pytest.approx(all_reduce)


# -------------------------------------------------------------------------------------------------------------- HLO

# As libtpu 0.0.42 writes it, shortened.
TPU_HLO = """\
ENTRY %main.4 (param.0: f32[16], param.1: u8[1,2,8,8,1]) -> (f32[16], f32[]) {
  %all-reduce.145 = (f32[16]{0:T(128)S(1)}, f32[3,3,1,16]{3,2,1,0:T(1,128)S(1)}, /*index=2*/f32[]{:T(128)}) \
all-reduce(%fusion.1, %fusion.2, %add.7), replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%region.1, \
metadata={op_name="jit(_fun)/shard_map/psum" stack_frame_id=405}
  %get-tuple-element.827 = f32[]{:T(128)} get-tuple-element(%all-reduce.145), index=2, \
metadata={op_name="jit(_fun)/all-reduce(x)/psum"}
  ROOT %tuple = (f32[16]{0:T(128)}, f32[]{:T(128)}) tuple(%get-tuple-element.826, %get-tuple-element.827)
}
"""
# As XLA writes asynchronous ones and groups of a mesh.
OTHER_HLO = """\
  %ag-start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p.1), replica_groups=[8,4]<=[32], dimensions={0}
  %ag-done = bf16[16,8]{1,0} all-gather-done(%ag-start)
  rs.3 = f32[2,8]{1,0} reduce-scatter(p.2), replica_groups=[4,8]<=[8,4]T(1,0), dimensions={0}, to_apply=add
  %cp-start = (u32[6], u32[6], u32[], u32[]) collective-permute-start(%p.3), source_target_pairs={{0,1},{1,0}}
  %cp-done = u32[6]{0:T(128)} collective-permute-done((u32[6]{0:T(128)}, u32[6], u32[], u32[]) %cp-start)
  %all = pred[5]{0} all-to-all(%p.4), replica_groups={}, dimensions={0}
"""
# As libtpu 0.0.42 writes a step on a mesh of data 4 fsdp 8, shortened: an asynchronous gather that goes on beside two
# fusions, a gather of as many bytes on a channel of its own, a reduce-scatter, a reduction over both axes.
MESH_HLO = """\
%fused_computation.1172 (param_0.3496: bf16[64,8]) -> (bf16[64,8], bf16[64,64]) {
  %all-gather.204 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%param_0.3496), channel_id=9, \
replica_groups=mesh['axis_0'=1,'axis_1'=8,'axis_2'=4], device_ids=([4,8]T(1,0)) {'axis_1'}, dimensions={1}
}

%async_collective_fusion.452 (param_0.3499: bf16[64,8], param_1.5187: bf16[64,64]) -> bf16[64,64] {
  %all-gather.206 = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.3499), channel_id=9, \
replica_groups=mesh['axis_0'=1,'axis_1'=8,'axis_2'=4], device_ids=([4,8]T(1,0)) {'axis_1'}, dimensions={1}
}

%all-reduce-scatter.3 (input_0: f32[64,64], input_1: f32[3,3,64,8]) -> (f32[64,8], f32[3,3,8,8]) {
  %all-reduce.216 = (f32[64,64]{0,1:T(8,128)}, f32[3,3,64,8]{3,2,1,0:T(8,128)}) all-reduce(%input_0, %input_1), \
channel_id=9, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add.32.clone
}

ENTRY %main.4_spmd (param.1: f32[8]) -> (f32[8]) {
  %all-gather.74 = bf16[64,64]{1,0:T(4,128)} all-gather(%fusion.9), channel_id=11, \
replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=4], device_ids=([4,8]T(1,0)) {'axis_0'}, dimensions={1}
  %all-reduce.211 = (f32[8]{0:T(128)S(1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%a, %b), channel_id=74, \
replica_groups=mesh['axis_0'=8,'axis_1'=4] {'axis_0','axis_1'}, to_apply=%region_59.64
  %all-reduce.212 = f32[2]{0} all-reduce(%c), channel_id=75, replica_groups=mesh['axis_0'=32] {'axis_0':(2)4}
}
"""


def test_collectives_of_stored_text():
    assert collectives(TPU_HLO, 4) == [Collective("all-reduce", 4 * (16 + 3 * 3 * 16 + 1), 4)]
    assert collectives(OTHER_HLO, 32) == [
        Collective("all-gather", 2 * 16 * 8, 4),
        Collective("reduce-scatter", 8 * 4 * 2 * 8, 8),
        Collective("collective-permute", 4 * 6, 2),
        Collective("all-to-all", 5, 32),
    ]
    assert collectives(MESH_HLO, 32) == [
        Collective("all-gather", 2 * 64 * 64, 8),
        Collective("reduce-scatter", 4 * (64 * 64 + 9 * 64 * 8), 8),
        Collective("all-gather", 2 * 64 * 64, 8),
        Collective("all-reduce", 4 * (8 + 1), 32),
        Collective("all-reduce", 4 * 2, 4),
    ]
    with pytest.raises(ValueError, match="no replica_groups"):
        collectives("%a = f32[2] all-reduce(%b), to_apply=%add", 2)


def test_collectives_of_this_compiler():
    """Text of the XLA that is installed, from exchanges whose sizes are known."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    exchange = {
        "all-reduce": (lambda x: jax.lax.psum(x, ("a", "b")), PartitionSpec(), 4, 4 * 24),
        "all-gather": (lambda x: jax.lax.all_gather(x, "a", tiled=True), PartitionSpec("b"), 2, 4 * 2 * 24),
        "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "b", tiled=True), PartitionSpec(("a", "b")), 2, 4 * 24),
    }
    x = jnp.arange(4 * 24, dtype=jnp.float32)
    for operation, (f, out, size, num_bytes) in exchange.items():
        program = jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec(("a", "b")), out_specs=out, check_vma=False)
        found = collectives(jax.jit(program).lower(x).compile().as_text(), 4)
        assert found == [Collective(operation, num_bytes, size)]


# --------------------------------------------------------------------------------------------------------- roofline


def test_roofline_is_the_slowest_resource_at_its_peak():
    topology = parse("v5p:4x4x4")
    chip = topology.chip
    gathered = Collective("all-gather", 64 * 1000, 64)
    bounds = roofline(3 * chip.flops, 2 * chip.hbm_bandwidth, [gathered], topology)
    assert (bounds.compute, bounds.memory) == pytest.approx((3, 2))
    assert bounds.communication == pytest.approx(63 * 1000 / 600e9)  # six links of 100 GB/s
    assert (bounds.seconds, bounds.limit) == (3, "compute")
    assert roofline(0, chip.hbm_bandwidth, [], topology).limit == "memory"
    assert roofline(0, 0, [gathered], topology).limit == "communication"


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather():
    for p in (1, 2, 4, 256):
        halves = sum(sent_bytes(Collective(name, 1024, p)) for name in ("reduce-scatter", "all-gather"))
        assert sent_bytes(Collective("all-reduce", 1024, p)) == halves == pytest.approx(2 * 1024 * (p - 1) / p)
    assert sent_bytes(Collective("collective-permute", 7, 2)) == 7
    assert roofline(0, 0, [Collective("all-reduce", 1024, 1)], parse("v5e:1x1")).communication == 0


# ------------------------------------------------------------------------------------------------------ suggestions


def suggested(**changes):
    """100 bytes of a chip, 16 images on 4 chips; 10 bytes of state and 30 for each image."""
    facts = {
        "needed_bytes": 130,
        "available_bytes": 100,
        "state_bytes": 10,
        "num_images": 16,
        "num_chips": 4,
        "batch": "batch",
        "remat_left": False,
        "fsdp": 1,
    }
    return suggestions.to_fit(**facts | changes)


@pytest.mark.parametrize(("state", "each", "available"), [(1000, 10, 3000), (0, 7, 100), (10, 41, 100)])
def test_the_suggested_batch_is_the_largest_that_fits(state, each, available):
    most = (available - state) // each  # state + each * n <= available
    found = suggested(needed_bytes=state + each * 1000, available_bytes=available, state_bytes=state, num_images=4000)
    assert found == (
        f"batch of at most about {4 * most}, {most} images on a chip",
        f"about {-(-4000 // most)} chips or more for 4000 images",
    )


@pytest.mark.parametrize(
    ("fsdp", "num_chips", "state", "found"),
    [
        (1, 32, 401, "--parallel.mesh data 2 fsdp 16: a chip holds 1/16 of the state"),  # 401 / 8 > 100 / 2
        (1, 32, 400, "--parallel.mesh data 4 fsdp 8: a chip holds 1/8 of the state"),
        (4, 32, 101, "--parallel.mesh data 2 fsdp 16: a chip holds 1/16 of the state"),  # 404 in all
        (1, 12, 401, "--parallel.mesh data 1 fsdp 12: a chip holds 1/12 of the state"),
        (1, 4, 401, "9 chips or more and --parallel.mesh fsdp 9: a chip holds 1/9 of the state"),
    ],
)
def test_a_state_that_is_too_large_is_to_be_sharded(fsdp, num_chips, state, found):
    facts = {"state_bytes": state, "needed_bytes": 900, "num_images": num_chips, "num_chips": num_chips}
    assert suggested(**facts, fsdp=fsdp) == (found,)
    assert suggested(**facts, fsdp=None) == ("a smaller model",)


def test_what_else_is_suggested():
    remat = "--model.remat: blocks are computed again in the backward pass, not kept"
    assert remat in suggested(remat_left=True) and remat not in suggested()
    sharded = "--parallel.mesh data 2 fsdp 2: a chip holds 1/2 of the state"  # where it takes half of a chip or more
    assert sharded in suggested(state_bytes=50) and sharded not in suggested(state_bytes=49)
    assert sharded not in suggested(state_bytes=50, fsdp=None)
    assert suggested(needed_bytes=10 + 4 * 91) == ("a smaller model or smaller images: one image does not fit",)
