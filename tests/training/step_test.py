import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_in import Tiny, tiny_config

from vrtspike_jax.training import optimizer
from vrtspike_jax.training.initialise import initial_state, random_params
from vrtspike_jax.training.sharding import make_mesh, put_batch
from vrtspike_jax.training.step import Recipe, build_train_step, train_step

# No dropout, so that losses can be compared.
MODEL = Tiny(rate=0.0)


def settings(**fields):
    config = tiny_config()
    config.update_from_flattened_dict(fields)
    return config


def batch_of(micro, clips, seed=0):
    rng = np.random.default_rng(seed)
    frames = (micro, clips, 2, 16, 16, 3)
    return {
        "blur": rng.integers(0, 256, frames, np.uint8),
        "sharp": rng.integers(0, 256, frames, np.uint8),
        "spikes": rng.integers(0, 4, (micro, clips, 2, 8, 8, 4), np.uint8),
        "index": np.arange(micro * clips).reshape(micro, clips),
    }


@functools.cache
def parts():
    config = settings(**{"optim.freeze_flow_steps": 0})
    mesh = make_mesh(config.mesh, None)
    tx = optimizer.gradient_transformation(config.optim)
    return config, mesh, tx, Recipe.from_config(config)


@functools.cache
def stepper():
    config, mesh, tx, recipe = parts()
    return build_train_step(MODEL, tx, recipe, mesh, initial_state(MODEL, config, mesh))


def advance(batches):
    """States and metrics after each batch, from a fresh state."""
    config, mesh, *_ = parts()
    state, seen = initial_state(MODEL, config, mesh), []
    for batch in batches:
        state, metrics = stepper()(state, put_batch(batch, mesh, leading=1), {})
        seen.append(jax.device_get((state, metrics)))
    return seen


def test_micro_batches_one_at_a_time_equal_one_large_batch():
    together = batch_of(1, 4)
    apart = {name: x.reshape(2, 2, *x.shape[2:]) for name, x in together.items()}
    (large, large_metrics), (small, small_metrics) = advance([together])[0], advance([apart])[0]
    assert small_metrics["loss"] == pytest.approx(large_metrics["loss"], rel=1e-5)
    assert small_metrics["grad_norm"] == pytest.approx(large_metrics["grad_norm"], rel=1e-4)
    # Adam's moments hold the gradients themselves; its steps divide by them.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7),
        small.opt_state,
        large.opt_state,
    )


def test_a_step_equals_the_formula_on_gradients_of_the_plain_loss():
    config, mesh, *_ = parts()
    batch = batch_of(1, 2)
    state, metrics = advance([batch])[0]

    def plain_loss(params):
        frames, sharp = batch["blur"][0] / 255, batch["sharp"][0] / 255
        out = MODEL.apply({"params": params}, jnp.float32(frames), np.log1p(batch["spikes"][0]))
        return jnp.mean(jnp.sqrt((out - sharp) ** 2 + 1e-6))

    before = initial_state(MODEL, config, mesh).params
    loss, grads = jax.value_and_grad(plain_loss)(before)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    rate = optimizer.learning_rate_schedule(1e-3, 20, 4)(0)
    for module, factor in (("first", 1.0), ("spynet", 0.25)):
        old, g = np.asarray(before[module]["kernel"]), np.asarray(grads[module]["kernel"])
        g = g * min(1, 1 / norm)
        # The first step of Adam: m_hat = g, v_hat = g^2.
        expected = old - rate * factor * (g / (np.abs(g) + 1e-8) + 1e-4 * old)
        np.testing.assert_allclose(state.params[module]["kernel"], expected, rtol=1e-4, atol=1e-8)


def test_the_average_starts_quickly_and_follows_the_parameters():
    config, mesh, *_ = parts()
    before = np.asarray(initial_state(MODEL, config, mesh).params["last"]["kernel"])
    seen = advance([batch_of(1, 2, seed) for seed in range(3)])
    average = before
    for count, (state, _) in enumerate(seen):
        decay = min(0.999, (1 + count) / (10 + count))
        average = decay * average + (1 - decay) * state.params["last"]["kernel"]
        np.testing.assert_allclose(state.ema_params["last"]["kernel"], average, rtol=1e-5)


