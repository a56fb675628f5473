import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from stand_in import tiny_config

from vrtspike_jax.training import optimizer
from vrtspike_jax.training.packing import Layout


def schedule_by_hand(step, peak, total, warmup):
    """PyTorch's SequentialLR of LinearLR(start_factor=1e-3) and CosineAnnealingLR."""
    if step < warmup:
        return peak * (1e-3 + (1 - 1e-3) * step / warmup)
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize("step", [0, 1, 100, 255, 256, 257, 3000, 6699, 6700])
def test_schedule_is_linear_warmup_then_cosine_to_zero(step):
    schedule = optimizer.learning_rate_schedule(1e-4, 6700, 256)
    expected = schedule_by_hand(step, 1e-4, 6700, 256)
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_a_run_no_longer_than_its_warmup_has_a_cosine_alone():
    schedule = optimizer.learning_rate_schedule(1.0, 100, 256)
    assert [float(schedule(s)) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0], abs=1e-6)


def naive_adamw(params, gradients, optim, rates, flow_factors):
    """A loop over steps and entries, as the paper writes it; `params` is name -> array."""
    params = {k: v.astype(np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(p) for k, p in params.items()}
    for t, (grads, rate, factor) in enumerate(zip(gradients, rates, flow_factors, strict=True), 1):
        grads = {k: g.astype(np.float64) * (factor > 0 or k != "spynet") for k, g in grads.items()}
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for k, g in grads.items():
            g = g * min(1, optim.clip_norm / norm)
            m[k] = optim.b1 * m[k] + (1 - optim.b1) * g
            v[k] = optim.b2 * v[k] + (1 - optim.b2) * g**2
            m_hat, v_hat = m[k] / (1 - optim.b1**t), v[k] / (1 - optim.b2**t)
            update = m_hat / (np.sqrt(v_hat) + optim.eps) + optim.weight_decay * params[k]
            params[k] -= rate * (factor if k == "spynet" else 1) * update
    return params


def run(optim, params, gradients, rates, flow_factors):
    tx = optimizer.gradient_transformation(optim)
    form = optimizer.packing_form(optim.name)
    tree = {"spynet": params["spynet"], "net": {"kernel": params["kernel"], "bias": params["bias"]}}
    layout = Layout.of(tree, ("spynet",), form)
    groups = layout.pack(tree)
    state = tx.init(groups)
    for grads, rate, factor in zip(gradients, rates, flow_factors, strict=True):
        g = {"spynet": grads["spynet"], "net": {"kernel": grads["kernel"], "bias": grads["bias"]}}
        held = optimizer.hold_frozen(layout.pack(g), jnp.float32(factor))
        direction, state = tx.update(held, state, groups)
        groups = optimizer.apply_direction(groups, direction, rate, factor)
    out = layout.unpack(groups)
    return {"spynet": out["spynet"], **out["net"]}, state


def problem(steps=6, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"spynet": (3, 4), "kernel": (5, 7), "bias": (7,)}

    def draw(scale):
        return {k: rng.normal(0, scale, s).astype(np.float32) for k, s in shapes.items()}

    params = draw(1)
    # Norms on both sides of the clipping threshold.
    gradients = [draw(scale) for scale in np.geomspace(0.01, 3, steps)]
    return params, gradients


def test_adamw_with_clipping_decay_and_a_slow_flow_network_equals_a_loop_by_hand():
    optim = tiny_config().optim
    params, gradients = problem()
    rates, factors = np.linspace(0.1, 0.02, 6), [0.0, 0.0, 0.25, 0.25, 0.25, 0.25]
    expected = naive_adamw(params, gradients, optim, rates, factors)
    found, _ = run(optim, params, gradients, rates, factors)
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-6)


def test_a_frozen_flow_network_neither_moves_nor_enters_the_clipping_norm():
    optim = tiny_config().optim
    params, gradients = problem(3)
    huge = [{**g, "spynet": g["spynet"] * 1e6} for g in gradients]
    calm, _ = run(optim, params, gradients, [0.1] * 3, [0.0] * 3)
    wild, _ = run(optim, params, huge, [0.1] * 3, [0.0] * 3)
    np.testing.assert_array_equal(calm["spynet"], params["spynet"])
    np.testing.assert_array_equal(wild["kernel"], calm["kernel"])


