"""Everything that training carries from one step to the next, on the device."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from vrtspike_jax.training.optimizer import packing_form
from vrtspike_jax.training.packing import Groups, Layout, unpack


@flax.struct.dataclass
class TrainState:
    """The state of training.

    Attributes:
        step: optimiser steps taken, skipped ones included; int32. It drives the schedule and the
            random numbers and equals the position in the data.
        packed: float32 parameters, in groups.
        packed_ema: their exponential moving average, or None.
        opt_state: the Optax state, of packed parameters.
        skipped: updates skipped because a loss or gradient was not finite; int32.
        skipped_in_row: how many of them directly precede this step; int32.
        loss_ema: moving average of the finite losses, against which a spike is told; float32.
        loss_spikes: steps whose loss was far above that average; int32.
        layout: where each parameter lies in its group.
    """

    step: jax.Array
    packed: Groups
    packed_ema: Groups | None
    opt_state: Any
    skipped: jax.Array
    skipped_in_row: jax.Array
    loss_ema: jax.Array
    loss_spikes: jax.Array
    layout: Layout = flax.struct.field(pytree_node=False)

    @property
    def params(self) -> Any:
        """The parameters as the model takes them, a copy."""
        return unpack(self.layout, self.packed)

    @property
    def ema_params(self) -> Any:
        """Their moving average in the same form, or None."""
        return None if self.packed_ema is None else unpack(self.layout, self.packed_ema)


def create_state(
    params: Any, tx: optax.GradientTransformation, optim: ml_collections.ConfigDict
) -> TrainState:
    """A state at step 0.

    Args:
        params: float32 parameters.
        tx: from `optimizer.gradient_transformation`.
        optim: `config.optim`; `name`, `flow_modules` and `ema_decay` are read.
    """
    layout = Layout.of(params, optim.flow_modules, packing_form(optim.name))
    packed = layout.pack(params)

    # One array each: arrays that share a buffer cannot be donated together.
    def zero(dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((), dtype)

    return TrainState(
        step=zero(jnp.int32),
        packed=packed,
        packed_ema=jax.tree.map(jnp.array, packed) if optim.ema_decay else None,
        opt_state=tx.init(packed),
        skipped=zero(jnp.int32),
        skipped_in_row=zero(jnp.int32),
        loss_ema=zero(jnp.float32),
        loss_spikes=zero(jnp.int32),
        layout=layout,
    )
