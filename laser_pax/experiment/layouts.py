"""The rule that lays an experiment out on its chips, and the arithmetic of the rule.

The rule keeps the layouts whose estimated memory fits a chip. From these it takes the one with the
least estimated time of a step. Attributes that the experiment sets itself stay as they are.
docs/pods.md compares both estimates with the TPU compiler's figures.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

from praxis import layers

from laser_pax.errors import UserError
from laser_pax.experiment import checks, slices

Policy = layers.AutodiffCheckpointType

# The rule chooses among these policies. SAVE_DOT_ONLY is not one of them: it differs from
# SAVE_DOT_WITH_NO_BATCH_DIM only in keeping the attention's products. On a TPU these are inside a
# fused kernel, which policies do not see, so both keep the same (docs/fused.md).
POLICIES = (Policy.SAVE_DOT_WITH_NO_BATCH_DIM, Policy.SAVE_QKV_OUT_PROJ, Policy.SAVE_NOTHING)

# The share of a chip's memory that the estimate may fill.
FILL = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where and how a step is computed.

  Attributes:
    ici_mesh_shape: The mesh [replica, data, mdl] within a slice. Along replica each chip holds all
      weights. Along data the weights are split, and gathered before use. Along mdl they are split,
      and used without gathering.
    dcn_mesh_shape: The mesh over slices, in the same order.
    checkpoint_policy: The activations that layers keep for the backward pass.
    micro_batches: Number of parts of the batch. The parts are computed one after another.
  """

  ici_mesh_shape: tuple[int, int, int]
  dcn_mesh_shape: tuple[int, int, int]
  checkpoint_policy: Policy
  micro_batches: int

  def mesh(self) -> list[int]:
    """Returns [replica, data, mdl] over all slices."""
    return [i * d for i, d in zip(self.ici_mesh_shape, self.dcn_mesh_shape, strict=True)]


class Sizes(Protocol):
  """The sizes that the estimates need: of a model, a stack of layers with a head, and its batch.

  transformer.py implements this protocol for stacks of Transformer layers.

  Attributes:
    global_batch_size: Rows of one step.
    seq_len: Positions of one row.
    num_layers: L, the number of layers.
    layers_per_block: k, the layers whose activations are computed again together.
    model_dims: D, the width of the model. The axis data splits it.
    activation_bytes: a, the bytes of one activation.
  """

  global_batch_size: int
  seq_len: int
  num_layers: int
  layers_per_block: int
  model_dims: int
  activation_bytes: int

  def weights(self) -> int:
    """Returns W, the number of weights of all matrices."""

  def layer_weights(self) -> int:
    """Returns w, the number of weights of one layer's matrices."""

  def kept_activations(self, policy: Policy) -> int:
    """Returns how many activations are kept for the backward pass, per position and layer."""

  def recomputed_activations(self, policy: Policy) -> int:
    """Returns how many activations a block's backward pass recomputes, per position and layer."""

  def backward_width(self) -> int:
    """Returns the width w: a layer's backward pass holds 4 w activations per position."""

  def head_bytes(self, tokens: int) -> int:
    """Returns the bytes that the loss holds on a chip with `tokens` positions."""

  def step_flops(self, policy: Policy, platform: str) -> int:
    """Returns the operations of one step, including those that are computed again."""


def find_policy(name: Policy | str) -> Policy:
  """Returns a checkpoint policy.

  Args:
    name: A policy, or the name or value of one, in upper or lower case.

  Raises:
    UserError: No policy has that name.
  """
  if isinstance(name, Policy):
    return name
  policies = {key.lower(): p for p in Policy for key in (p.name, p.value)}
  key = str(name).lower()
  if key in policies:
    return policies[key]
  suggestions = difflib.get_close_matches(key, policies, n=3) or sorted(policies)
  raise UserError(f'unknown CHECKPOINT_POLICY {name!r}; did you mean {", ".join(suggestions)}?')


