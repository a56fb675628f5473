"""One step of training: loss, gradients over micro-batches, and the guarded update.

`train_step` is pure; `build_train_step` jits it for a model, an optimiser and a mesh. A benchmark
needs no more than

    step_fn = build_train_step(model, tx, Recipe.from_config(config), mesh, state)
    state, metrics = step_fn(state, batch, fixed)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from vrtspike_jax import compiler
from vrtspike_jax.data.batch import model_inputs
from vrtspike_jax.data.reels import clip_shape
from vrtspike_jax.losses import charbonnier, perceptual_loss
from vrtspike_jax.models import stored
from vrtspike_jax.scenes.expose_jax import ClipShape, Pick, expose_reels
from vrtspike_jax.training import optimizer
from vrtspike_jax.training.packing import Groups, Layout, is_below
from vrtspike_jax.training.sharding import replicated, state_shardings
from vrtspike_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a training step does, as plain hashable values. Fields are those of the config."""

    seed: int
    num_steps: int
    learning_rate: float
    warmup_steps: int
    flow_modules: tuple[str, ...]
    flow_lr_scale: float
    freeze_flow_steps: int
    ema_decay: float
    loss_spike_factor: float
    charbonnier_weight: float
    charbonnier_delta: float
    vgg_weight: float
    vgg_layers: tuple[str, ...]
    vgg_dtype: str
    voxel_log: bool
    voxel_mean: float
    voxel_std: float
    clip_shape: ClipShape | None

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Recipe":
        """Picks the fields out of a whole config."""
        optim, loss, data, voxel = config.optim, config.loss, config.data, config.data.voxel
        on_device = data.source == "scenes" and data.scenes.on_device
        return cls(
            seed=config.seed,
            num_steps=config.num_steps,
            learning_rate=optim.learning_rate,
            warmup_steps=optim.warmup_steps,
            flow_modules=tuple(optim.flow_modules),
            flow_lr_scale=optim.flow_lr_scale,
            freeze_flow_steps=optim.freeze_flow_steps,
            ema_decay=optim.ema_decay,
            loss_spike_factor=optim.loss_spike_factor,
            charbonnier_weight=loss.charbonnier_weight,
            charbonnier_delta=loss.charbonnier_delta,
            vgg_weight=loss.vgg_weight,
            vgg_layers=tuple(loss.vgg_layers),
            vgg_dtype=loss.vgg_dtype,
            voxel_log=voxel.log,
            voxel_mean=voxel.mean,
            voxel_std=voxel.std,
            clip_shape=clip_shape(data) if on_device else None,
        )


def apply_model(
    model: nn.Module, params: Any, frames: jax.Array, voxels: jax.Array, **kwargs: Any
) -> jax.Array:
    """Calls a model with or without a spike branch.

    Args:
        model: takes (frames, voxels) if it has a field `spike_bins`, else frames alone.
        params: its parameters.
        frames: (B, T, H, W, 3), 0..1.
        voxels: (B, T, Hs, Ws, K).
        **kwargs: `train`, `rngs`, ...

    Returns:
        The restored frames, (B, T, H, W, 3), float32.
    """
    inputs = (frames, voxels) if hasattr(model, "spike_bins") else (frames,)
    return model.apply({"params": params}, *inputs, **kwargs)


