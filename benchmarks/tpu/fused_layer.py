"""Counts the cost of fused attention beside the plain path, by the TPU's compiler.

`python -m benchmarks.tpu.fused_layer` compiles one layer as wide as the 2B's with each attention,
for one chip. It writes docs/fused.md's table.
"""

import dataclasses
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from praxis import base_hyperparams, base_layer, pax_fiddle
from praxis.layers import attentions, transformers

from benchmarks import page
from laser_pax import configs, layers
from laser_pax.costs import compiler, libtpu
from laser_pax.experiment import slices

TOKENS = (1_024, 8_192, 32_768)
CHIPS = ('v5p', 'v5e')
ATTENTIONS = (
  attentions.DotProductAttention,
  layers.LaserDotProductAttention,
  layers.FusedDotProductAttention,
  layers.LaserFusedDotProductAttention,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """A layer's forward and backward pass over one sequence, compiled for one chip.

  Attributes:
    attention: The class of its attention.
    chip: The kind of chip.
    tokens: T.
    temporary_bytes: The memory beside weights, input and gradients; None where the compiler gave
      up, because the pass does not fit.
    fits: Whether the peak is within the chip's memory.
    accessed_bytes: XLA's count of bytes accessed; a kernel counts its inputs and outputs.
  """

  attention: str
  chip: str
  tokens: int
  temporary_bytes: int | None
  fits: bool
  accessed_bytes: float | None


def layer_cost(attention: type, chip: str, tokens: int) -> Cost:
  """Compiles a layer for one chip and returns its cost; see `trace_layer`."""
  step = compiler.compile_step(trace_layer(attention, chip, tokens))
  limit = slices.find(f'{chip}-4chips').chip.usable_hbm_bytes
  return Cost(
    attention=attention.__name__,
    chip=chip,
    tokens=tokens,
    temporary_bytes=step.temporary_bytes,
    fits=step.temporary_bytes is not None and step.peak_bytes <= limit,
    accessed_bytes=step.xla_bytes,
  )


def trace_layer(attention: type, chip: str, tokens: int) -> compiler.Traced:
  """Traces a layer of C4Standard2B's sizes, in bfloat16, for one chip.

  Args:
    attention: One of `ATTENTIONS`.
    chip: A chip of configs/pods.
    tokens: The length of the one sequence, causal and packed.

  Returns:
    Its forward and backward pass. `libtpu.use` must have been called.
  """
  pod = slices.find(f'{chip}-4chips')
  mesh = Mesh(np.array(compiler.devices(pod)[:1]).reshape(1, 1, 1), ('replica', 'data', 'mdl'))
  layer = base_hyperparams.instantiate(_layer_config(attention))
  is_fused = issubclass(attention, layers.FusedMixin)

  def loss(variables, x, segment_ids, cotangent):
    mask = layers.Segments(segment_ids, is_causal=True)
    mask = mask if is_fused else mask.dense(x.dtype)
    output, _ = layer.apply(variables, x, jnp.zeros(x.shape[:2], x.dtype), mask)
    return (output * cotangent).sum(dtype=jnp.float32)

  def placed(shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

  hparams = base_layer.JaxContext.HParams(do_eval=True)
  with base_layer.JaxContext.new_context(hparams=hparams), mesh:
    short = jnp.zeros((1, 128, layer.input_dims), jnp.bfloat16), jnp.zeros((1, 128), jnp.bfloat16)
    mask = jnp.zeros((1, 1, 128, 128), jnp.bfloat16)
    shapes = jax.eval_shape(layer.init, jax.random.PRNGKey(0), *short, mask)
    variables = jax.tree.map(lambda v: placed(v.shape), shapes)
    x, segment_ids = placed((1, tokens, layer.input_dims)), placed((1, tokens), jnp.int32)
    jitted = jax.jit(jax.grad(loss, (0, 1))).trace(variables, x, segment_ids, x)
  return compiler.Traced(jitted=jitted, mesh=mesh, parameters=0, seconds=0.0)


def _layer_config(attention: type) -> pax_fiddle.Config[transformers.Transformer]:
  """Returns the config of a layer as the experiment's stack makes it."""
  experiment = configs.C4Standard2B().on('cpu')
  stack = experiment.task().model.lm_tpl.stacked_transformer_tpl.block
  config = stack.transformer_layer_params_tpl.clone().set(
    name='layer',
    fprop_dtype=jnp.bfloat16,
    input_dims=experiment.MODEL_DIMS,
    hidden_dims=experiment.HIDDEN_DIMS,
    num_heads=experiment.num_heads(),
    dim_per_head=experiment.DIMS_PER_HEAD,
  )
  pax_fiddle.update_callable(config.tr_atten_tpl, attention)
  return config


def costs() -> Iterator[Cost]:
  """Yields the cost of a layer with each attention on each chip, in some minutes."""
  for chip in CHIPS:
    for tokens in TOKENS:
      for attention in ATTENTIONS:
        yield layer_cost(attention, chip, tokens)
        jax.clear_caches()


def main() -> None:
  """Writes docs/fused.md's table, and docs/results/fused.jsonl."""
  libtpu.use()
  measured = []
  with open(page.RESULTS / 'fused.jsonl', 'w') as kept:
    for cost in costs():
      kept.write(json.dumps(dataclasses.asdict(cost)) + '\n')
      print(cost, flush=True)
      measured.append(cost)
  page.replace('fused', _table(measured), page.DOCS / 'fused.md')


def _table(measured: list[Cost]) -> str:
  rows = (
    [chip, f'{tokens:,}', *(_cell(c) for c in measured if (c.chip, c.tokens) == (chip, tokens))]
    for chip in CHIPS
    for tokens in TOKENS
  )
  return page.rows(['chip', 'tokens', *(f'`{cls.__name__}`' for cls in ATTENTIONS)], rows)


def _cell(cost: Cost) -> str:
  if cost.temporary_bytes is None:
    return 'does not fit'
  temporaries, accessed = cost.temporary_bytes / 2**30, cost.accessed_bytes / 2**30
  return f'{temporaries:.3f} GiB, {accessed:.2f} GiB'


if __name__ == '__main__':
  main()
