import jax
import jax.numpy as jnp
import pytest

from vrtspike_jax.profiling import break_down, measure_instructions, read_instructions


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
    assert not any("[while]" in share.name for share in breakdown.instructions)
    products = [s for s in breakdown.instructions if "stage2/inner: dot_general" in s.name]
    assert any(share.runs_per_step == 8 for share in products)
