"""Which layouts and slices to compile an experiment for, when several are compared."""

import dataclasses
from collections.abc import Iterator

import jax
from praxis import layers

from laser_pax.costs import reports
from laser_pax.experiment import layouts, slices
from laser_pax.experiment.base import Experiment

Policy = layers.AutodiffCheckpointType


def candidates(experiment: Experiment) -> list[layouts.Layout]:
  """Returns layouts worth comparing: meshes that jax can lay out, and policies, the rule's last.

  The first is the plain one: all chips along data, nothing kept. Then meshes with what the rule's
  keeps: plain, replicas alone, about as many replicas as each has chips, products split over 4.
  """
  chosen, pod = experiment.layout(), experiment.pod()
  chips = pod.chips_per_slice
  splits = [d for d in range(2, chips) if chips % d == 0 and pod.can_lay_out((chips // d, d, 1))]
  middle = min(splits, key=lambda d: abs(d * d - chips), default=1)
  meshes = [(1, chips, 1), (chips, 1, 1), (chips // middle, middle, 1), (1, chips // 4, 4)]
  pairs = [((1, chips, 1), Policy.SAVE_NOTHING)]
  pairs += [(mesh, chosen.checkpoint_policy) for mesh in meshes if pod.can_lay_out(mesh)]
  pairs.append((chosen.ici_mesh_shape, Policy.SAVE_DOT_EXCEPT_LOGITS))
  others = [
    dataclasses.replace(chosen, ici_mesh_shape=mesh, checkpoint_policy=policy)
    for mesh, policy in pairs
  ]
  return [*(layout for layout in dict.fromkeys(others) if layout != chosen), chosen]


def compile_layouts(experiment: Experiment) -> Iterator[reports.Report]:
  """Yields the train step's report of each of the layouts to compare, the rule's last.

  One whose state alone does not fit a chip is left out, unless it is the rule's.
  """
  limit, chosen = experiment.pod().chip.usable_hbm_bytes, experiment.layout()
  for layout in candidates(experiment):
    if limit and layouts.state_bytes(experiment.sizes(), layout) > limit and layout != chosen:
      continue
    other = type(experiment)()
    vars(other).update(vars(experiment))
    other.use_layout(layout)
    yield reports.report(other, evaluation=False)
    jax.clear_caches()


def slices_of(experiment: Experiment) -> list[str]:
  """Returns the slice that an experiment is planned for, and that of v5e with as many chips."""
  planned = slices.find(experiment.POD)
  known = [slices.find(name) for name in slices.names()]
  return [planned.name] + [
    pod.name
    for pod in known
    if pod.chip.name == 'v5e' and (pod.chips, pod.slices) == (planned.chips, planned.slices)
  ]
