"""Programs for TPUs: they are those that were compiled, and their costs are the claimed ones.

A changed program fails here. `LASER_PAX_REWRITE_GOLDEN=1` compiles them all, and keeps their costs.
"""

import json

import jax
import pytest

from benchmarks import page
from benchmarks.tpu import pods
from laser_pax.costs import libtpu
from tests.support import goldens, tpu_programs

GOLDEN = goldens.FOLDER / 'tpu_programs.json'
NAMES = list(tpu_programs.programs())

compiled_by_this_jax = pytest.mark.skipif(
  jax.__version__ != '0.5.3', reason='the digests and costs are of jax 0.5.3 and its libtpu'
)


@pytest.fixture(scope='module')
def run(commands):
  """Returns a function that runs tests/support/tpu_programs.py and returns what it prints."""
  libtpu.fetch()

  def run(*arguments):
    command = commands.run('tests.support.tpu_programs', arguments, timeout=1_800)
    assert command.returncode == 0, command.stderr
    return json.loads(command.stdout.splitlines()[-1])

  return run


@pytest.fixture(scope='module')
def kept(request):
  """The committed digests and costs; those of now, if the goldens are rewritten."""
  if goldens.are_rewritten():
    run = request.getfixturevalue('run')
    GOLDEN.write_text(json.dumps(run('costs'), indent=1) + '\n')
  return json.loads(GOLDEN.read_text())


@pytest.fixture(scope='module')
def digests(run):
  """The digests of the programs as they are now."""
  return run('digests')


@pytest.mark.slow
@compiled_by_this_jax
@pytest.mark.parametrize('name', NAMES)
def test_a_program_is_the_one_that_was_compiled(name, digests, kept):
  assert digests.keys() == kept.keys() == set(NAMES)
  assert digests[name]['digest'] == kept[name]['digest'], (
    f'{name} is another program; {goldens.REWRITE}=1 compiles it: review the costs'
  )


@pytest.mark.slow
@compiled_by_this_jax
def test_a_layer_compiles_to_its_costs(run, kept):
  name = tpu_programs.layer_name(*tpu_programs.LAYERS[0])
  assert run('costs', name) == {name: kept[name]}


@pytest.mark.parametrize('name', tpu_programs.PAIR)
def test_the_page_has_the_costs_of_the_pair(name, kept):
  records = (json.loads(line) for line in pods.PODS.read_text().splitlines())
  pod = tpu_programs.PAIRS_POD
  (record,) = (r for r in records if (r['experiment'], r['pod']) == (name, pod))
  costs = kept[name]['costs']
  assert costs['fits'] and record['fits']
  for step in ('train', 'eval'):
    for bytes_name in ('state_bytes', 'temporary_bytes', 'peak_bytes'):
      assert costs[step][bytes_name] == pytest.approx(record[step][bytes_name], rel=0.005)
  assert costs['sent_bytes'] == pytest.approx(record['sent_bytes'], rel=0.005)
  assert costs['flops'] == pytest.approx(record['flops'], rel=0.005)
  assert costs['mfu_bound'] == pytest.approx(record['mfu_bound'], rel=0.005)


def test_laser_costs_no_more_than_its_twin(kept):
  laser, standard = (kept[name]['costs'] for name in tpu_programs.PAIR)
  assert laser['sent_bytes'] == standard['sent_bytes']
  for name in ('temporary_bytes', 'peak_bytes'):
    assert laser['train'][name] <= 1.02 * standard['train'][name]


@pytest.mark.parametrize(('experiment', 'layers_per_block', 'gib'), tpu_programs.REMATERIALISED)
def test_full_rematerialisation_takes_little(experiment, layers_per_block, gib, kept):
  costs = kept[tpu_programs.rematerialised_name(experiment)]['costs']
  assert costs['checkpoint_policy'] == 'SAVE_NOTHING'
  assert costs['train']['temporary_bytes'] <= gib * 2**30


@pytest.mark.parametrize(('chip', 'tokens'), tpu_programs.LAYERS)
def test_the_page_has_the_costs_of_a_layer(chip, tokens, kept):
  costs = kept[tpu_programs.layer_name(chip, tokens)]['costs']
  records = map(json.loads, (page.RESULTS / 'fused.jsonl').read_text().splitlines())
  key = ('attention', 'chip', 'tokens')
  (record,) = (r for r in records if all(r[name] == costs[name] for name in key))
  assert costs['fits']
  assert costs['temporary_bytes'] == pytest.approx(record['temporary_bytes'], rel=0.02)
