"""How an experiment is laid out on the chips it gets: the rule, and its arithmetic.

Of all layouts that fit by the estimate of memory, the rule takes the one with the least estimated
time of a step. What the experiment names itself is kept. docs/pods.md compares both estimates with
the TPU compiler's figures.
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

# What a layer keeps for its backward pass. To the policies a fused kernel is no product, so that on
# a TPU SAVE_DOT_ONLY keeps what SAVE_DOT_WITH_NO_BATCH_DIM does (docs/fused.md).
POLICIES = (Policy.SAVE_DOT_WITH_NO_BATCH_DIM, Policy.SAVE_QKV_OUT_PROJ, Policy.SAVE_NOTHING)

# The share of a chip's memory that the estimate may fill.
FILL = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where and how a step is computed.

  Attributes:
    ici_mesh_shape: [replica, data, mdl] within a slice. Weights are whole on each chip along
      replica, split along data (and gathered for use), split along mdl (and used split).
    dcn_mesh_shape: The same over slices.
    checkpoint_policy: What the layers keep for the backward pass.
    micro_batches: Parts of the batch, computed one after another.
  """

  ici_mesh_shape: tuple[int, int, int]
  dcn_mesh_shape: tuple[int, int, int]
  checkpoint_policy: Policy
  micro_batches: int

  def mesh(self) -> list[int]:
    """Returns [replica, data, mdl] over all slices."""
    return [i * d for i, d in zip(self.ici_mesh_shape, self.dcn_mesh_shape, strict=True)]


class Sizes(Protocol):
  """What the estimates must know of a model, a stack of layers with a head, and of its batch.

  transformer.py has it for stacks of Transformer layers.

  Attributes:
    global_batch_size: Rows of one step.
    seq_len: Positions of one row.
    num_layers: L.
    layers_per_block: Layers whose activations are computed again together: k.
    model_dims: D, which `data` splits.
    activation_bytes: a, of one activation.
  """

  global_batch_size: int
  seq_len: int
  num_layers: int
  layers_per_block: int
  model_dims: int
  activation_bytes: int

  def weights(self) -> int:
    """Returns W, the weights of the model's matrices."""

  def layer_weights(self) -> int:
    """Returns w, the weights of one layer's matrices."""

  def kept(self, policy: Policy) -> int:
    """Returns the activations of a position and layer that are kept for the backward pass."""

  def computed_again(self, policy: Policy) -> int:
    """Returns those that a block's backward pass computes again, of a position and layer."""

  def backward_width(self) -> int:
    """Returns the activations of a position that one layer's backward pass holds, over 4."""

  def head_bytes(self, tokens: int) -> int:
    """Returns the bytes that the loss holds for so many positions of a chip."""

  def step_flops(self, policy: Policy, platform: str) -> int:
    """Returns the operations of one step, what is computed again included."""


def policy(name: str) -> Policy:
  """Returns a checkpoint policy by its name or value, in either case.

  Raises:
    UserError: there is none of that name.
  """
  if isinstance(name, Policy):
    return name
  by_name = {key.lower(): p for p in Policy for key in (p.name, p.value)}
  if found := by_name.get(str(name).lower()):
    return found
  near = difflib.get_close_matches(str(name).lower(), by_name, n=3) or sorted(by_name)
  raise UserError(f'unknown CHECKPOINT_POLICY {name!r}; did you mean {", ".join(near)}?')


def choose(
  sizes: Sizes,
  pod: slices.Slice,
  *,
  ici_mesh_shape: Sequence[int] | None = None,
  dcn_mesh_shape: Sequence[int] | None = None,
  checkpoint_policy: Policy | str | None = None,
  micro_batches: int | None = None,
) -> Layout:
  """Returns the layout with the least estimated time of those that fit.

  Where none fits, it is the one with the least memory; where the chip's memory or rates are not
  known, all chips go along data, nothing is kept, and the batch is not divided.

  Args:
    sizes: Of the model and its batch.
    pod: The chips.
    ici_mesh_shape: Kept, if named, as the next three.
    dcn_mesh_shape: Otherwise slices are replicas.
    checkpoint_policy: See `Layout`.
    micro_batches: See `Layout`.

  Raises:
    UserError: there is no such policy, or a mesh or number of parts is none.
  """
  dcn = tuple(dcn_mesh_shape or (pod.slices, 1, 1))
  for named_mesh in filter(None, (ici_mesh_shape, dcn)):
    checks.check_mesh(named_mesh, {})
  if micro_batches is not None and micro_batches < 1:
    raise UserError(f'MICRO_BATCHES must be at least 1; got {micro_batches}')
  if checkpoint_policy is not None:
    checkpoint_policy = policy(checkpoint_policy)
  chip = pod.chip
  if not (chip.usable_hbm_bytes and chip.peak_bf16_tflops and chip.hbm_gbps and chip.ici_gbps):
    return Layout(
      ici_mesh_shape=tuple(ici_mesh_shape or (1, pod.chips_per_slice, 1)),
      dcn_mesh_shape=dcn,
      checkpoint_policy=checkpoint_policy or Policy.SAVE_NOTHING,
      micro_batches=1 if micro_batches is None else micro_batches,
    )
  named = Layout(
    ici_mesh_shape=tuple(ici_mesh_shape or ()),
    dcn_mesh_shape=dcn,
    checkpoint_policy=checkpoint_policy,
    micro_batches=micro_batches,
  )
  candidates = list(_candidates(sizes, pod, named))
  fitting = [c for c in candidates if fits(sizes, c, pod)]
  if fitting:
    return min(fitting, key=lambda c: (step_seconds(sizes, c, pod), state_bytes(sizes, c)))
  return min(candidates, key=lambda c: peak_bytes(sizes, c))