def test_flow_factor_is_zero_then_the_scale_and_zero_for_ever_if_negative():
    factors = [float(optimizer.flow_factor(jnp.int32(s), 0.25, 3)) for s in range(5)]
    assert factors == [0, 0, 0, 0.25, 0.25]
    assert float(optimizer.flow_factor(jnp.int32(10**6), 0.25, -1)) == 0


def test_bf16_first_moment_follows_adamw_with_less_memory():
    optim = tiny_config().optim
    params, gradients = problem()
    rates, factors = [0.01] * 6, [1.0] * 6
    exact, full = run(optim, params, gradients, rates, factors)
    with optim.unlocked():
        optim.name = "adamw_bf16"
    rough, light = run(optim, params, gradients, rates, factors)
    np.testing.assert_allclose(rough["kernel"], exact["kernel"], atol=2e-3)
    assert not np.array_equal(rough["kernel"], exact["kernel"])
    size = [sum(x.nbytes for x in jax.tree.leaves(state)) for state in (full, light)]
    assert size[1] == pytest.approx(0.75 * size[0], rel=0.01)


def test_adafactor_descends_with_a_state_far_smaller_than_the_parameters():
    optim = tiny_config().optim
    with optim.unlocked():
        optim.name, optim.clip_norm, optim.weight_decay = "adafactor", 0.0, 0.0
    tx = optimizer.gradient_transformation(optim)
    target = jnp.array(np.random.default_rng(0).normal(size=(256, 384)), jnp.float32)
    groups = {"flow": [], "rest": [jnp.zeros_like(target)]}
    state = tx.init(groups)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) < 0.02 * target.nbytes
    start = float(jnp.mean(target**2))
    for _ in range(50):
        direction, state = tx.update(
            {"flow": [], "rest": [groups["rest"][0] - target]}, state, groups
        )
        groups = optimizer.apply_direction(groups, direction, 0.05, 1.0)
    assert float(jnp.mean((groups["rest"][0] - target) ** 2)) < 0.1 * start


def orthogonalised(matrix):
    """Five Newton-Schulz iterations as the authors of Muon write them, in float64."""
    x = matrix.astype(np.float64)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def test_muon_orthogonalises_the_nesterov_momentum_of_matrices_and_leaves_adam_the_rest():
    optim = tiny_config().optim
    with optim.unlocked():
        optim.name, optim.clip_norm, optim.weight_decay, optim.b1 = "muon", 0.0, 0.0, 0.9
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 24), "dense": (36, 24), "bias": (24,), "last": (3, 3, 24, 3)}
    gradients = [
        {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(2)
    ]
    layout = Layout.of(gradients[0], (), optimizer.packing_form("muon"))
    tx = optimizer.gradient_transformation(optim)
    state = tx.init(layout.pack(gradients[0]))
    for grads in gradients:
        packed = layout.pack(grads)
        direction, state = tx.update(packed, state, packed)
    found = layout.unpack(direction)
    for name in ("conv", "dense"):
        one, two = (g[name].astype(np.float64).reshape(-1, 24) for g in gradients)
        # The mean of the gradients so far, and Nesterov's look ahead.
        average = 0.9 * 0.1 * one + 0.1 * two
        ahead = 0.9 * average / (1 - 0.9**3) + 0.1 * two / (1 - 0.9**2)
        want = orthogonalised(ahead) * 0.2 * math.sqrt(36)
        np.testing.assert_allclose(found[name].reshape(-1, 24), want, atol=2e-4)
        assert 0.1 < np.sqrt(np.mean(np.square(want))) < 0.3
    adam = optax.scale_by_adam(0.9, optim.b2, optim.eps)
    for name in ("bias", "last"):
        state = adam.init(jnp.zeros(shapes[name]))
        for grads in gradients:
            want, state = adam.update(jnp.asarray(grads[name]), state)
        np.testing.assert_allclose(found[name], want, rtol=1e-6)


def test_an_unknown_optimizer_is_named():
    optim = tiny_config().optim
    with optim.unlocked():
        optim.name = "adam8bit"
    with pytest.raises(ValueError, match=r"'adam8bit'.*adafactor"):
        optimizer.gradient_transformation(optim)