def choose(
  sizes: Sizes,
  pod: slices.Slice,
  *,
  ici_mesh_shape: Sequence[int] | None = None,
  dcn_mesh_shape: Sequence[int] | None = None,
  checkpoint_policy: Policy | str | None = None,
  micro_batches: int | None = None,
) -> Layout:
  """Returns the layout that has the least estimated time among those that fit.

  If no layout fits, the result is the one with the least estimated memory. If the chip's memory or
  rates are not known, all chips go along data, nothing is kept, and the batch is not divided.

  The last four arguments are attributes of `Layout`. Those that are given stay as they are, and the
  rule chooses the others.

  Args:
    sizes: Sizes of the model and its batch.
    pod: The chips.
    ici_mesh_shape: The mesh within a slice.
    dcn_mesh_shape: The mesh over slices. Without one, slices are replicas.
    checkpoint_policy: A policy, or its name.
    micro_batches: Number of parts of the batch.

  Raises:
    UserError: There is no such policy, or a mesh or number of parts is not valid.
  """
  dcn = tuple(dcn_mesh_shape or (pod.slices, 1, 1))
  for mesh in filter(None, (ici_mesh_shape, dcn)):
    checks.check_mesh(mesh, {})
  if micro_batches is not None and micro_batches < 1:
    raise UserError(f'MICRO_BATCHES must be at least 1; got {micro_batches}')
  if checkpoint_policy is not None:
    checkpoint_policy = find_policy(checkpoint_policy)
  requested = Layout(
    ici_mesh_shape=tuple(ici_mesh_shape or ()),
    dcn_mesh_shape=dcn,
    checkpoint_policy=checkpoint_policy,
    micro_batches=micro_batches,
  )
  chip = pod.chip
  if not (chip.usable_hbm_bytes and chip.peak_bf16_tflops and chip.hbm_gbps and chip.ici_gbps):
    return _plain_layout(pod, requested)
  candidates = list(_candidates(sizes, pod, requested))
  fitting = [c for c in candidates if fits(sizes, c, pod)]
  if fitting:
    return min(fitting, key=lambda c: (step_seconds(sizes, c, pod), state_bytes(sizes, c)))
  return min(candidates, key=lambda c: peak_bytes(sizes, c))


def fits(sizes: Sizes, layout: Layout, pod: slices.Slice) -> bool:
  """Returns whether the estimated peak is at most the share FILL of a chip's memory."""
  return peak_bytes(sizes, layout) <= FILL * pod.chip.usable_hbm_bytes


def _plain_layout(pod: slices.Slice, requested: Layout) -> Layout:
  """Returns the requested attributes, with a fixed value for each that is not set."""
  return Layout(
    ici_mesh_shape=requested.ici_mesh_shape or (1, pod.chips_per_slice, 1),
    dcn_mesh_shape=requested.dcn_mesh_shape,
    checkpoint_policy=requested.checkpoint_policy or Policy.SAVE_NOTHING,
    micro_batches=1 if requested.micro_batches is None else requested.micro_batches,
  )


