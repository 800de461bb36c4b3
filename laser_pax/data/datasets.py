"""The data sets, each described by one `DatasetSpec`."""

import dataclasses
import shlex


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
  """A data set in the layout of TFDS.

  Attributes:
    name: Name of the data set in TFDS, such as 'c4'.
    config: Config of the data set in TFDS, such as 'en'; None if it has none.
    version: Version of the layout, such as '3.0.1'.
    splits: Names of the splits, the training split first.
    features: Names of a record's fields.
    prepared_by: The name that `prepare` takes; None stands for `name`.
    patterns: Patterns of files that a prepared folder must have. The default is TFDS's, for each
      split.
    may_be_bare: Whether the data folder may be the data set's own folder.
    vocab_options: Options of `vocab` that this data set wants.
  """

  name: str
  config: str | None = None
  version: str
  splits: tuple[str, ...]
  features: tuple[str, ...]
  prepared_by: str | None = None
  patterns: tuple[str, ...] = ()
  may_be_bare: bool = False
  vocab_options: str = ''

  @property
  def tfds_name(self) -> str:
    """The name under which TFDS and seqio load the data set, for example 'c4/en:3.0.1'."""
    return f'{"/".join(filter(None, (self.name, self.config)))}:{self.version}'

  @property
  def folder(self) -> str:
    """The folder of the data set, relative to the data folder."""
    return '/'.join(filter(None, (self.name, self.config, self.version)))

  def is_text(self) -> bool:
    """Returns whether records hold plain text, for which a SentencePiece vocabulary is needed."""
    return 'text' in self.features

  def file_patterns(self) -> tuple[str, ...]:
    """Returns the patterns, of each of which a prepared folder must have a file."""
    return self.patterns or tuple(f'*-{split}.*' for split in self.splits)

  def find(self, data_dir: str) -> str | None:
    """Returns the folder in which each of the patterns has a file, or None.

    Args:
      data_dir: The data folder, local or in a bucket.
    """
    from etils import epath

    below = epath.Path(data_dir) / self.folder
    for folder in (below, epath.Path(data_dir)) if self.may_be_bare else (below,):
      if all(any(folder.glob(pattern)) for pattern in self.file_patterns()):
        return str(folder)
    return None

  def prepare_command(self, data_dir: str) -> str:
    """Returns the command that prepares the data set in `data_dir`."""
    name = self.prepared_by or self.name
    return f'python -m laser_pax prepare {name} SOURCE... --out {shlex.quote(data_dir)}'


def specs() -> list[DatasetSpec]:
  """Returns the data sets of this module."""
  return [x for x in globals().values() if isinstance(x, DatasetSpec)] + list(SUPER_GLUE.values())


C4 = DatasetSpec(
  name='c4',
  config='en',
  version='3.0.1',
  splits=('train', 'validation'),
  features=('text', 'timestamp', 'url'),
)

# The layout of MLPerf's records for BERT (data/prepare/wikipedia.py); the version is ours.
WIKIPEDIA = DatasetSpec(
  name='wikipedia',
  config='mlperf',
  version='1.0.0',
  splits=('train', 'eval'),
  features=(),
  patterns=('part-*-of-*', 'eval_10k'),
  may_be_bare=True,
)

IMAGENET = DatasetSpec(
  name='imagenet2012',
  version='5.1.0',
  splits=('train', 'validation'),
  features=('image', 'label', 'file_name'),
  prepared_by='imagenet',
)

# ImageNet-v2: other photographs of the same classes, to test on.
IMAGENET_V2 = DatasetSpec(
  name='imagenet_v2',
  config='matched-frequency',
  version='3.0.0',
  splits=('test',),
  features=('image', 'label', 'file_name'),
  prepared_by='imagenet',
)

LIBRISPEECH = DatasetSpec(
  name='librispeech',
  config='default',
  version='2.1.1',
  splits=(
    'train_clean100',
    'train_clean360',
    'train_other500',
    'dev_clean',
    'dev_other',
    'test_clean',
    'test_other',
  ),
  features=('speech', 'text', 'speaker_id', 'chapter_id', 'id'),
  patterns=('*-train_*.*', '*-dev_*.*'),  # One subset to train on and one to validate on will do.
  vocab_options='--dataset librispeech --character-coverage 1',
)

# The tasks of SuperGLUE by their usual names: each is a data set. Its fields are in
# data/prepare/superglue.py. Own rows need no split `test`, whose labels nobody has.
SUPER_GLUE = {
  name: DatasetSpec(
    name='super_glue',
    config={'wsc': 'wsc.fixed'}.get(name, name),
    version='1.0.2',
    splits=('train', 'validation'),
    features=(),
    prepared_by='superglue',
  )
  for name in ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc')
}
