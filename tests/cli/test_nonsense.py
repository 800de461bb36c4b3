"""Whatever a user types, the answer is one line, and exit code 1 or 2. No traceback is printed."""

import os
import shlex

import pytest

# Each row is one command line. <DIR> is an empty folder, <FILE> a file of text, <TEXTS> a folder
# of two texts, <MODEL> a vocabulary. <NONE> is a path that is not there, and <DENIED> a file that
# nobody can read.
ROWS = """
nope
trian
"list show"
é
show
list extra
list --nope
list --json
doctor extra
doctor --nope
doctor --job_log_dir
doctor --job_log_dir=
show C4Lazer2B
show ''
show ' '
show C4LaserTiny extra
show --exp=C4LaserTiny
show é
show "C4Laser Tiny"
show "it's"
show <DIR>
show <FILE>
show ../C4LaserTiny
show laser_pax.configs
show laser_pax.configs.
show .C4LaserTiny
show .
show ...
show os.path.join
show numpy.ndarray
show not_a_module.Experiment
show laser_pax.configs.c4.C4LaserTiny.More
show json.é
show -1
aot
aot --exp
aot --exp=
aot --exp=Nope
aot --exp=os.path.join
aot --exp=C4LaserTiny --pod=nope
aot --exp=C4LaserTiny --pod=
aot --exp=C4LaserTiny --pod=../pods/cpu
aot --exp=C4LaserTiny --pod=cpu stray
aot --exp=C4LaserTiny --pod=cpu --nope
aot --exp=C4LaserTiny --pod=cpu --compare=Nope
aot --exp=C4LaserTiny --pod=cpu --compare=
aot --exp=C4LaserTiny --pod=cpu --json=3
aot --exp=C4LaserTiny --pod=cpu --fdl.NOPE=1
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=x
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=-1
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=0
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=1.5
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=True
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=None
aot --exp=C4LaserTiny --pod=cpu --fdl.NUM_LAYERS=[2]
aot --exp=C4LaserTiny --pod=cpu --fdl.MICRO_BATCHES=0
aot --exp=C4LaserTiny --pod=cpu --fdl.GLOBAL_BATCH_SIZE=-8
aot --exp=C4LaserTiny --pod=cpu --fdl.FPROP_DTYPE=float99
aot --exp=C4LaserTiny --pod=cpu --fdl.FPROP_DTYPE=int8
aot --exp=C4LaserTiny --pod=cpu --fdl.NUMERICS=papper
aot --exp=C4LaserTiny --pod=cpu --fdl.CHECKPOINT_POLICY=nope
aot --exp=C4LaserTiny --pod=cpu --fdl.ICI_MESH_SHAPE=3
aot --exp=C4LaserTiny --pod=cpu --fdl.ICI_MESH_SHAPE=[1]
aot --exp=C4LaserTiny --pod=cpu --fdl.ICI_MESH_SHAPE=[0,1,1]
aot --exp=C4LaserTiny --pod=cpu --fdl.ICI_MESH_SHAPE=[1,1,"x"]
aot --exp=C4LaserTiny --pod=cpu --fdl.LEARNING_RATE=nan
aot --exp=C4LaserTiny --pod=cpu --fdl.DATASET=c4
bench
bench --exp=C4LaserTiny
bench --exp=Nope --against=C4LaserTiny
bench --exp=C4LaserTiny --against=C4LaserTiny
bench --exp=C4LaserTiny --against=C4StandardTiny stray
bench --exp=C4LaserTiny --against=C4StandardTiny --rounds=0
bench --exp=C4LaserTiny --against=C4StandardTiny --lengths=1,x
bench --exp=C4LaserTiny --against=C4StandardTiny --out=<FILE>/below
bench --exp=C4LaserTiny --against=ImageNetStandardViTTiny --out=<DIR>
prepare
prepare nope
prepare c4
prepare c4 ''
prepare c4 <NONE>
prepare c4 <DIR>
prepare c4 <FILE> --nope
prepare c4 <DIR>/.
prepare c4 <DENIED> --out <DIR>
prepare c4 <TEXTS>/nothing.pdf
prepare imagenet
prepare imagenet <NONE>
prepare imagenet <DIR>
prepare imagenet <FILE>
prepare imagenet <TEXTS>
prepare imagenet <DIR> --validation-fraction=7
prepare c4 ~nobody-has-this-name/x
prepare c4 gs://bucket/c4
prepare c4 <TEXTS> --out
prepare c4 <TEXTS> --out ''
prepare c4 <TEXTS> --out <FILE>
prepare c4 <TEXTS> --out <FILE>/below
prepare c4 <TEXTS> --out gs://bucket/x
prepare c4 <TEXTS> --out /proc/nothing
prepare c4 <TEXTS> --out <DIR> --validation-fraction
prepare c4 <TEXTS> --out <DIR> --validation-fraction=x
prepare c4 <TEXTS> --out <DIR> --validation-fraction=''
prepare c4 <TEXTS> --out <DIR> --validation-fraction=-1
prepare c4 <TEXTS> --out <DIR> --validation-fraction=0
prepare c4 <TEXTS> --out <DIR> --validation-fraction=0.6
prepare c4 <TEXTS> --out <DIR> --validation-fraction=nan
prepare c4 <TEXTS> --out <DIR> --validation-fraction=inf
vocab
vocab --data=<TEXTS>
vocab --out=<DIR>/x
vocab --data=<TEXTS> --out=<DIR>
vocab --data=<TEXTS> --out=<MODEL>
vocab --data=<TEXTS> --out=<FILE>/x
vocab --data=<TEXTS> --out=
vocab --data= --out=<DIR>/x
vocab --data=<NONE> --out=<DIR>/x
vocab --data=<DIR> --out=<DIR>/x
vocab --data=<MODEL> --out=<DIR>/x
vocab --data=<DENIED> --out=<DIR>/x
vocab --data=<TEXTS> --out=<DIR>/x --kind=x
vocab --data=<TEXTS> --out=<DIR>/x --kind=wordpiece --size=104
vocab --data=<TEXTS> --out=<DIR>/x --kind=wordpiece --character-coverage=0.9
vocab --data=<TEXTS> --out=<MODEL> --kind=wordpiece
vocab --data=<TEXTS> --out=<DIR>/x --size=x
vocab --data=<TEXTS> --out=<DIR>/x --size=-1
vocab --data=<TEXTS> --out=<DIR>/x --size=0
vocab --data=<TEXTS> --out=<DIR>/x --size=1.5
vocab --data=<TEXTS> --out=<DIR>/x --size=
vocab --data=<TEXTS> --out=<DIR>/x --size=5
vocab --data=<TEXTS> --out=<DIR>/x --size=1000000
vocab --data=<TEXTS> --out=<DIR>/x --size=9999999999999
vocab --data=<TEXTS> --out=<DIR>/x --sentences=0
vocab --data=<TEXTS> --out=<DIR>/x --sentences=-5
vocab --data=<TEXTS> --out=<DIR>/x --sentences=x
vocab --data=<TEXTS> --out=<DIR>/x --character-coverage=0
vocab --data=<TEXTS> --out=<DIR>/x --character-coverage=2
vocab --data=<TEXTS> --out=<DIR>/x --character-coverage=nan
vocab --data=<TEXTS> --out=<DIR>/x extra
quickstart extra
quickstart --steps=x
quickstart --steps=-3
quickstart --steps=0
quickstart --steps=1.5
quickstart --steps=
quickstart --out=<FILE>
quickstart --out=<FILE>/below --steps=2
quickstart --out=
quickstart --nope
quickstart --family=
quickstart --family=Text
export
export --checkpoint=<NONE> --out=<DIR>/x
export --checkpoint=<DIR> --out=<DIR>/x
export --checkpoint=<DIR> --out=
import-weights
import-weights --weights=<NONE> --job_log_dir=<DIR>/x
import-weights --weights=<DIR> --job_log_dir=<DIR>/x
import-weights --weights=<DIR> --job_log_dir=<FILE>
eval
eval extra
eval --nope
eval --checkpoint=<DIR> extra
eval --checkpoint=<DIR> --suite=other
eval --checkpoint=<DIR> --suite=paper --tasks=piqa
eval --checkpoint=<DIR> --shots=-1
eval --checkpoint=<DIR> --limit=0
eval --checkpoint=<FILE>
eval --checkpoint=<DIR>
eval --checkpoint=<DIR> --exp=Nope
generate
generate extra
generate --nope
generate --checkpoint=<DIR>
generate --checkpoint=<DIR> --prompt=
generate --checkpoint=<DIR> --prompts=
generate --checkpoint=<DIR> --prompts=<NONE>
generate --checkpoint=<DIR> --prompts=<DENIED>
generate --checkpoint=<DIR> --prompts=<TEXTS>
generate --checkpoint=<DIR> --prompts=<MODEL>
generate --checkpoint=<DIR> --prompt=x --out=<FILE>
generate --checkpoint=<DIR> --prompt=x --out=<FILE>/below
generate --checkpoint=<DIR> --prompt=x --temperature=x
generate --checkpoint=<DIR> --prompt=x --max-tokens=1.5
generate --checkpoint=<DIR> --prompt=x --exp=Nope
generate --checkpoint=<DIR> --prompt=x
generate --checkpoint=<FILE> --prompt=x
generate --checkpoint=<NONE> --prompt=x
sweep
sweep <NONE>
sweep <DIR>
sweep <FILE>
sweep <DENIED>
sweep gs://bucket/x.toml
sweep <SWEEP> extra
sweep <SWEEP> --nope
sweep <SWEEP> --parallel=0
sweep <SWEEP> --parallel=x
sweep <SWEEP> --parallel=100000
sweep <SWEEP> --out=
sweep <SWEEP> --out=<FILE>
sweep <SWEEP> --out=gs://bucket/x
sweep <SWEEP> --results=
sweep <SWEEP> --results=<DIR>
sweep <SWEEP> --results=<MODEL>
sweep <SWEEP> --data=
sweep <SWEEP> --vocab=http://x
prepare wikipedia
prepare wikipedia <TEXTS>
prepare wikipedia <TEXTS> --vocab
prepare wikipedia <TEXTS> --vocab=
prepare wikipedia <TEXTS> --vocab=<NONE>
prepare wikipedia <TEXTS> --vocab=<MODEL> --out=<DIR>
prepare wikipedia <TEXTS> --vocab=<FILE> --out=<DIR> --copies=0
prepare wikipedia <TEXTS> --vocab=<FILE> --out=<DIR> --seed=x
train
train C4LaserTiny
train --exp=C4LaserTiny
train --job_log_dir=<DIR>
train --exp= --job_log_dir=<DIR>
train --exp=Nope --job_log_dir=<DIR>
train --exp=os.path.join --job_log_dir=<DIR>
train --exp=C4LaserTiny --job_log_dir=
train --exp=C4LaserTiny --job_log_dir=<FILE>
train --exp=C4LaserTiny --job_log_dir=<FILE>/below
train --exp=C4LaserTiny --job_log_dir=/proc/nothing
train --exp=C4LaserTiny --job_log_dir=~nobody-has-this-name/x
train --exp=C4LaserTiny --job_log_dir=<DIR> stray
train --exp=C4LaserTiny --job_log_dir=<DIR> --no_such_flag_of_paxml
train --exp=C4LaserTiny --job_log_dir=<DIR> --no_such_flag_of_paxml=3
train --exp=C4LaserTiny --job_log_dir=<DIR> --mode=nope
train --exp=C4LaserTiny --job_log_dir=<DIR> --mode=
train --exp=C4LaserTiny --job_log_dir=<DIR> --num_hosts=x
train --exp=C4LaserTiny --job_log_dir=<DIR> --jax_fully_async_checkpoint
train --exp=C4LaserTiny --job_log_dir=<DIR> --multiprocess_gpu --num_hosts=2
train --exp=C4LaserTiny --job_log_dir=<DIR> --multiprocess_gpu --server_addr=x --num_hosts=2
train --exp=C4LaserTiny --job_log_dir=<DIR> --fdl.NUM_LAYERS=2
train --exp=C4LaserTiny --fdl_config=C4LaserTiny --job_log_dir=<DIR>
train --exp=C4LaserTiny --job_log_dir=<DIR> --data=
train --exp=C4LaserTiny --job_log_dir=<DIR> --data=<NONE>
train --exp=C4LaserTiny --job_log_dir=<DIR> --data=<FILE>
train --exp=C4LaserTiny --job_log_dir=<DIR> --vocab=<NONE>
train --exp=C4LaserTiny --job_log_dir=<DIR> --vocab=<FILE>
train --exp=C4LaserTiny --job_log_dir=<DIR> --profile=
train --exp=C4LaserTiny --job_log_dir=<DIR> --profile=5
train --exp=C4LaserTiny --job_log_dir=<DIR> --profile=a:b
train --exp=C4LaserTiny --job_log_dir=<DIR> --profile=5:3
train --exp=C4LaserTiny --job_log_dir=<DIR> --profile=-2:3
train --exp=C4LaserTiny --job_log_dir=http://x/y
train --exp=C4LaserTiny --job_log_dir=<DIR> --flagfile=<FILE>
train --exp=C4LaserTiny --job_log_dir=<DIR> -job_log_dir=<DIR>
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.NUM_LAYERS=2 --fdl.NUM_LAYERS=3
train --exp=C4LaserTiny --job_log_dir=<DIR> --num_hosts=1 --host_idx=0
prepare c4 <TEXTS> --out <DIR> --validation-fraction=1e-320
vocab --data=<TEXTS> --out=gs://bucket/v.model
vocab --data=gs://bucket/data --out=<DIR>/x
quickstart --out=gs://bucket/x --steps=2
train --fdl_config --job_log_dir=<DIR>
train --fdl_config= --job_log_dir=<DIR>
train --fdl_config=Nope --job_log_dir=<DIR>
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.=3
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.NOPE=1
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.NUM_LAYERS
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.NUM_LAYERS=
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.NUM_LAYERS=x
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.NUM_LAYERS=-1
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.SEQ_LEN=0
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.LEARNING_RATE=-1
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.LEARNING_RATE=é
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.CHECKPOINT_EVERY_N_STEPS=0
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.POD=nope
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> --fdl.DATA_DIR=3
train --fdl_config=C4LaserTiny --job_log_dir=<DIR> "--fdl.NUMERICS=it's"
""".strip().splitlines()


