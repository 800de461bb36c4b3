"""prepare superglue: TFDS's own records, archives, what is left out, and what is refused."""

import json
import pathlib
import zipfile

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from laser_pax.data import tfrecords
from laser_pax.data.datasets import SUPER_GLUE
from laser_pax.data.prepare import superglue
from laser_pax.errors import UserError
from tests.support import small_superglue
from tests.support.small_superglue import FILES, FOLDERS


def archived(source, archive, prefix=''):
  with zipfile.ZipFile(archive, 'w') as file:
    for path in sorted(source.rglob('*.jsonl')):
      file.write(path, f'{prefix}{path.relative_to(source)}')
  return archive


def contents(data_dir):
  files = sorted(pathlib.Path(data_dir).glob('super_glue/*/1.0.2/*tfrecord*'))
  return {f'{f.parent.parent.name}/{f.name}': f.read_bytes() for f in files}


@pytest.mark.parametrize('task', SUPER_GLUE)
def test_records_are_those_of_tfds(task, tmp_path):
  """The oracle is TFDS's builder: its description of a record, and what it makes of the rows."""
  spec, data_dir = SUPER_GLUE[task], small_superglue.prepared()
  builder = tfds.builder(spec.tfds_name, data_dir=data_dir, try_gcs=False)
  assert str(builder.data_path) == f'{data_dir}/{spec.folder}'
  config = tfds.text.super_glue.SuperGlue.builder_configs[spec.config]
  own = tfds.text.super_glue.SuperGlue(config=config, data_dir=tmp_path)
  assert builder.info.features.to_json() == own.info.features.to_json()
  for split, file in FILES.items():
    made = own._generate_examples(f'{data_dir}/source/{FOLDERS[task]}/{file}', split)
    examples = [own.info.features.serialize_example(example) for _, example in made]
    expected = [
      tf.train.Example.FromString(x).SerializeToString(deterministic=True) for x in examples
    ]
    (file,) = builder.info.splits[split].filepaths
    assert sorted(tfrecords.first_records(file, 100)) == sorted(expected)


def test_archives_give_what_folders_give(tmp_path):
  source = small_superglue.write(tmp_path / 'source')
  diagnostics = source / 'AX-b' / 'AX-b.jsonl'
  diagnostics.parent.mkdir()
  diagnostics.write_text('{}\n')
  archive = archived(source, tmp_path / 'mine.zip', 'all/')
  superglue.prepare([archive], tmp_path / 'data')
  assert contents(tmp_path / 'data') == contents(small_superglue.prepared())
  report = json.loads((tmp_path / 'data/super_glue/cb/1.0.2/report.json').read_text())
  assert report['documents'] == {'in': 16, 'blank': 0, 'train': 7, 'validation': 5, 'test': 3}
  assert {'path': 'AX-b/AX-b.jsonl', 'reason': superglue.NO_LABELS} in report['left_out']
  left = [path.name for path in (tmp_path / 'data/super_glue').iterdir() if path.suffix]
  assert set(left) <= {'prepare.lock', 'wsc.fixed'}


def test_rows_without_a_test_split_and_one_task(tmp_path):
  source = small_superglue.write(tmp_path / 'source', ['boolq'])
  (source / 'BoolQ/test.jsonl').unlink()
  (folder,) = superglue.prepare([source], tmp_path / 'data')
  assert folder == tmp_path / 'data/super_glue/boolq/1.0.2'
  assert set(tfds.builder_from_directory(folder).info.splits) == {'train', 'validation'}


def test_a_run_goes_on_with_the_tasks_that_are_missing(tmp_path):
  source = small_superglue.write(tmp_path / 'source', ['cb', 'rte'])
  superglue.prepare([source / 'CB'], tmp_path / 'data')
  first = contents(tmp_path / 'data')
  (added,) = superglue.prepare([source], tmp_path / 'data')
  assert added.parent.name == 'rte'
  assert first.items() <= contents(tmp_path / 'data').items()
  with pytest.raises(UserError, match='never overwritten'):
    superglue.prepare([source], tmp_path / 'data')


