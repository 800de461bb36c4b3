"""The devices that a function is traced for: their mesh, platform and shardings.

What jax names differently from 0.5.3 to the newest stands here alone.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Axes = tuple[str, ...]


def current_mesh() -> Mesh | AbstractMesh | None:
  """Returns the mesh in context, if there is one.

  `with mesh:` puts a Mesh there. `with jax.set_mesh(mesh):` of later versions puts an AbstractMesh
  there, which knows sizes and platform, but no devices.
  """
  resources = _thread_resources()
  mesh = resources.env.physical_mesh if resources else None
  if mesh is None or mesh.empty:
    mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty else mesh


@functools.cache
def _thread_resources() -> Any:
  """Returns what knows a mesh of `with mesh:`, or None where jax no longer has that.

  jax 0.8.2 deprecated it together with `with mesh:`. jax has nothing else that tells. The warning
  is for the user who writes `with mesh:`; jax gives it there.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    try:
      from jax.interpreters.pxla import thread_resources
    except ImportError:
      return None
  return thread_resources


def platform(mesh: Mesh | AbstractMesh | None = None) -> str:
  """Returns the platform that is compiled for: 'tpu', 'gpu' or 'cpu'.

  Args:
    mesh: The devices. None: those of the mesh in context, which may belong to another machine; and
      without a mesh, or where an abstract one does not tell, jax's own.
  """
  mesh = mesh or current_mesh()
  if isinstance(mesh, Mesh):
    return mesh.devices.flat[0].platform
  device = getattr(mesh, 'abstract_device', None)  # jax 0.5.3 has none.
  return getattr(device, 'platform', None) or jax.default_backend()


def map_shards(
  function: Callable[..., Any], mesh: Mesh | AbstractMesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
  """Returns a function of whole arrays that calls `function` on each device with its share.

  jax does not check that the results are divided as out_specs says.

  Args:
    function: A function of positional arguments.
    mesh: The devices.
    in_specs: A PartitionSpec for each argument; None for an argument that is None.
    out_specs: Those of the results.
  """
  if not hasattr(jax, 'shard_map'):
    from jax.experimental.shard_map import shard_map

    return shard_map(function, mesh, in_specs, out_specs, check_rep=False)
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  if not _explicit_axes(mesh) or not hasattr(jax.sharding, 'reshard'):
    return mapped

  def divided(*args: Any) -> Any:  # Under Explicit axes jax divides nothing by itself.
    shardings = [None if spec is None else NamedSharding(mesh, spec) for spec in in_specs]
    pairs = zip(args, shardings, strict=True)
    return mapped(*(None if x is None else jax.sharding.reshard(x, to) for x, to in pairs))

  return divided


def triton_params(**sizes: int) -> Any:
  """Returns Pallas's parameters of a kernel for Triton.

  Args:
    **sizes: Such as num_warps and num_stages.
  """
  from jax.experimental.pallas import triton

  make = getattr(triton, 'CompilerParams', None) or triton.TritonCompilerParams  # jax 0.5.3's name.
  return make(**sizes)


def _explicit_axes(mesh: Mesh | AbstractMesh) -> Axes:
  """Returns the axes of a mesh that are Explicit: the types of arrays say how they are divided."""
  kinds = zip(mesh.axis_names, mesh.axis_types or (), strict=False)
  return tuple(axis for axis, kind in kinds if kind.name == 'Explicit')


def with_auto_axes(
  function: Callable[..., jax.Array], result_like: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
  """Returns function, inside which the compiler divides arrays over the mesh in context.

  Axes of `jax.make_mesh` are Explicit in later versions. The types of arrays then say how they are
  divided, and loops and scatters are refused unless all types agree. Where no axis is Explicit, as
  under `with mesh:`, this is function itself.

  Args:
    function: A function of any arguments. Its result is an array.
    result_like: A function of the same arguments, with a result that is divided as function's.
  """

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> jax.Array:
    explicit = _explicit_axes(jax.sharding.get_abstract_mesh())
    if not explicit or not hasattr(jax.sharding, 'auto_axes'):
      return function(*args, **kwargs)
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array | np.ndarray)}

    def call_with(target: Callable[..., jax.Array], arrays: dict[int, jax.Array]) -> jax.Array:
      filled = [arrays.get(i, x) for i, x in enumerate(leaves)]
      args, kwargs = jax.tree.unflatten(tree, filled)
      return target(*args, **kwargs)

    result = jax.eval_shape(functools.partial(call_with, result_like), arrays)
    return jax.sharding.auto_axes(
      functools.partial(call_with, function), axes=explicit, out_sharding=result.sharding.spec
    )(arrays)

  return call


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSharding:
  """How inputs [..., D], their labels and weights [...], and W [D, V] are sharded over a mesh.

  Each device gathers W along D, computes its own tokens, and reduces W's gradient once.

  Attributes:
    mesh: The devices; abstract where `jax.set_mesh` has set the same mesh.
    tokens: For each leading axis of inputs, labels and weights, the mesh axes that divide it.
    dims: The mesh axes that divide D in W; all of them divide tokens too.
    words: The mesh axes that divide V in W and b; none of them divides tokens.
  """

  mesh: Mesh | AbstractMesh
  tokens: tuple[Axes, ...]
  dims: Axes = ()
  words: Axes = ()

  @property
  def token_axes(self) -> Axes:
    """All mesh axes that divide tokens."""
    return tuple(axis for axes in self.tokens for axis in axes)

  def size(self, axes: Axes) -> int:
    """Returns the number of devices along axes."""
    return math.prod(self.mesh.shape[axis] for axis in axes)

  def fits(self, inputs: tuple[int, ...], w: tuple[int, ...]) -> bool:
    """Whether arrays of these shapes can be sharded in this way."""
    axes = (*self.tokens, self.dims, self.words)
    sizes = (*inputs[:-1], *w)
    return (
      len(axes) == len(sizes)
      and set(self.dims) <= set(self.token_axes)
      and not set(self.words) & set(self.token_axes)
      and all(n % self.size(a) == 0 for n, a in zip(sizes, axes, strict=True))
    )

  @property
  def tokens_spec(self) -> PartitionSpec:
    """The sharding of labels and weights."""
    return PartitionSpec(*self.tokens)

  @property
  def inputs_spec(self) -> PartitionSpec:
    """The sharding of inputs."""
    return PartitionSpec(*self.tokens, None)

  @property
  def w_spec(self) -> PartitionSpec:
    """The sharding of W."""
    return PartitionSpec(self.dims, self.words)

  @property
  def bias_spec(self) -> PartitionSpec:
    """The sharding of the bias b."""
    return PartitionSpec(self.words)

  def map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Returns a function of whole arrays that calls `function` on each device with its share."""
    return map_shards(function, self.mesh, in_specs, out_specs)

  def gather(self, w: jax.Array) -> jax.Array:
    """Gathers, on a device, all of D from the devices' shares of W."""
    return lax.all_gather(w, self.dims, axis=0, tiled=True) if self.dims else w

  def reduce(self, w: jax.Array) -> jax.Array:
    """Sums, on a device, the devices' gradients of W; the device keeps its share of the sum."""
    if self.dims:
      w = lax.psum_scatter(w, self.dims, scatter_dimension=0, tiled=True)
    rest = tuple(axis for axis in self.token_axes if axis not in self.dims)
    return lax.psum(w, rest) if rest else w
