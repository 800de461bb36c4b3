"""Prints how the lean loss and lookup on four devices differ from those on one, as JSON."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from praxis import base_layer, pax_fiddle

from laser_pax.layers import LeanSharedEmbeddingSoftmax

MESHES = ([4, 1, 1], [1, 4, 1], [2, 2, 1], [1, 2, 2], [1, 1, 4])
AXES = ('replica', 'data', 'mdl')
B, T, D, V = 8, 16, 32, 64


def build():
  """The layer as PAX's decoder spreads it."""
  config = pax_fiddle.Config(
    LeanSharedEmbeddingSoftmax,
    name='softmax',
    input_dims=D,
    num_classes=V,
    soft_cap_logits=5.0,
    tokens_per_chunk=8,
    mesh_axis_names=AXES,
    ici_mesh_shape=[1, 1, 1],
  )
  config.weight_split_dims_mapping.wt = ['data', 'mdl']
  config.activation_split_dims_mapping.out = [('replica', 'data'), None, 'mdl']
  config.activation_split_dims_mapping.emb_out_split_dims_mapping = [
    ('replica', 'data'),
    None,
    'mdl',
  ]
  return pax_fiddle.instantiate(config)


def arrays(rows, dtype):
  rng = np.random.default_rng(0)
  inputs = rng.standard_normal((rows, T, D))
  labels = rng.integers(0, V, (rows, T, 1)).astype(np.int32)
  weights = (rng.random((rows, T, 1)) < 0.8).astype(np.float32)
  variables = {
    'params': {
      'logits_ffn': {
        'linear': {'w': rng.standard_normal((D, V)) / 4},
        'bias': {'b': rng.standard_normal(V)},
      }
    }
  }
  as_dtype = lambda x: jnp.asarray(x, dtype)  # noqa: E731
  return jax.tree.map(as_dtype, variables), as_dtype(inputs), labels, weights


def loss(variables, inputs, labels, weights):
  layer = build()
  with base_layer.JaxContext.new_context():
    inputs = inputs + layer.apply(variables, labels[..., 0], method=layer.emb_lookup)
    output = layer.apply(variables, inputs, weights, class_ids=labels)
  return output.avg_xent, output


def run(mesh, rows, dtype):
  """Returns the compiled function, and its results: those of the loss, and gradients."""
  variables, *others = arrays(rows, dtype)
  function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  devices = np.array(jax.devices()[: int(np.prod(mesh))]).reshape(mesh)
  with jax.sharding.Mesh(devices, AXES) as context:

    def place(x, *spec):
      return jax.device_put(x, NamedSharding(context, PartitionSpec(*spec)))

    specs = {'params': {'logits_ffn': {'linear': {'w': ('data', 'mdl')}, 'bias': {'b': ('mdl',)}}}}
    variables = jax.tree.map(lambda x, s: place(x, *s), variables, specs)
    rows_axes = ('replica', 'data') if rows % 4 == 0 else None
    others = [place(x, rows_axes) for x in others]
    compiled = function.lower(variables, *others).compile()
    (_, output), gradients = compiled(variables, *others)
  return compiled, jax.tree.map(np.asarray, (output, gradients))


def errors(found, expected):
  """Differences of the loss, single tokens and gradients, as shares of the greatest."""

  def of(f, e):
    f, e = f.astype(np.float64), e.astype(np.float64)
    return float(np.abs(f - e).max() / np.abs(e).max())

  names = {'avg_xent', 'per_example_xent', 'total_xent', 'accuracy'}
  result = {name: of(found[0][name], expected[0][name]) for name in names}
  pairs = zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True)
  return result | {f'gradient {i}': of(f, e) for i, (f, e) in enumerate(pairs)}


def collectives(text):
  """What the devices send: kind, elements, and whether in the body of a loop."""
  found, in_loop = [], False
  bodies = set(re.findall(r'body=%?([\w.\-]+)', text))
  for line in text.splitlines():
    if line and not line.startswith(' '):
      in_loop = line.split()[0].lstrip('%') in bodies
    match = re.search(r'= \(?\w+\[([\d,]*)\].* (all-\w+|reduce-scatter|collective-permute)\(', line)
    if match:
      elements = int(np.prod([int(n) for n in match[1].split(',') if n]))
      found.append({'kind': match[2], 'elements': elements, 'in_loop': in_loop})
  return found


def main():
  """Computes each mesh, in each dtype."""
  results = {'elements_of_w': D * V}
  one = {dtype: run([1, 1, 1], B, dtype)[1] for dtype in ('float32', 'bfloat16')}
  for mesh in MESHES:
    found = {dtype: run(mesh, B, dtype) for dtype in one}
    argmax = [outputs[0].per_example_argmax for outputs in (found['float32'][1], one['float32'])]
    results[str(mesh)] = {
      'errors': {dtype: errors(found[dtype][1], one[dtype]) for dtype in one},
      'argmax_differs': int((argmax[0] != argmax[1]).sum()),
      'collectives': collectives(found['float32'][0].as_text()),
    }
  uneven = run([2, 2, 1], 3, 'float32')[1], run([1, 1, 1], 3, 'float32')[1]
  results['uneven'] = max(errors(*uneven).values())
  print(json.dumps(results))


if __name__ == '__main__':
  main()
