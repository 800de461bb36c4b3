"""Measures the lean loss beside Praxis's: memory and sending on TPUs, and time on a CPU.

`python -m benchmarks.tpu.lean_loss` prints the two tables of docs/loss.md, in about two minutes.
The figures for TPUs are the TPU compiler's.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from praxis import base_layer, layers, pax_fiddle

from laser_pax import configs
from laser_pax.costs import compiler, hlo, libtpu
from laser_pax.experiment import slices
from laser_pax.layers import LeanSharedEmbeddingSoftmax

_AXES = ('replica', 'data', 'mdl')
_ROWS = ('replica', 'data')
_MIB = 2**20
_KINDS = {'Praxis': layers.SharedEmbeddingSoftmax, 'lean': LeanSharedEmbeddingSoftmax}
# An experiment, and the slice that it is planned for.
_PLANS = (('C4Laser300M', 'v5p-64chips'), ('C4Laser2B', 'v5p-256chips'))
_REPETITIONS = 9


def step(kind: str, model_dims: int, words: int) -> tuple[Callable, dict]:
  """Returns lookup, loss and their gradients, as a function, and the variables' shapes.

  Args:
    kind: 'Praxis', with a one-hot lookup as PAX's decoder has it, or 'lean'.
    model_dims: D.
    words: V.

  Returns:
    A function of variables, inputs [B, T, D], ids, labels and weights [B, T] that returns the loss
    and the gradients of variables and inputs. The lookup's result is added to the inputs.
  """
  config = pax_fiddle.Config(
    _KINDS[kind],
    name='softmax',
    input_dims=model_dims,
    num_classes=words,
    lookup_style='index' if kind == 'lean' else 'matmul',
    soft_cap_logits=30.0,
    scale_sqrt_depth=True,
    mesh_axis_names=_AXES,
  )
  config.weight_split_dims_mapping.wt = ['data', 'mdl']
  config.activation_split_dims_mapping.out = [_ROWS, None, 'mdl']
  config.activation_split_dims_mapping.emb_out_split_dims_mapping = [_ROWS, None, 'mdl']
  layer = pax_fiddle.instantiate(config)

  def loss(variables, inputs, ids, labels, weights):
    with base_layer.JaxContext.new_context():
      layer_input = layer.apply(variables, ids, method='emb_lookup') + inputs
      # It keeps XLA from joining the lookup and the loss, as the layers between them do.
      layer_input = jax.lax.optimization_barrier(layer_input)
      output = layer.apply(variables, layer_input, weights[..., None], class_ids=labels[..., None])
    return output.avg_xent, (output.per_example_xent, output.per_example_argmax)

  def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)

  matrix, bias = shape(model_dims, words), shape(words)
  variables = {'params': {'logits_ffn': {'linear': {'w': matrix}, 'bias': {'b': bias}}}}
  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), variables


def on_slice(kind: str, experiment: str, pod: str) -> dict[str, float]:
  """Compiles an experiment's lookup and loss for a slice, all its chips along data.

  Returns:
    'temporaries' and 'sent', in GiB of a chip.
  """
  plan, chips = getattr(configs, experiment)(), slices.find(pod)
  function, variables = step(kind, plan.MODEL_DIMS, plan.VOCAB_SIZE)
  mesh = Mesh(compiler.device_mesh((1, chips.chips, 1), (1, 1, 1), compiler.devices(chips)), _AXES)

  def placed(shape, dtype, *spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

  rows = plan.GLOBAL_BATCH_SIZE, plan.SEQ_LEN
  integers = placed(rows, jnp.int32, _ROWS)
  arguments = (
    jax.tree.map(lambda x: placed(x.shape, plan.FPROP_DTYPE, 'data'), variables),
    placed((*rows, plan.MODEL_DIMS), plan.FPROP_DTYPE, _ROWS),
    integers,
    integers,
    placed(rows, jnp.float32, _ROWS),
  )
  with mesh:
    compiled = jax.jit(function).lower(*arguments).compile()
  sent = sum(c.sent_bytes for c in hlo.collectives(compiled.as_text(), chips.chips))
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  return {'temporaries': temporaries / 2**30, 'sent': sent / 2**30}


def on_cpu(model_dims: int = 256, words: int = 8_192, rows: int = 8, length: int = 256) -> dict:
  """Runs both forms in turn on this machine's CPU, in float32.

  Returns:
    The median milliseconds and the MiB of temporaries, for each form.
  """
  ids, labels = np.random.default_rng(0).integers(0, words, (2, rows, length)).astype(np.int32)
  inputs, weights = _normal((rows, length, model_dims)), np.ones((rows, length), np.float32)
  runs, memory = {}, {}
  for kind in _KINDS:
    function, shapes = step(kind, model_dims, words)
    variables = jax.tree.map(lambda x: _normal(x.shape) * x.shape[0] ** -0.5, shapes)
    arguments = jax.device_put((variables, inputs, ids, labels, weights))
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    runs[kind] = lambda run=compiled, inputs=arguments: jax.block_until_ready(run(*inputs))
    memory[kind] = compiled.memory_analysis().temp_size_in_bytes / _MIB
  seconds = {kind: [] for kind in runs}
  for _ in range(_REPETITIONS):
    for kind, run in runs.items():
      start = time.perf_counter()
      run()
      seconds[kind].append(time.perf_counter() - start)
  return {kind: (1e3 * statistics.median(s), memory[kind]) for kind, s in seconds.items()}


def _normal(shape: tuple[int, ...]) -> np.ndarray:
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def main() -> None:
  """Prints both tables."""
  libtpu.use()
  print('| lookup and loss | pod | form | temporaries, GiB | sent, GiB |\n|---|---|---|---|---|')
  for experiment, pod in _PLANS:
    for kind in _KINDS:
      gibibytes = on_slice(kind, experiment, pod)
      cells = f'{gibibytes["temporaries"]:.2f} | {gibibytes["sent"]:.2f}'
      print(f'| `{experiment}` | {pod} | {kind} | {cells} |', flush=True)
  costs = on_cpu()
  print('\n| form | CPU, ms | temporaries, MiB |\n|---|---|---|')
  for kind, (milliseconds, memory) in costs.items():
    print(f'| {kind} | {milliseconds:.0f} | {memory:.0f} |')
  print(f'ratio {costs["Praxis"][0] / costs["lean"][0]:.2f}')


if __name__ == '__main__':
  main()