def loss_fn(
    params: Any, batch: Batch, fixed: Any, key: jax.Array, *, model: nn.Module, recipe: Recipe
) -> tuple[jax.Array, Metrics]:
    """The training loss of one micro-batch.

    Args:
        params: the model's parameters, or what `models.stored` made of them.
        batch: `blur`, `sharp` uint8 (B, T, H, W, 3), `spikes` uint8 counts (B, T, Hs, Ws, K); or
            the fields of a `Pick`, where they are.
        fixed: `vgg` when the recipe has a perceptual part, `reels` when batches are picks.
        key: random key of dropout and stochastic depth.
        model: the network.
        recipe: the weights of the losses.

    Returns:
        The scalar loss, and `charbonnier`, `perceptual`, `psnr` (dB, mean over clips; scalars) and
        `clip_loss` (B,).
    """
    if "reel" in batch:
        picks = Pick(**{name: batch[name] for name in Pick._fields})
        batch = expose_reels(fixed["reels"], picks, recipe.clip_shape)
    frames, voxels, sharp = model_inputs(
        batch, log=recipe.voxel_log, mean=recipe.voxel_mean, std=recipe.voxel_std
    )
    if recipe.freeze_flow_steps < 0:
        # Frozen for good: spare the backward pass through the flow network altogether.
        flow = jax.tree.unflatten(jax.tree.structure(params), is_below(params, recipe.flow_modules))
        params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, flow)
    restored = apply_model(model, params, frames, voxels, train=True, rngs={"dropout": key})
    image_axes = tuple(range(1, restored.ndim))
    clip_loss = charbonnier(restored, sharp, recipe.charbonnier_delta, axis=image_axes)
    error = jnp.mean(jnp.square(jnp.clip(restored, 0, 1) - sharp), axis=image_axes)
    parts = {
        "charbonnier": jnp.mean(clip_loss),
        "perceptual": jnp.float32(0),
        "psnr": jnp.mean(-10 * jnp.log10(jnp.maximum(error, 1e-10))),
        "clip_loss": clip_loss,
    }
    loss = recipe.charbonnier_weight * parts["charbonnier"]
    if recipe.vgg_weight:
        dtype = jnp.dtype(recipe.vgg_dtype)
        parts["perceptual"] = perceptual_loss(
            fixed["vgg"], restored, sharp, recipe.vgg_layers, dtype
        )
        loss += recipe.vgg_weight * parts["perceptual"]
    return loss, parts


def accumulate(
    packed: Groups,
    layout: Layout,
    batch: Batch,
    fixed: Any,
    key: jax.Array,
    *,
    model: nn.Module,
    recipe: Recipe,
) -> tuple[Groups, jax.Array, Metrics]:
    """Mean gradient and loss over the leading axis of `batch` (A micro-batches, one at a time).

    Equals the gradient of one batch of A * B clips, in the memory of B.

    Returns:
        The packed gradients; the loss; the parts, `clip_loss` as (A, B), `grad_finite` as (A,).
    """
    # As they are used, once for all uses: the backward pass would convert and cut them again.
    params = layout.unpack(packed, apart=stored.unrolls(model))
    params = stored.in_compute_dtype(params, stored.compute_dtype(model))
    grad_fn = jax.value_and_grad(
        functools.partial(loss_fn, model=model, recipe=recipe), has_aux=True
    )

    def one(micro: Batch, number: jax.Array | int) -> tuple[Groups, jax.Array, Metrics]:
        (loss, parts), grads = grad_fn(params, micro, fixed, jax.random.fold_in(key, number))
        grads = layout.pack(grads)
        parts["grad_finite"] = jnp.isfinite(optax.tree.norm(grads))
        return grads, loss, parts

    count = batch["index"].shape[0]
    if count == 1:
        # Without a scan: one buffer less, and a smaller program to compile.
        grads, loss, parts = one({name: x[0] for name, x in batch.items()}, 0)
        return (
            grads,
            loss,
            {**parts, "clip_loss": parts["clip_loss"][None]}
            | {"grad_finite": parts["grad_finite"][None]},
        )

    def body(total: Any, micro: tuple[Batch, jax.Array]) -> tuple[Any, tuple[jax.Array, Metrics]]:
        grads, loss, parts = one(*micro)
        return jax.tree.map(jnp.add, total, grads), (loss, parts)

    zeros = jax.tree.map(jnp.zeros_like, packed)
    total, (losses, parts) = jax.lax.scan(body, zeros, (dict(batch), jnp.arange(count)))
    for name in ("charbonnier", "perceptual", "psnr"):
        parts[name] = jnp.mean(parts[name])
    return jax.tree.map(lambda g: g / count, total), jnp.mean(losses), parts


