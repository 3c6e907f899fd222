"""The train state: input and output of a training step, and the content of a checkpoint."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from patchnets import prng
from patchnets.models.blocks import stack_blocks, unstack_blocks
from patchnets.parallel import mesh as mesh_lib
from patchnets.parallel import sharding
from patchnets.param_rules import Rules
from patchnets.step.metrics import TrainMetrics

# Initialization runs once, so skip XLA's expensive optimizations. Results are identical.
FAST_COMPILE = {"xla_backend_optimization_level": 1}


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training. Data order and random numbers are functions of `step` and the seed."""

    step: Int32[Array, ""]
    params: Any
    batch_stats: Any  # running statistics of BatchNorm; empty for networks without it
    ema: Any  # running mean of {"params", "batch_stats"}; empty if not used
    opt_state: optax.OptState
    metrics: TrainMetrics  # sums since they were last written, so that a resumed run writes the same figures

    @property
    def eval_variables(self) -> Any:
        """Variables for evaluation: the running mean if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_size: int,
    channels: int,
    seed: int,
    mesh: Mesh,
    init_head_bias: float = 0.0,
    ema: bool = False,
    fsdp_rules: Rules = (),
    initial: Mapping[str, np.ndarray] | None = None,
) -> TrainState:
    """Return the state at step 0, created with its sharding on `mesh`.

    Args:
      image_size: side of the images in pixels.
      init_head_bias: initial biases of the head.
      ema: whether to keep a running mean.
      fsdp_rules: see `sharding.infer_state_sharding`.
      initial: {"params/stem/kernel": value} of variables that do not start at random, of blocks that are not stacked.
    """
    make = functools.partial(_init_state, model, optimizer, image_size, channels, init_head_bias, ema)
    if mesh.shape[mesh_lib.FSDP_AXIS] == 1:
        state_sharding = sharding.replicated(mesh)
    else:
        state_sharding = sharding.infer_state_sharding(jax.eval_shape(make, seed), mesh, fsdp_rules)
    return jax.jit(make, out_shardings=state_sharding, compiler_options=FAST_COMPILE)(seed, initial or {})


def abstract_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_size: int,
    channels: int,
    mesh: Mesh,
    ema: bool = False,
    fsdp_rules: Rules = (),
) -> TrainState:
    """Return a state of jax.ShapeDtypeStruct with shapes, dtypes and shardings, without creating arrays."""
    shapes = jax.eval_shape(functools.partial(_init_state, model, optimizer, image_size, channels, 0.0, ema), 0)
    state_sharding = sharding.infer_state_sharding(shapes, mesh, fsdp_rules)
    return jax.tree.map(
        lambda x, leaf_sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf_sharding), shapes, state_sharding
    )


def _init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    channels: int,
    init_head_bias: float,
    ema: bool,
    seed: Int32[Array, ""],
    initial: Mapping[str, Array] = MappingProxyType({}),
) -> TrainState:
    variables = init_variables(model, prng.key(seed, prng.RngStream.INIT), image_size, channels)
    if init_head_bias:
        params = variables["params"]
        head = params["head"] | {"bias": jnp.full_like(params["head"]["bias"], init_head_bias)}
        variables = variables | {"params": params | {"head": head}}
    if initial:
        flat = traverse_util.flatten_dict(unstack_blocks(variables), sep="/", keep_empty_nodes=True) | dict(initial)
        variables = traverse_util.unflatten_dict(flat, sep="/")
        variables = stack_blocks(variables) if getattr(model, "scan", False) else variables
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        ema={"params": params, "batch_stats": batch_stats} if ema else {},
        opt_state=optimizer.init(params),
        metrics=TrainMetrics.empty(),
    )


def init_variables(model: nn.Module, key: Array, image_size: int, channels: int) -> dict[str, Any]:
    """Return initial {"params", "batch_stats"} of a network for images of `image_size` pixels a side."""
    image = jnp.zeros((1, image_size, image_size, channels), jnp.float32)
    variables = model.init(key, image, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def abstract_params(model: nn.Module, image_size: int, channels: int) -> Any:
    """Return the parameters as jax.ShapeDtypeStruct, without creating arrays."""
    return jax.eval_shape(lambda: init_variables(model, jax.random.key(0), image_size, channels))["params"]
