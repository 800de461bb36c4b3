"""`prepare imagenet`: archives of ImageNet, class folders, broken pictures, and being stopped."""

import io
import json
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from laser_pax.data import imagenet as inputs
from laser_pax.data import streams
from laser_pax.data.datasets import IMAGENET, IMAGENET_V2
from laser_pax.data.prepare import image_files, imagenet, pictures, reports
from laser_pax.data.prepare.image_files import Expected
from laser_pax.errors import UserError
from tests.support.small_images import CLASSES, jpeg, noise, png, write_folders

WNIDS = ('n01440764', 'n01443537', 'n01484850')


def records(data_dir, split, spec=IMAGENET):
  """Returns the records of a split by their files' names."""
  found = streams.find_records(f'{data_dir}/{spec.folder}', [split])
  parse = {**inputs._RECORD, 'file_name': tf.io.FixedLenFeature([], tf.string)}
  rows = [tf.io.parse_single_example(r, parse) for r in tf.data.TFRecordDataset(found.files)]
  return {r['file_name'].numpy().decode(): (r['image'].numpy(), int(r['label'])) for r in rows}


def report(data_dir):
  return json.loads((data_dir / IMAGENET.folder / reports.FILE).read_text())


def tar(path, members, mode='w'):
  with tarfile.open(path, mode) as archive:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path


@pytest.fixture
def archives(tmp_path, monkeypatch):
  """ImageNet's archives, of 3 classes of 4 images, 5 to validate on, and 3 to test on."""
  folder = tmp_path / 'archives'
  folder.mkdir()
  inner = {}
  for c, wnid in enumerate(WNIDS):
    images = {f'{wnid}_{i}.JPEG': jpeg(noise(10 * c + i)) for i in range(4)}
    inner[f'{wnid}.tar'] = tar(tmp_path / 'inner.tar', images).read_bytes()
  train = tar(folder / 'ILSVRC2012_img_train.tar', inner)
  val = {f'ILSVRC2012_val_{i:08d}.JPEG': jpeg(noise(100 + i)) for i in range(1, 6)}
  val['ILSVRC2012_val_00000001.JPEG'] = jpeg(noise(0))  # ImageNet has such copies; they stay.
  validation = tar(folder / 'ILSVRC2012_img_val.tar', val)
  test = {
    f'imagenetv2-matched-frequency-format-val/{i}/{i}a.jpeg': jpeg(noise(i + 200)) for i in range(3)
  }
  tar(folder / 'imagenetv2-matched-frequency.tar.gz', test, 'w:gz')
  (folder / image_files.LABELS).write_text('\n'.join(WNIDS[i % 3] for i in range(5)))
  expected = {
    'ILSVRC2012_img_train.tar': Expected(split='train', images=12, size=train.stat().st_size),
    'ILSVRC2012_img_val.tar': Expected(
      split='validation', images=5, size=validation.stat().st_size
    ),
    'imagenetv2-matched-frequency.tar.gz': Expected(split='test', images=3),
  }
  monkeypatch.setattr(image_files, 'EXPECTED', expected)
  return folder


def test_the_real_archives_sizes_are_known():
  assert image_files.EXPECTED['ILSVRC2012_img_train.tar'].images == 1_281_167
  assert image_files.EXPECTED['ILSVRC2012_img_val.tar'].images == 50_000
  assert image_files.EXPECTED['imagenetv2-matched-frequency.tar.gz'].images == 10_000


def test_imagenets_archives(archives, tmp_path):
  data = tmp_path / 'data'
  imagenet.prepare([archives], data)
  train, validation = records(data, 'train'), records(data, 'validation')
  assert len(train) == 12 and len(validation) == 5
  for c, wnid in enumerate(WNIDS):
    for i in range(4):
      assert train[f'{wnid}_{i}.JPEG'] == (jpeg(noise(10 * c + i)), c)
  assert [validation[f'ILSVRC2012_val_{i:08d}.JPEG'][1] for i in range(1, 6)] == [0, 1, 2, 0, 1]
  test = records(data, 'test', IMAGENET_V2)
  assert sorted(label for _, label in test.values()) == [0, 1, 2]
  assert (data / IMAGENET.folder / 'label.labels.txt').read_text().split() == list(WNIDS)
  lines = reports.lines(report(data))
  assert lines[0] == 'read 4 files, 17 images: 12 train, 5 validation'
  assert not list((data / IMAGENET.folder).parent.glob('*.unpacked'))


def test_a_run_that_was_stopped_in_its_second_data_set_goes_on(archives, tmp_path, monkeypatch):
  imagenet.prepare([archives], tmp_path / 'whole')
  write, data = imagenet._Conversion._write, tmp_path / 'data'

  def stopping(self, *args):
    if self.spec is IMAGENET_V2:
      raise KeyboardInterrupt
    return write(self, *args)

  monkeypatch.setattr(imagenet._Conversion, '_write', stopping)
  with pytest.raises(KeyboardInterrupt):
    imagenet.prepare([archives], data)
  monkeypatch.setattr(imagenet._Conversion, '_write', write)
  assert (data / IMAGENET.folder).exists() and not (data / IMAGENET_V2.folder).exists()
  imagenet.prepare([archives], data)
  for spec in (IMAGENET, IMAGENET_V2):
    names = [{f.name for f in (x / spec.folder).iterdir()} for x in (data, tmp_path / 'whole')]
    assert names[0] == names[1]
  with pytest.raises(UserError, match='never overwritten'):
    imagenet.prepare([archives], data)


