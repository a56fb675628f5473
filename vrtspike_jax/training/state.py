"""Everything that training carries from one step to the next, on the device."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from vrtspike_jax.training.optimizer import is_flat
from vrtspike_jax.training.packing import pack


@flax.struct.dataclass
class TrainState:
    """The state of training.

    Attributes:
        step: optimiser steps taken, skipped ones included; int32. It drives the schedule and the
            random numbers and equals the position in the data.
        params: float32 parameters.
        ema_params: their exponential moving average, or None.
        opt_state: the Optax state, of packed parameters.
        skipped: updates skipped because a loss or gradient was not finite; int32.
        skipped_in_row: how many of them directly precede this step; int32.
        loss_ema: moving average of the finite losses, against which a spike is told; float32.
        loss_spikes: steps whose loss was far above that average; int32.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    skipped: jax.Array
    skipped_in_row: jax.Array
    loss_ema: jax.Array
    loss_spikes: jax.Array


def create_state(
    params: Any, tx: optax.GradientTransformation, optim: ml_collections.ConfigDict
) -> TrainState:
    """A state at step 0.

    Args:
        params: float32 parameters.
        tx: from `optimizer.gradient_transformation`.
        optim: `config.optim`; `name`, `flow_modules` and `ema_decay` are read.
    """
    packed = pack(params, optim.flow_modules, is_flat(optim.name))

    # One array each: arrays that share a buffer cannot be donated together.
    def zero(dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((), dtype)

    return TrainState(
        step=zero(jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.array, params) if optim.ema_decay else None,
        opt_state=tx.init(packed),
        skipped=zero(jnp.int32),
        skipped_in_row=zero(jnp.int32),
        loss_ema=zero(jnp.float32),
        loss_spikes=zero(jnp.int32),
    )