def train_step(
    state: TrainState,
    batch: Batch,
    fixed: Any,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    recipe: Recipe,
) -> tuple[TrainState, Metrics]:
    """One optimiser step. A non-finite loss or gradient leaves everything but the counters alone.

    Args:
        state: the state before.
        batch: `index`, and `blur`, `sharp`, `spikes` or picks, each with the leading axes (A, B).
        fixed: constants of the loss (VGG) and the bank of reels.
        model: the network.
        tx: from `optimizer.gradient_transformation`.
        recipe: the rest of the config.

    Returns:
        The state after, and metrics: the scalars `loss`, `charbonnier`, `perceptual`, `psnr`,
        `learning_rate`, `grad_norm`, `skipped` (bool), `skipped_in_row`, `loss_spike` (bool), and
        `index`, `clip_finite` (A, B) that tell which clips were at fault.
    """
    # "rbg" compiles ten times faster on CPU than the default; it is the same under any sharding.
    key = jax.random.fold_in(jax.random.key(recipe.seed, impl="rbg"), state.step)
    old = state.packed
    grads, loss, parts = accumulate(
        old, state.layout, batch, fixed, key, model=model, recipe=recipe
    )
    flow = optimizer.flow_factor(state.step, recipe.flow_lr_scale, recipe.freeze_flow_steps)
    rate = optimizer.learning_rate_schedule(
        recipe.learning_rate, recipe.num_steps, recipe.warmup_steps
    )(state.step)
    grads = optimizer.hold_frozen(grads, flow)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    direction, opt_state = tx.update(grads, state.opt_state, old)
    new = optimizer.apply_direction(old, direction, rate, flow)
    new, opt_state = _choose(finite, (new, opt_state), (old, state.opt_state))
    new_state, spike = _count(state, loss, finite, recipe)
    new_state = new_state.replace(
        packed=new,
        opt_state=opt_state,
        packed_ema=_average(state, new, finite, recipe),
    )
    metrics = {
        "loss": loss,
        "learning_rate": rate,
        "grad_norm": grad_norm,
        "skipped": ~finite,
        "skipped_in_row": new_state.skipped_in_row,
        "loss_spike": spike,
        "index": batch["index"],
        "clip_finite": _innocent(parts.pop("clip_loss"), parts.pop("grad_finite")),
    }
    return new_state, metrics | parts


def _innocent(clip_loss: jax.Array, grad_finite: jax.Array) -> jax.Array:
    """(A, B) bool: False for clips whose own loss is not finite, and for all of a micro-batch
    whose losses are finite but whose gradient is not."""
    loss_finite = jnp.isfinite(clip_loss)
    explained = ~jnp.all(loss_finite, axis=1)
    return loss_finite & (grad_finite | explained)[:, None]


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _average(state: TrainState, new: Groups, finite: jax.Array, recipe: Recipe) -> Groups | None:
    """The moving average after this step; None stays None."""
    if state.packed_ema is None:
        return None
    count = (state.step - state.skipped).astype(jnp.float32)
    # Early on a long average would remember little but the initial values.
    decay = jnp.where(finite, jnp.minimum(recipe.ema_decay, (1 + count) / (10 + count)), 1.0)
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state.packed_ema, new)


def _count(
    state: TrainState, loss: jax.Array, finite: jax.Array, recipe: Recipe
) -> tuple[TrainState, jax.Array]:
    """The counters after this step, and whether its loss was a spike."""
    spike = finite & (state.step >= 50) & (loss > recipe.loss_spike_factor * state.loss_ema)
    average = jnp.where(state.loss_ema == 0, loss, 0.98 * state.loss_ema + 0.02 * loss)
    counted = state.replace(
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        loss_ema=jnp.where(finite, average, state.loss_ema),
        loss_spikes=state.loss_spikes + spike,
    )
    return counted, spike


def build_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    recipe: Recipe,
    mesh: Mesh,
    state: TrainState,
) -> Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]:
    """`train_step` jitted for a mesh; the state passed to it is donated.

    Args:
        model: the network.
        tx: from `optimizer.gradient_transformation`.
        recipe: from `Recipe.from_config`.
        mesh: from `sharding.make_mesh`. Batches must have been placed by `sharding.put_batch` with
            `leading=1`.
        state: a state, or its shapes, for the shardings of the result.

    Returns:
        (state, batch, fixed) -> (state, metrics); metrics are whole on every device.
    """
    step = functools.partial(train_step, model=model, tx=tx, recipe=recipe)
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(state_shardings(state, mesh), replicated(mesh)),
        compiler_options=compiler.options(),
    )