def test_unpacked_validation_images_have_the_classes_of_their_folders(tmp_path):
  for split, names in {
    'train': ('a.JPEG', 'b.JPEG'),
    'val': ('ILSVRC2012_val_00000293.JPEG',),
  }.items():
    for c, wnid in enumerate(WNIDS):
      folder = tmp_path / 'imagenet' / split / wnid
      folder.mkdir(parents=True)
      for i, name in enumerate(names):
        (folder / name).write_bytes(jpeg(noise(50 * c + i + len(names))))
  imagenet.prepare([tmp_path / 'imagenet'], tmp_path / 'data')
  validation = records(tmp_path / 'data', 'validation')
  assert sorted(label for _, label in validation.values()) == [0, 1, 2]


def test_the_devkit_gives_the_labels(archives, tmp_path):
  import scipy.io

  synsets = np.array(
    [(3, WNIDS[0]), (1, WNIDS[1]), (2, WNIDS[2])],
    dtype=[('ILSVRC2012_ID', int), ('WNID', object)],
  )
  meta = io.BytesIO()
  scipy.io.savemat(meta, {'synsets': synsets})
  (archives / image_files.LABELS).unlink()
  truth = b'3\n1\n2\n3\n3\n'
  data = 'ILSVRC2012_devkit_t12/data'
  members = {
    f'{data}/meta.mat': meta.getvalue(),
    f'{data}/ILSVRC2012_validation_ground_truth.txt': truth,
  }
  tar(archives / image_files.DEVKIT, members, 'w:gz')
  imagenet.prepare([archives], tmp_path / 'data')
  validation = records(tmp_path / 'data', 'validation')
  assert [validation[f'ILSVRC2012_val_{i:08d}.JPEG'][1] for i in range(1, 6)] == [0, 1, 2, 0, 0]


@pytest.mark.parametrize(
  ('missing', 'said'),
  [
    (image_files.LABELS, 'ILSVRC2012_devkit_t12.tar.gz'),
    ('ILSVRC2012_img_val.tar', r'split validation: expected ILSVRC2012_img_val.tar \(5 images\)'),
    ('ILSVRC2012_img_train.tar', r'split train: expected ILSVRC2012_img_train.tar \(12 images\)'),
  ],
)
def test_what_is_missing_is_named(archives, tmp_path, missing, said):
  (archives / missing).unlink()
  with pytest.raises(UserError, match=said):
    imagenet.prepare([archives], tmp_path / 'data')


def test_test_images_alone_make_imagenet_v2(archives, tmp_path):
  path = archives / 'imagenetv2-matched-frequency.tar.gz'
  assert imagenet.prepare([path], tmp_path / 'data') == tmp_path / 'data' / IMAGENET_V2.folder


@pytest.mark.parametrize(
  'name', ['ILSVRC2012_img_train.tar', 'imagenetv2-matched-frequency.tar.gz']
)
def test_an_archive_that_is_cut_is_refused_with_its_name(archives, tmp_path, name):
  content = (archives / name).read_bytes()
  (archives / name).write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError, match=f'{name}: .*fetch it again'):
    imagenet.prepare([archives], tmp_path / 'data')


def test_an_archive_without_some_images_is_refused(archives, tmp_path, monkeypatch):
  name = 'ILSVRC2012_img_train.tar'
  monkeypatch.setitem(image_files.EXPECTED, name, Expected(split='train', images=13))
  with pytest.raises(UserError, match='expected 13 images, got 12'):
    imagenet.prepare([archives], tmp_path / 'data')