def _candidates(sizes: Sizes, pod: slices.Slice, requested: Layout) -> Iterator[Layout]:
  """Yields all layouts that the sizes allow and that have the requested attributes."""
  chips = pod.chips_per_slice
  data_axes = [d for d in range(1, chips + 1) if chips % d == 0 and sizes.model_dims % d == 0]
  meshes = [(chips // d, d, 1) for d in data_axes if pod.can_lay_out((chips // d, d, 1))]
  if requested.ici_mesh_shape:
    meshes = [requested.ici_mesh_shape]
  policies = [requested.checkpoint_policy] if requested.checkpoint_policy else POLICIES
  for mesh, policy in itertools.product(meshes, policies):
    # Positions are split over replica and data alone: the chips along mdl share rows.
    rows = max(1, sizes.global_batch_size * mesh[2] // pod.chips)
    divisors = [parts for parts in range(1, rows + 1) if rows % parts == 0]
    for parts in divisors if requested.micro_batches is None else [requested.micro_batches]:
      yield Layout(
        ici_mesh_shape=mesh,
        dcn_mesh_shape=requested.dcn_mesh_shape,
        checkpoint_policy=policy,
        micro_batches=parts,
      )


def state_bytes(sizes: Sizes, layout: Layout) -> int:
  """Returns the estimated bytes of a chip's state: weights and two moments in float32."""
  _, data, mdl = layout.mesh()
  return 12 * sizes.weights() // (data * mdl)


def peak_bytes(sizes: Sizes, layout: Layout) -> int:
  """Returns the estimated peak of a chip's memory, in bytes.

  W is the number of weights and w that of one layer. d and m are the mesh's data and mdl. A chip's
  micro-batch has t positions, and an activation a bytes. The peak is the sum of:

      12 W / (d m)                state
      (4 + a) W / (d m)           gradients, as computed and in float32
      4 a w / m                   one layer's weights, gathered before use (0 for d = 1)
      t L a kept / m              activations that all layers keep
      4 a t width / m             activations that one layer's backward pass holds
      (k - 1) t a recomputed / m  activations that its block's other layers computed again
      head(t) / m                 the loss

  Methods of `Sizes` give the model's own terms: kept, width, recomputed and head. The estimate was
  0.90 to 1.51 of the compiler's figure in 44 layouts of the C4 experiments with k = 1. In three
  layouts with k > 1 it was 0.88 to 1.43.
  """
  _, data, mdl = layout.mesh()
  policy, a, t = layout.checkpoint_policy, sizes.activation_bytes, _tokens(sizes, layout)
  gradients = (4 + a) * sizes.weights() // (data * mdl)
  gathered = 4 * a * sizes.layer_weights() // mdl if data > 1 else 0
  layer = 4 * a * t * sizes.backward_width() // mdl
  layer += (sizes.layers_per_block - 1) * t * (a * sizes.recomputed_activations(policy) // mdl)
  head = sizes.head_bytes(t) // mdl
  kept = _kept_bytes(sizes, layout)
  return state_bytes(sizes, layout) + gradients + gathered + kept + layer + head


def _kept_bytes(sizes: Sizes, layout: Layout) -> int:
  """Returns the bytes that a chip keeps for the backward pass of one micro-batch."""
  _, _, mdl = layout.mesh()
  activations = sizes.kept_activations(layout.checkpoint_policy)
  bytes_per_token = sizes.activation_bytes * activations // mdl
  return _tokens(sizes, layout) * sizes.num_layers * bytes_per_token


def step_seconds(sizes: Sizes, layout: Layout, pod: slices.Slice) -> float:
  """Returns the estimated seconds of one step.

  They are the sum of the times of computing, of sending between chips, and of memory traffic. Each
  micro-batch sends anew.
  """
  mdl = layout.mesh()[2]
  flops = sizes.step_flops(layout.checkpoint_policy, pod.chip.platform)
  compute = flops / (pod.chips * pod.chip.peak_bf16_tflops * 1e12)
  sent = _sent_per_weight(layout, pod) * sizes.weights() / mdl
  if mdl > 1:
    sent += 16 * sizes.num_layers * sizes.model_dims * _tokens(sizes, layout)
  moved = memory_traffic(sizes, layout) / (pod.chip.hbm_gbps * 1e9)
  return compute + layout.micro_batches * sent / (pod.chip.ici_gbps * 1e9) + moved


def _sent_per_weight(layout: Layout, pod: slices.Slice) -> float:
  """Returns the bytes that a chip sends per weight, in bfloat16.

  The numbers were read off compiled steps. Weights are gathered twice, forward and backward.
  Gradients are summed over data, where each chip keeps its share, and then over the replicas.

  Slices whose chips all lie along data differ in two ways. Each chip gets the whole sum of the
  gradients. On a three-dimensional torus the compiler gathers weights by adding zeros, which sends
  twice as much.
  """
  replica, data, _ = layout.ici_mesh_shape
  if data == 1:
    return 4.0
  gathering = 4 * (data - 1) / data
  if data < pod.chips_per_slice:
    return gathering + 2 * (data - 1) / data + 4 * (replica - 1) / replica / data
  axes = [n for n in (pod.topology or '').split('x') if n not in ('', '1')]
  return (2 * gathering if len(axes) == 3 else gathering) + 4


def memory_traffic(sizes: Sizes, layout: Layout) -> int:
  """Returns the bytes of a step that pass through a chip's memory outside matrix products.

  A chip moves 28 bytes for each weight that it updates: weight and moments are read and written,
  and the gradient is read. The activations that layers keep are written once and read once.
  """
  _, data, mdl = layout.mesh()
  update = 28 * sizes.weights() // (data * mdl)
  return update + 2 * layout.micro_batches * _kept_bytes(sizes, layout)


def _tokens(sizes: Sizes, layout: Layout) -> int:
  """Returns the positions of a micro-batch per chip; the chips along mdl share theirs."""
  replica, data, _ = layout.mesh()
  return sizes.global_batch_size * sizes.seq_len // (replica * data * layout.micro_batches)
