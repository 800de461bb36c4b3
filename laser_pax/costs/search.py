"""The layouts and slices that a comparison compiles an experiment for."""

import dataclasses
from collections.abc import Iterator

import jax
from praxis import layers

from laser_pax.costs import reports
from laser_pax.experiment import layouts, slices
from laser_pax.experiment.base import Experiment

Policy = layers.AutodiffCheckpointType


def candidates(experiment: Experiment) -> list[layouts.Layout]:
  """Returns the layouts to compare. The layout of the rule is the last.

  The first is the plain one: all chips along data, and no activation kept. Then come meshes with
  the rule's policy: all chips along data, all along replica, both about equal, and mdl = 4. The
  rule's mesh with SAVE_DOT_EXCEPT_LOGITS follows. Meshes that jax cannot lay out are left out.
  """
  chosen, pod = experiment.layout(), experiment.pod()
  chips = pod.chips_per_slice
  data_sizes = [
    d for d in range(2, chips) if chips % d == 0 and pod.can_lay_out((chips // d, d, 1))
  ]
  middle = min(data_sizes, key=lambda d: abs(d * d - chips), default=1)
  meshes = [(1, chips, 1), (chips, 1, 1), (chips // middle, middle, 1), (1, chips // 4, 4)]
  pairs = [((1, chips, 1), Policy.SAVE_NOTHING)]
  pairs += [(mesh, chosen.checkpoint_policy) for mesh in meshes if pod.can_lay_out(mesh)]
  pairs.append((chosen.ici_mesh_shape, Policy.SAVE_DOT_EXCEPT_LOGITS))
  compared = [
    dataclasses.replace(chosen, ici_mesh_shape=mesh, checkpoint_policy=policy)
    for mesh, policy in pairs
  ]
  return [*(layout for layout in dict.fromkeys(compared) if layout != chosen), chosen]


def compile_layouts(experiment: Experiment) -> Iterator[reports.Report]:
  """Yields a report on the train step of each layout to compare. The rule's layout is the last.

  Layouts whose state alone does not fit a chip are left out, except the rule's.
  """
  limit, chosen = experiment.pod().chip.usable_hbm_bytes, experiment.layout()
  for layout in candidates(experiment):
    if limit and layouts.state_bytes(experiment.sizes(), layout) > limit and layout != chosen:
      continue
    variant = type(experiment)()
    vars(variant).update(vars(experiment))
    variant.use_layout(layout)
    yield reports.report(variant, evaluation=False)
    jax.clear_caches()


def slices_to_compare(experiment: Experiment) -> list[str]:
  """Returns the slice that an experiment is planned for, and the v5e slice of as many chips."""
  planned = slices.find(experiment.POD)
  known = [slices.find(name) for name in slices.names()]
  return [planned.name] + [
    pod.name
    for pod in known
    if pod.chip.name == 'v5e' and (pod.chips, pod.slices) == (planned.chips, planned.slices)
  ]