def test_broken_pictures_are_left_out_and_others_made_anew(tmp_path):
  folder = write_folders(tmp_path / 'pictures')
  one = folder / CLASSES[0]
  whole = jpeg(noise(300, 64, 64))
  cmyk = np.concatenate([noise(301, 16, 16), np.zeros((16, 16, 1), np.uint8)], -1)
  (one / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
  (one / 'text.jpg').write_bytes(b'no picture at all')
  (one / 'cmyk.jpg').write_bytes(jpeg(cmyk, 'CMYK'))
  (one / 'grey.png').write_bytes(png(noise(302)[..., 0], 'L'))
  (one / 'clear.png').write_bytes(png(np.zeros((9, 9, 4)), 'RGBA'))
  (one / 'grey.jpg').write_bytes(jpeg(noise(303)[..., 0], 'L'))
  imagenet.prepare([folder], tmp_path / 'data')
  said = report(tmp_path / 'data')
  left_out = {x['path']: x['reason'] for x in said['left_out']}
  assert left_out == {'one/cut.jpg': pictures.DAMAGED, 'one/text.jpg': pictures.OTHER_KIND}
  changed = {x['path']: x['reason'] for x in said['changed']}
  assert changed == {
    'one/cmyk.jpg': pictures.FROM_CMYK,
    'one/grey.png': pictures.FROM_PNG,
    'one/clear.png': pictures.FROM_PNG,
  }
  kept = records(tmp_path / 'data', 'train') | records(tmp_path / 'data', 'validation')
  assert said['documents']['in'] == 36 and len(kept) == 34
  assert kept['one/grey.jpg'][0] == (one / 'grey.jpg').read_bytes()
  for name in changed:
    assert tf.io.extract_jpeg_shape(kept[name][0]).numpy()[2] == 3
  grey = tf.io.decode_jpeg(kept['one/grey.png'][0], channels=3).numpy().astype(int)
  assert np.abs(grey - noise(302)[..., :1]).mean() < 4
  assert (tf.io.decode_jpeg(kept['one/clear.png'][0]).numpy() > 250).all()
  lines = '\n'.join(reports.lines(said))
  assert 'made 3 images anew' in lines and 'one/cut.jpg: a damaged picture' in lines


def test_a_huge_picture_is_left_out(monkeypatch):
  monkeypatch.setattr(pictures, 'MOST_PIXELS', 100)
  for data in (jpeg(noise(0)), png(noise(0), 'RGB')):
    assert pictures.as_jpeg(data) == (None, pictures.TOO_LARGE)


def test_copies_are_left_out_before_the_split(tmp_path):
  folder = write_folders(tmp_path / 'pictures', 20)
  for i in range(5):
    (folder / 'two' / f'copy{i}.jpg').write_bytes((folder / 'one' / f'{i}.jpg').read_bytes())
  imagenet.prepare([folder], tmp_path / 'data', validation_fraction=0.2)
  train, validation = (records(tmp_path / 'data', split) for split in ('train', 'validation'))
  assert not {x for x, _ in train.values()} & {x for x, _ in validation.values()}
  assert len(train) + len(validation) == 60
  assert [sum(y == c for _, y in validation.values()) for c in range(3)] == [4, 4, 4]
  assert {x['reason'] for x in report(tmp_path / 'data')['left_out']} == {imagenet.COPY}


def test_folders_name_splits_and_a_copy_to_evaluate_on_is_left_out(tmp_path):
  folder = write_folders(tmp_path / 'pictures', 4, ('train', 'val', 'test'))
  copy = (folder / 'val' / 'one' / '0.jpg').read_bytes()
  (folder / 'train' / 'one' / 'copy.jpg').write_bytes(copy)
  imagenet.prepare([folder], tmp_path / 'data')
  assert len(records(tmp_path / 'data', 'train')) == 12
  assert len(records(tmp_path / 'data', 'validation')) == 12
  assert len(records(tmp_path / 'data', 'test', IMAGENET_V2)) == 12
  left_out = report(tmp_path / 'data')['left_out']
  assert left_out == [{'path': 'one/copy.jpg', 'reason': imagenet.LEAK}]


def test_folders_and_an_archive_of_them_give_the_same_bytes(tmp_path):
  folder = write_folders(tmp_path / 'pictures')
  members = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob('*.jpg'))}
  archive = tar(tmp_path / 'pictures.tar.gz', members, 'w:gz')
  imagenet.prepare([folder], tmp_path / 'a')
  imagenet.prepare([archive], tmp_path / 'b')
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
  with pytest.raises(UserError, match='never overwritten'):
    imagenet.prepare([folder], tmp_path / 'a')


def contents(data_dir):
  folder = data_dir / IMAGENET.folder
  return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != reports.FILE}


@pytest.mark.parametrize('stop_at', [1, 3])
def test_a_run_that_was_stopped_goes_on_after_its_last_shard(tmp_path, monkeypatch, stop_at):
  folder = write_folders(tmp_path / 'pictures', 20)
  monkeypatch.setattr(imagenet._Conversion, 'SHARD_BYTES', 12_000)
  imagenet.prepare([folder], tmp_path / 'whole')
  write, written = imagenet._Conversion._write, []

  def stopping(self, number, *args):
    if number == stop_at:
      raise KeyboardInterrupt
    written.append(number)
    return write(self, number, *args)

  monkeypatch.setattr(imagenet._Conversion, '_write', stopping)
  with pytest.raises(KeyboardInterrupt):
    imagenet.prepare([folder], tmp_path / 'data')
  assert not (tmp_path / 'data' / IMAGENET.folder).exists()
  stop_at = -1
  imagenet.prepare([folder], tmp_path / 'data')
  assert len(written) == len(set(written)) > 4
  assert contents(tmp_path / 'data') == contents(tmp_path / 'whole')


def test_one_class_is_refused(tmp_path):
  folder = tmp_path / 'pictures' / 'only'
  folder.mkdir(parents=True)
  for i in range(4):
    (folder / f'{i}.jpg').write_bytes(jpeg(noise(i)))
  with pytest.raises(UserError, match='at least two classes, got only'):
    imagenet.prepare([tmp_path / 'pictures'], tmp_path / 'data')