def fits(sizes: Sizes, layout: Layout, pod: slices.Slice) -> bool:
  """Whether the estimate fills less than FILL of a chip's memory."""
  return peak_bytes(sizes, layout) <= FILL * pod.chip.usable_hbm_bytes


def _candidates(sizes: Sizes, pod: slices.Slice, named: Layout) -> Iterator[Layout]:
  """All layouts that the sizes allow, and that have what is named."""
  chips = pod.chips_per_slice
  data_axes = [d for d in range(1, chips + 1) if chips % d == 0 and sizes.model_dims % d == 0]
  meshes = [(chips // d, d, 1) for d in data_axes if pod.can_lay_out((chips // d, d, 1))]
  if named.ici_mesh_shape:
    meshes = [named.ici_mesh_shape]
  policies = [named.checkpoint_policy] if named.checkpoint_policy else POLICIES
  for mesh, policy in itertools.product(meshes, policies):
    rows = max(1, sizes.global_batch_size * mesh[2] // pod.chips)
    divisors = [k for k in range(1, rows + 1) if rows % k == 0]
    for k in divisors if named.micro_batches is None else [named.micro_batches]:
      yield Layout(
        ici_mesh_shape=mesh,
        dcn_mesh_shape=named.dcn_mesh_shape,
        checkpoint_policy=policy,
        micro_batches=k,
      )


def state_bytes(sizes: Sizes, layout: Layout) -> int:
  """Estimates a chip's state: weights and two moments in float32."""
  _, data, mdl = layout.mesh()
  return 12 * sizes.weights() // (data * mdl)


def peak_bytes(sizes: Sizes, layout: Layout) -> int:
  """Estimates a chip's peak: state, gradients, what layers keep, a layer, and the loss.

  With W weights, w of a layer, d and m the mesh's data and mdl, t positions of a chip's
  micro-batch, a bytes of an activation:

      12 W / (d m)            state
      (4 + a) W / (d m)       gradients, as computed and in float32
      4 a w / m               a layer's weights, gathered before they are used (0 for d = 1)
      t L a kept(policy) / m
      4 a t width / m         what one layer's backward pass holds
      (k - 1) t a again / m   what the other layers of its block computed again
      head(t) / m             the loss

  The model's own terms (kept, width, again, head) are methods of `Sizes`. Against 44 compiled
  layouts of the C4 experiments with k = 1, the estimate was 0.90 to 1.51 of the compiler's figure;
  against three with k > 1, 0.88 to 1.43.
  """
  _, data, mdl = layout.mesh()
  policy, a, t = layout.checkpoint_policy, sizes.activation_bytes, _tokens(sizes, layout)
  gradients = (4 + a) * sizes.weights() // (data * mdl)
  gathered = 4 * a * sizes.layer_weights() // mdl if data > 1 else 0
  layer = 4 * a * t * sizes.backward_width() // mdl
  layer += (sizes.layers_per_block - 1) * t * (a * sizes.computed_again(policy) // mdl)
  head = sizes.head_bytes(t) // mdl
  kept = _kept_bytes(sizes, layout)
  return state_bytes(sizes, layout) + gradients + gathered + kept + layer + head


def _kept_bytes(sizes: Sizes, layout: Layout) -> int:
  """Bytes that a chip keeps for the backward pass of one micro-batch."""
  _, _, mdl = layout.mesh()
  of_a_token = sizes.activation_bytes * sizes.kept(layout.checkpoint_policy) // mdl
  return _tokens(sizes, layout) * sizes.num_layers * of_a_token


def step_seconds(sizes: Sizes, layout: Layout, pod: slices.Slice) -> float:
  """Estimates a step's time: computing, sending and what passes through memory, in turn.

  What is sent is sent for each micro-batch.
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
  """Bytes that a chip sends a weight, to sum gradients and to gather weights, in bfloat16.

  Read off compiled steps. Weights are gathered twice, forward and backward. Gradients are summed so
  that each chip keeps its share, and the shares once more over the replicas. But where all chips of
  a slice lie along data, each chip gets the whole sum; and if they are a three-dimensional torus,
  weights are gathered by adding up zeros, which sends twice as much.
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
  """Bytes of a step that must pass through a chip's memory, the products' own not counted.

  28 a weight that the chip updates (weight and moments read and written, gradient read), and what
  layers keep, written and read again.
  """
  _, data, mdl = layout.mesh()
  update = 28 * sizes.weights() // (data * mdl)
  return update + 2 * layout.micro_batches * _kept_bytes(sizes, layout)


def _tokens(sizes: Sizes, layout: Layout) -> int:
  """Positions of a micro-batch on a chip (on a group of chips, along mdl)."""
  replica, data, _ = layout.mesh()
  return sizes.global_batch_size * sizes.seq_len // (replica * data * layout.micro_batches)
