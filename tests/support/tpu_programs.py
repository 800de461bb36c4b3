"""The programs of the tests for TPUs: lowered to their digests, or compiled to their costs.

`python -m tests.support.tpu_programs digests` prints each program's digest as JSON.
`python -m tests.support.tpu_programs costs` compiles them all, in minutes, and prints their costs.
Names of programs may follow.

The compiler is pinned and gives the same program the same costs. So a test need not compile a
program whose digest is known.
"""

import base64
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable

import jax
from jaxlib.mlir import ir

from laser_pax import configs
from laser_pax.costs import compiler, libtpu, reports
from laser_pax.experiment.base import Experiment

PAIR = ('C4Laser300M', 'C4Standard300M')
PAIRS_POD = 'v5p-64chips'
# An experiment, its layers in a block, and the most memory in GiB that its temporaries may take.
REMATERIALISED = (('C4Laser300M', 1, 2.4), ('C4Laser2B', 2, 1.5))
LAYERS = (('v5e', 1_024), ('v5p', 32_768))


@dataclasses.dataclass(frozen=True)
class Program:
  """One or two steps that are compiled together.

  Attributes:
    trace: Returns the traced steps.
    costs: Compiles them and returns their costs.
  """

  trace: Callable[[], list[compiler.Traced]]
  costs: Callable[[], dict]


def rematerialised_name(experiment: str) -> str:
  """Returns the name of the train step that keeps only the inputs of blocks of layers."""
  return f'{experiment}, rematerialised'


def layer_name(chip: str, tokens: int) -> str:
  """Returns the name of a fused LASER layer's forward and backward pass."""
  return f'layer, {chip}, {tokens} tokens'


def programs() -> dict[str, Program]:
  """Returns the programs by name."""
  found = {}
  for name in PAIR:
    found[name] = _report(getattr(configs, name)().on(PAIRS_POD), evaluation=True)
  for name, layers_per_block, _ in REMATERIALISED:
    experiment = getattr(configs, name)().on()
    experiment.CHECKPOINT_POLICY = 'save_nothing'
    experiment.LAYERS_PER_BLOCK = layers_per_block
    found[rematerialised_name(name)] = _report(experiment, evaluation=False)
  for chip, tokens in LAYERS:
    found[layer_name(chip, tokens)] = _layer(chip, tokens)
  return found


def _report(experiment: Experiment, *, evaluation: bool) -> Program:
  def trace():
    pod = experiment.pod()
    steps = [compiler.trace_train(experiment, pod)]
    return [*steps, compiler.trace_eval(experiment, pod)] if evaluation else steps

  def costs():
    report = reports.report(experiment, evaluation=evaluation).to_json()
    del report['collectives']  # Their sum is there, and they are many.
    for step in ('train', 'eval') if evaluation else ('train',):
      del report[step]['seconds']  # Each compilation takes another time.
    return report

  return Program(trace, costs)


def _layer(chip: str, tokens: int) -> Program:
  from benchmarks.tpu import fused_layer
  from laser_pax.layers import LaserFusedDotProductAttention

  arguments = (LaserFusedDotProductAttention, chip, tokens)
  return Program(
    lambda: [fused_layer.trace_layer(*arguments)],
    lambda: dataclasses.asdict(fused_layer.layer_cost(*arguments)),
  )


def digest(traced: list[compiler.Traced]) -> str:
  """Returns a digest of the traced steps. Places in source files do not change it."""
  texts = [f'jax {jax.__version__}, libtpu {libtpu.RELEASE.version}']
  for step in traced:
    with step.mesh:
      texts.append(_without_places(step.jitted.lower().as_text()))
  return hashlib.sha256('\n'.join(texts).encode()).hexdigest()


def _without_places(program: str) -> str:
  """Replaces each kernel's bytes, which name source files, by the kernel's text without them."""

  def text(match):
    context = ir.Context()
    context.allow_unregistered_dialects = True
    with context:
      kernel = ir.Module.parse(base64.b64decode(match[1]))
    return kernel.operation.get_asm(enable_debug_info=False)

  program, kernels = re.subn(r'(?<=\\22body\\22: \\22)([A-Za-z0-9+/=]+)', text, program)
  assert kernels == program.count('custom_call @tpu_custom_call'), 'a kernel has another form'
  return program


def main(what: str, *names: str) -> None:
  """Prints the digests, or the digests and the costs, of the named programs or of all."""
  libtpu.use()
  found, wanted = {}, programs()
  for name in names or wanted:
    program = wanted[name]
    found[name] = {'digest': digest(program.trace())}
    if what == 'costs':
      found[name]['costs'] = program.costs()
      print(name, 'compiled', file=sys.stderr, flush=True)
  print(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])
