import jax
import jax.numpy as jnp

from vrtspike_jax.flops import count_flops


def test_matrix_products_count_two_operations_a_multiply():
    a, b = jnp.zeros((4, 6, 8)), jnp.zeros((4, 8, 5))
    assert count_flops(jnp.matmul, a, b) == 2 * 4 * 6 * 8 * 5


def test_convolutions_count_kernel_size_and_groups():
    x, kernel = jnp.zeros((2, 16, 16, 12)), jnp.zeros((3, 3, 4, 9))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )  # fmt: skip

    assert count_flops(convolve, x, kernel) == 2 * (2 * 8 * 8 * 9) * (3 * 3 * 4)


def test_scanned_jitted_and_rematerialised_bodies_count_each_run():
    x = jnp.zeros((8, 8))
    body = jax.checkpoint(jax.jit(lambda c: c @ x))

    def scanned(c):
        return jax.lax.scan(lambda c, _: (body(c), None), c, None, length=7)[0]

    assert count_flops(scanned, x) == 7 * 2 * 8**3
    # Backward: the forward pass, its recomputation, and one product (x is a constant).
    gradient = count_flops(jax.grad(lambda c: scanned(c).sum()), x)
    assert 2 * 7 * 2 * 8**3 <= gradient <= 3 * 7 * 2 * 8**3


def test_the_count_agrees_with_the_compiler_where_nothing_is_scanned():
    x = jnp.zeros((128, 256))
    function = lambda x: jnp.sum((x @ x.T) @ x)  # noqa: E731
    compiled = jax.jit(function).lower(x).compile()
    assert abs(count_flops(function, x) / compiled.cost_analysis()["flops"] - 1) < 0.05
