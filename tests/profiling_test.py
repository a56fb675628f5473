from types import SimpleNamespace as Fake

import jax
import jax.numpy as jnp
import pytest

from vrtspike_jax.profiling import (
    break_down,
    device_events,
    measure_instructions,
    read_instructions,
)


def _step(x, weight):
    with jax.named_scope("net"):
        with jax.named_scope("stage1"):
            for i in range(2):
                with jax.named_scope(f"block_{i}"):
                    x = jnp.tanh(x @ weight)
        with jax.named_scope("stage2"):

            def body(c, _):
                with jax.named_scope("inner"):
                    return jnp.sin(c @ weight), None

            x, _ = jax.lax.scan(body, x, None, length=8)
    return x.sum()


@pytest.fixture(scope="module")
def breakdown():
    x, weight = jnp.full((384, 384), 0.01), jnp.full((384, 384), 0.02)
    compiled = jax.jit(jax.value_and_grad(_step, argnums=1)).lower(x, weight).compile()
    run = lambda: jax.block_until_ready(compiled(x, weight))  # noqa: E731
    run()
    measured = measure_instructions(run, 3)
    return break_down(read_instructions(compiled.as_text()), measured, 3, depth=2)


def test_stages_are_found_in_both_directions_and_shares_add_up(breakdown):
    stages = {share.name: share for share in breakdown.stages}
    for name in ("net/stage1", "net/stage2", "net/stage1 (backward)", "net/stage2 (backward)"):
        assert stages[name].milliseconds > 0
    assert abs(sum(share.fraction for share in breakdown.stages) - 1) < 1e-6
    total = sum(share.milliseconds for share in breakdown.stages)
    assert abs(total - breakdown.device_milliseconds) < 1e-6 * total


def test_alike_blocks_are_added_up_by_operation(breakdown):
    names = [share.name for share in breakdown.operations]
    assert "block: dot_general" in names
    assert not any("block_0" in name for name in names)


def test_loops_are_not_counted_on_top_of_their_bodies(breakdown):
    assert not any("while" in share.name.split()[0] for share in breakdown.instructions)
    products = [s for s in breakdown.instructions if "stage2/inner: dot_general" in s.name]
    assert any(share.runs_per_step == 8 for share in products)


def test_kernels_of_cuda_graphs_and_streams_are_told_by_their_names():
    def event(name, milliseconds, **stats):
        return Fake(name=name, duration_ns=1e6 * milliseconds, stats=stats.items())

    ran = Fake(
        name="Stream #13(Compute)",
        events=[
            event("loop_fusion_7", 2, hlo_op="command_buffer_4"),
            event("sm90_gemm", 3, hlo_op="custom-call.2"),
            event("MemcpyD2D", 1),
        ],
    )
    derived = Fake(name="XLA Modules", events=[event("jit_step", 6, hlo_op="jit_step")])
    planes = [
        Fake(name="/device:GPU:0", lines=[ran, derived]),
        Fake(name="/host:CPU", lines=[Fake(name="python", events=[event("x", 9, hlo_op="y")])]),
    ]
    events = list(device_events(planes))
    assert [name for name, _ in events] == ["loop_fusion_7", "custom-call.2"]
    text = """
      %loop_fusion.7 = f32[8]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(f)/net/a/mul"}
      %custom-call.2 = (f32[8]{0}, s8[4]{0}) custom-call(%p), metadata={op_name="jit(f)/net/b/dot"}
    """
    measured = {name: (seconds, 1) for name, seconds in events}
    stages = break_down(read_instructions(text), measured, 1, roots=("net",)).stages
    assert [(s.name, round(s.milliseconds, 6)) for s in stages] == [("b", 3.0), ("a", 2.0)]