def poison(monkeypatch, spoil):
    """A step whose output `spoil(out, bad)` changes; `bad` where the first pixel is pure white."""

    def apply(model, params, frames, voxels, **kwargs):
        out = model.apply({"params": params}, frames, voxels, **kwargs)
        bad = jnp.all(frames[:, :1, :1, :1] == 1, axis=-1, keepdims=True)
        return spoil(out, bad)

    monkeypatch.setattr("vrtspike_jax.training.step.apply_model", apply)
    _, _, tx, recipe = parts()
    return jax.jit(functools.partial(train_step, model=MODEL, tx=tx, recipe=recipe))


def good_and_bad():
    """Two micro-batches of two clips; in the bad one the first clip of the second is marked."""
    good = batch_of(2, 2)
    good["blur"][:, :, 0, 0, 0] = 7
    bad = {name: x.copy() for name, x in good.items()}
    bad["blur"][1, 0, 0, 0, 0] = 255
    return good, bad


def test_a_non_finite_clip_skips_the_update_counts_it_and_is_told_apart(monkeypatch):
    step = poison(monkeypatch, lambda out, bad: out * jnp.where(bad, jnp.nan, 1.0))
    good, bad = good_and_bad()
    config, mesh, *_ = parts()
    start = initial_state(MODEL, config, mesh)
    state, metrics = step(start, bad, {})
    assert metrics["skipped"] and not np.isfinite(metrics["loss"])
    np.testing.assert_array_equal(metrics["clip_finite"], [[True, True], [False, True]])
    for name in ("packed", "packed_ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(start, name))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (1, 1, 1)
    state, metrics = step(state, bad, {})
    assert int(state.skipped_in_row) == 2
    state, metrics = step(state, good, {})
    assert not metrics["skipped"] and np.isfinite(metrics["loss"])
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (3, 2, 0)
    assert not np.array_equal(state.params["last"]["kernel"], start.params["last"]["kernel"])


def test_a_non_finite_gradient_of_a_finite_loss_skips_too_and_blames_its_micro_batch(monkeypatch):
    # The derivative of sqrt at 0 is not finite, though its value is.
    step = poison(monkeypatch, lambda out, bad: out + jnp.sqrt(jnp.where(bad, out * 0, 1.0)))
    _, bad = good_and_bad()
    config, mesh, *_ = parts()
    _, metrics = step(initial_state(MODEL, config, mesh), bad, {})
    assert metrics["skipped"] and np.isfinite(metrics["loss"])
    np.testing.assert_array_equal(metrics["clip_finite"], [[True, True], [False, False]])


def test_skipped_steps_do_not_shift_the_schedule(monkeypatch):
    step = poison(monkeypatch, lambda out, bad: out * jnp.where(bad, jnp.nan, 1.0))
    _, bad = good_and_bad()
    config, mesh, *_ = parts()
    state = initial_state(MODEL, config, mesh)
    rates = []
    for _ in range(3):
        state, metrics = step(state, bad, {})
        rates.append(float(metrics["learning_rate"]))
    schedule = optimizer.learning_rate_schedule(1e-3, 20, 4)
    assert rates == pytest.approx([float(schedule(s)) for s in range(3)])


def test_a_loss_far_above_its_average_is_a_spike():
    config, mesh, *_ = parts()
    state = initial_state(MODEL, config, mesh)
    state = state.replace(step=jnp.int32(60), loss_ema=jnp.float32(1e-3))
    state, metrics = stepper()(state, put_batch(batch_of(1, 2), mesh, leading=1), {})
    assert metrics["loss_spike"] and int(state.loss_spikes) == 1


def test_random_params_equal_those_of_the_models_own_init():
    config = settings()
    own = MODEL.init(
        jax.random.key(config.seed), jnp.zeros((1, 2, 16, 16, 3)), jnp.zeros((1, 2, 16, 16, 4))
    )["params"]
    found = random_params(MODEL, config)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, own)