@pytest.fixture(scope='module')
def places(tmp_path_factory, source):
  """Returns a function that puts paths into a row. Their names have spaces and quotes."""
  root = tmp_path_factory.mktemp("it's é")
  (root / 'file').write_text('no model, no data\n')
  (root / 'texts').mkdir()
  for name in 'ab':
    (root / 'texts' / f'{name}.txt').write_text(f'the text {name}\n')
  (root / 'sweep.toml').write_text('experiments = ["C4LaserTiny"]\npoints = [{}]\n')
  denied = root / 'denied.txt'
  denied.symlink_to(root / 'denied.txt')  # Even a superuser cannot read a circle.
  paths = {'<FILE>': root / 'file', '<TEXTS>': root / 'texts', '<MODEL>': source.vocab}
  paths |= {'<NONE>': root / 'none', '<DENIED>': denied, '<SWEEP>': root / 'sweep.toml'}

  def fill(number, row):
    empty = root / f'dir {number}'
    empty.mkdir()
    words = shlex.split(row)
    for name, path in (paths | {'<DIR>': empty}).items():
      words = [word.replace(name, str(path)) for word in words]
    return words

  return fill


def test_there_are_many_rows():
  assert len(ROWS) == len(set(ROWS)) >= 150


@pytest.mark.parametrize('first', range(0, len(ROWS), 10))
def test_nonsense_is_answered_in_one_line(commands, places, tmp_path, first):
  rows = dict(enumerate(ROWS[first : first + 10], first))
  env = {'JAX_PLATFORMS': 'cpu', 'LASER_PAX_DATA_DIR': '', 'LASER_PAX_VOCAB': ''}
  wrong = []
  for number, row in rows.items():
    words = places(number, row)
    command = commands.start('laser_pax', words, cwd=tmp_path, env=env)
    try:
      code = command.wait(timeout=15)
    except TimeoutError:
      code = None
    errors = [line for line in command.stderr.splitlines() if line.startswith('error: ')]
    told = command.stdout + command.stderr
    is_foreseen = 'Traceback' not in told and '--traceback shows' not in told
    if code not in (1, 2) or len(errors) != 1 or not is_foreseen or len(errors[0]) > 900:
      wrong.append((row, code, told[-2000:]))
  assert not wrong, '\n\n'.join(f'{row}\n{code}\n{told}' for row, code, told in wrong)
  assert os.listdir(tmp_path) == []
