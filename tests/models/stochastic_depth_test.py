"""Stochastic depth: which branches are dropped, how often, and what makes up for it."""

import jax
import numpy as np
import small_models
from small_models import normal

from vrtspike_jax.models.attention import TMSAG

SAMPLES = 4000


def _scales(train=True, **fields):
    model = small_models.backbone(depths=(3,) * 7 + (2, 1), mul_attn_ratio=0.7, **fields)
    return model.apply({}, SAMPLES, train, method="_branch_scales", rngs={"dropout": _key()})


def _key():
    return jax.random.key(0, impl="rbg")


def test_branches_are_dropped_at_rates_that_rise_with_depth_and_restart_in_each_group():
    # 24 blocks; two of three in each stage are mutual, and the third starts at the first's rate.
    step = 0.46 / 23
    wanted = [[3 * i * step, (3 * i + 1) * step, 3 * i * step] for i in range(7)]
    wanted += [[21 * step, 22 * step], [23 * step]]
    found = _scales(drop_path_rate=0.46)
    for scales, rates in zip(found, wanted, strict=True):
        assert scales.shape == (len(rates), 2, SAMPLES)
        kept = 1 - np.array(rates)[:, None, None]
        zero = np.asarray(scales) == 0
        np.testing.assert_allclose(zero.mean(axis=-1), 1 - kept[..., 0].repeat(2, 1), atol=0.03)
        np.testing.assert_allclose(np.where(zero, 1 / kept, scales), 1 / kept + 0 * zero, rtol=1e-6)
    # Both branches, and any two blocks, are dropped independently.
    last = np.asarray(found[7] == 0)
    np.testing.assert_allclose((last[0, 0] & last[0, 1]).mean(), (21 * step) ** 2, atol=0.03)
    np.testing.assert_allclose((last[0, 0] & last[1, 0]).mean(), 21 * 22 * step**2, atol=0.03)


def test_nothing_is_dropped_outside_training_or_at_rate_zero():
    assert _scales(train=False, drop_path_rate=0.3) == [None] * 9
    assert _scales(drop_path_rate=0.0) == [None] * 9


def test_a_clip_whose_branches_are_all_dropped_passes_unchanged():
    block = {"dim": 8, "num_heads": 2, "window_size": (2, 4, 4), "mut_attn": True}
    group, x = TMSAG(3, block), normal(0, 2, 2, 4, 4, 8)
    params = small_models.drawn_params(group, x)
    scales = np.ones((3, 2, 2), np.float32)
    scales[:, :, 1] = 0
    y = group.apply({"params": params}, x, scales)
    plain = group.apply({"params": params}, x)
    np.testing.assert_array_equal(y[1], x[1])
    np.testing.assert_allclose(y[0], plain[0], rtol=1e-5, atol=1e-5)
    assert np.abs(y[0] - x[0]).mean() > 0.1
