"""The optimiser: learning-rate schedule, gradient transformation, and the slower flow network.

It works on parameters in two groups, `flow` and `rest` (see `packing`).

The update of optimiser step `s` is

    params <- params - lr(s) * flow(s) * transform(clip(grads))

with `lr` the schedule and `flow` 1 everywhere but in the flow network. Both depend on the training
step alone, not on counters inside the Optax state, so a skipped (non-finite) step does not shift
the schedule and a resumed run sees the same rates.
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vrtspike_jax.training.packing import Groups

OPTIMIZERS = ("adamw", "adamw_bf16", "muon", "adafactor")
# Root mean square of the entries of Muon's updates: near Adam's, so that rates fit both.
UPDATE_RMS = 0.2


def learning_rate_schedule(
    peak: float, num_steps: int, warmup_steps: int, warmup_start: float = 1e-3
) -> optax.Schedule:
    """Linear warm-up, then a cosine to zero.

    Args:
        peak: the highest rate, reached at step `warmup_steps`.
        num_steps: steps of the whole run; the rate would be 0 at step `num_steps`.
        warmup_steps: steps of the linear part. A run that is no longer than its warm-up has a
            cosine alone.
        warmup_start: rate of step 0 as a fraction of `peak`.

    Returns:
        A function from the step (0-based) to the rate.

    Source: `SequentialLR([LinearLR(1e-3), CosineAnnealingLR])` of the original's `train.py`.
    """
    if not 0 < warmup_steps < num_steps:
        return optax.cosine_decay_schedule(peak, max(num_steps, 1))
    return optax.join_schedules(
        [
            optax.linear_schedule(peak * warmup_start, peak, warmup_steps),
            optax.cosine_decay_schedule(peak, num_steps - warmup_steps),
        ],
        [warmup_steps],
    )


def packing_form(name: str) -> str:
    """How an optimiser wants parameters packed: one of `packing.FORMS`."""
    return {"muon": "stacks", "adafactor": "arrays"}.get(name, "vector")


def gradient_transformation(optim: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Clipping by global norm, then the optimiser's direction (before the learning rate).

    Args:
        optim: `config.optim`. Reads `name`, `clip_norm`, `b1`, `b2`, `eps`, `weight_decay`.

    Returns:
        A transformation whose output is to be multiplied by minus the learning rate.

    Raises:
        ValueError: an unknown `name`.
    """
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm > 0 else optax.identity()
    if optim.name in ("adamw", "adamw_bf16"):
        # bfloat16 for the first moment alone: the second spans too many magnitudes for 8 bits.
        first_moment = jnp.bfloat16 if optim.name == "adamw_bf16" else jnp.float32
        direction = optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=first_moment)
    elif optim.name == "muon":
        adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
        direction = optax.partition({"stack": _muon(optim.b1), "vector": adam}, _kinds)
    elif optim.name == "adafactor":
        # Row and column means instead of a second moment, and no first moment: a few hundred
        # kilobytes of state. Block-wise clipping replaces what the first moment would smooth.
        direction = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    else:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"config.optim.name is {optim.name!r}: expected one of {known}")
    return optax.chain(clip, direction, optax.add_decayed_weights(optim.weight_decay))


def _kinds(groups: Groups) -> Groups:
    return jax.tree.map(lambda array: "stack" if array.ndim == 3 else "vector", groups)


def _muon(momentum: float) -> optax.GradientTransformation:
    """Orthogonalised momentum (Nesterov) of stacks of matrices, in the size of Adam's updates.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the
    size is that of Liu et al., arXiv:2502.16982, eq. 4.
    """

    def dimensions(groups: Groups) -> Groups:
        return jax.tree.map(lambda _: MuonDimensionNumbers(1, 2), groups)

    def scale(directions: Groups, params: Groups | None) -> Groups:
        del params
        # Singular values of 1 spread an entry's mean square over the longer side.
        return jax.tree.map(lambda x: x * (UPDATE_RMS * max(x.shape[1:]) ** 0.5), directions)

    orthogonal = scale_by_muon(beta=momentum, weight_dimension_numbers=dimensions)
    return optax.chain(orthogonal, optax.stateless(scale))


def flow_factor(step: jax.Array, scale: float, freeze_steps: int) -> jax.Array:
    """What the learning rate of the flow network is multiplied by at `step`.

    Args:
        step: the training step, 0-based.
        scale: `config.optim.flow_lr_scale`.
        freeze_steps: `config.optim.freeze_flow_steps`; negative keeps it frozen for ever.

    Returns:
        0 while frozen, then `scale`. float32 scalar.

    Source: KAIR's `fix_iter` and `fix_lr_mul`, with which VRT was trained.
    """
    if freeze_steps < 0:
        return jnp.float32(0)
    return jnp.where(step < freeze_steps, 0.0, scale).astype(jnp.float32)


def hold_frozen(grads: Groups, factor: jax.Array) -> Groups:
    """Gradients with zeros for the flow network where `factor` is 0.

    A frozen network takes no part in the clipping norm and leaves no trace in the moments, as if
    its parameters had `requires_grad = False`.
    """
    alive = (factor > 0).astype(jnp.float32)
    return grads | {"flow": jax.tree.map(lambda g: g * alive, grads["flow"])}


def apply_direction(
    params: Groups, direction: Groups, rate: jax.Array, factor: jax.Array
) -> Groups:
    """`params - rate * direction`, with `rate * factor` for the flow network."""
    rates = {"flow": rate * factor, "rest": rate}
    return {
        name: jax.tree.map(lambda p, d, r=rates[name]: p - r * d, params[name], direction[name])
        for name in params
    }