def changed(task, **fields):
  """Returns a damage: the third row of the validation has other fields; None removes one."""

  def damage(source):
    file = source / FOLDERS[task] / 'val.jsonl'
    lines = file.read_text().splitlines()
    row = json.loads(lines[2]) | fields
    lines[2] = json.dumps({name: x for name, x in row.items() if x is not None})
    file.write_text('\n'.join(lines))
    return [source]

  return damage


def no_json(source):
  (source / 'CB/val.jsonl').write_text('{"premise": "P."\n')
  return [source]


def no_utf8(source):
  (source / 'CB/val.jsonl').write_bytes(b'{"premise": "\xff"}\n')
  return [source]


def other_folder(source):
  (source / 'CB').rename(source / 'Mine')
  return [source]


def missing_split(source):
  (source / 'CB/val.jsonl').unlink()
  return [source]


def cut_archive(source):
  archive = archived(source, source.parent / 'CB.zip')
  archive.write_bytes(archive.read_bytes()[:-100])
  return [archive]


def short_archive(source):
  return [archived(source, source.parent / 'CB.zip')]


def twice(source):
  return [source, archived(source, source.parent / 'mine.zip')]


def unlabelled_answer(source):
  file = source / 'MultiRC/train.jsonl'
  row = json.loads(file.read_text().splitlines()[0])
  del row['passage']['questions'][0]['answers'][0]['label']
  file.write_text(json.dumps(row))
  return [source]


@pytest.mark.parametrize(
  ('task', 'damage', 'words'),
  [
    ('cb', no_json, 'CB/val.jsonl, line 1: no JSON'),
    ('cb', no_utf8, 'CB/val.jsonl, line 1: not UTF-8'),
    ('cb', changed('cb', label=None), 'CB/val.jsonl, line 3: the field label is missing'),
    ('cb', changed('cb', label='maybe'), "line 3: label: expected one of entailment, .*'maybe'"),
    ('boolq', changed('boolq', label='true'), 'line 3: label: expected one of False, True'),
    ('cb', changed('cb', premise=None), 'line 3: the field premise is missing'),
    ('cb', changed('cb', premise=3), "line 3: premise: expected text, got '3'"),
    ('cb', changed('cb', idx=7), 'line 3: idx 7 was in line 1 already'),
    ('wsc', changed('wsc', text='Nothing.'), 'line 3: span1_index: the text has no word 2'),
    ('record', changed('record', qas=[{'query': 'q', 'idx': 1, 'answers': []}]), 'line 3: answers'),
    ('multirc', unlabelled_answer, 'MultiRC/train.jsonl, line 1: the field label is missing'),
    ('cb', other_folder, 'Mine is no task of SuperGLUE: expected .* BoolQ, CB'),
    ('cb', missing_split, 'expected CB/val.jsonl too, and it is not there'),
    ('cb', cut_archive, 'CB.zip: a damaged archive, or not whole'),
    ('cb', short_archive, 'CB.zip: CB/test.jsonl: expected 250 rows, got 3'),
    ('cb', twice, 'CB/train.jsonl comes twice'),
  ],
)
def test_what_is_broken_is_refused_by_file_and_line(tmp_path, task, damage, words):
  source = small_superglue.write(tmp_path / 'source', [task])
  with pytest.raises(UserError, match=words):
    superglue.prepare(damage(source), tmp_path / 'data')
  assert not contents(tmp_path / 'data')


def test_a_span_that_the_text_lacks_is_refused(tmp_path):
  source = small_superglue.write(tmp_path / 'source', ['wsc'])
  text = {'text': 'Ada asked that young woman. He had seen her.'}
  with pytest.raises(UserError, match="line 3: span1_text: 'The old man.' is not in the text"):
    superglue.prepare(changed('wsc', **text)(source), tmp_path / 'data')
