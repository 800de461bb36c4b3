"""The names of a decoder's weights in an export, and the place of each in PAX's checkpoint.

PAX keeps the layers of a loop in one array, [L, ...]. An export has an array for each layer, in
PAX's own layout: docs/export.md has the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from laser_pax.errors import UserError

if TYPE_CHECKING:
  from laser_pax.experiment.saved_models import Shapes

# PAX's names and an export's, with the letters of the shape: C queries, keys and values, D model,
# F hidden, N heads, H head size, V vocabulary.
_FIRST = {'lm.softmax.logits_ffn.linear.w': ('embedding.w', 'DV')}
_LAYER = {
  'layer_norm.scale': ('attention_norm.scale', 'D'),
  'layer_norm.bias': ('attention_norm.bias', 'D'),
  'self_attention.combined_qkv.w': ('attention.qkv.w', 'CDNH'),
  'self_attention.per_dim_scale.per_dim_scale': ('attention.per_dim_scale', 'H'),
  'self_attention.post.w': ('attention.out.w', 'DNH'),
  'ff_layer.layer_norm.scale': ('mlp_norm.scale', 'D'),
  'ff_layer.layer_norm.bias': ('mlp_norm.bias', 'D'),
  'ff_layer.ffn_layer1.linear.w': ('mlp.up.w', 'DF'),
  'ff_layer.ffn_layer1.bias.b': ('mlp.up.b', 'F'),
  'ff_layer.ffn_layer2.linear.w': ('mlp.down.w', 'FD'),
  'ff_layer.ffn_layer2.bias.b': ('mlp.down.b', 'D'),
}
_LAST = {
  'lm.final_ln.scale': ('final_norm.scale', 'D'),
  'lm.final_ln.bias': ('final_norm.bias', 'D'),
  'lm.softmax.logits_ffn.bias.b': ('embedding.b', 'V'),
}
_LAYER_NAME = re.compile(r'lm\.transformer\.(repeat\.sub\.)?x_layers_(\d+)\.(.+)')
_SHOWN = 3  # Differences that a message lists.


class Place(NamedTuple):
  """Where a checkpoint has a weight of an export.

  Attributes:
    array: Dotted name of PAX's array, below `params`.
    turn: Index along the array's first axis, the turns of the loop; None: the whole array.
  """

  array: str
  turn: int | None


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a model's weights by name, in the order of the model.

  Args:
    config: The contents of config.json.
  """
  sizes = {
    'C': 3,
    'D': config['hidden_size'],
    'F': config['intermediate_size'],
    'N': config['num_attention_heads'],
    'H': config['head_dim'],
    'V': config['vocab_size'],
  }
  layers = range(config['num_hidden_layers'])
  named = [*_FIRST.values()]
  named += [(f'layers.{i}.{name}', axes) for i in layers for name, axes in _LAYER.values()]
  named += [*_LAST.values()]
  return {name: tuple(sizes[axis] for axis in axes) for name, axes in named}


def places(arrays: Shapes) -> dict[str, Place]:
  """Returns the place of each weight, by its name in an export.

  Args:
    arrays: Shapes of a checkpoint's arrays, by PAX's names.

  Raises:
    UserError: An array is none of a `DecoderLM`.
  """
  matches = {array: _LAYER_NAME.fullmatch(array) for array in arrays}
  turning = {match[2] for match in matches.values() if match and match[1]}
  known = {}
  for array, match in matches.items():
    name, _ = _LAYER.get(match[3], ('', '')) if match else (_FIRST | _LAST).get(array, ('', ''))
    if not name:
      raise UserError(f'{array} is no weight of a decoder that export knows; see docs/export.md')
    if not match:
      known[name] = Place(array, None)
    elif not match[1]:
      known[f'layers.{match[2]}.{name}'] = Place(array, None)
    else:  # A turn of the loop has as many layers as there are numbers.
      for turn in range(arrays[array][0]):
        known[f'layers.{turn * len(turning) + int(match[2])}.{name}'] = Place(array, turn)
  return known


def weight_shapes(arrays: Shapes) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each weight that a checkpoint has, by its name in an export.

  Args:
    arrays: Shapes of the checkpoint's arrays, by PAX's names.
  """
  return {
    name: tuple(arrays[place.array][0 if place.turn is None else 1 :])
    for name, place in places(arrays).items()
  }


def check(actual: Shapes, expected: Shapes, where: str) -> None:
  """Checks that there are the weights of a model, and no others.

  Args:
    actual: Shapes of the weights that are there, by name.
    expected: Those of the model.
    where: Where they are, for the message.

  Raises:
    UserError: They differ; the message has the first differences.
  """
  differences = [
    f'{name} is {actual.get(name, "missing")}, not {expected.get(name, "there")}'
    for name in sorted(actual.keys() | expected.keys())
    if actual.get(name) != expected.get(name)
  ]
  if differences:
    more = len(differences) - _SHOWN
    shown = '; '.join(differences[:_SHOWN]) + (f'; and {more} more' if more > 0 else '')
    raise UserError(f'{where} does not have the weights of its model: {shown}')


def count(known: Shapes) -> int:
  """Returns the number of parameters."""
  return sum(math.prod(shape) for shape in known.values())


def by_array(known: Mapping[str, Place]) -> dict[str, dict[int | None, str]]:
  """Returns, for each of PAX's arrays, the names of its weights by turn."""
  arrays: dict[str, dict[int | None, str]] = {}
  for name, place in known.items():
    arrays.setdefault(place.array, {})[place.turn] = name
  return arrays
