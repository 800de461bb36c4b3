"""The data sets, each described by one `DatasetSpec`."""

import dataclasses
import shlex


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
  """A data set in the layout of TFDS.

  Attributes:
    name: Name of the data set in TFDS, such as 'c4'. `prepare` takes the same name.
    config: Config of the data set in TFDS, such as 'en'.
    version: Version of the layout, such as '3.0.1'.
    splits: Names of the splits, the training split first.
    features: Names of a record's fields of text.
  """

  name: str
  config: str
  version: str
  splits: tuple[str, ...]
  features: tuple[str, ...]

  @property
  def tfds_name(self) -> str:
    """The name under which TFDS and seqio load the data set, for example 'c4/en:3.0.1'."""
    return f'{self.name}/{self.config}:{self.version}'

  @property
  def folder(self) -> str:
    """The folder of the data set, relative to the data folder."""
    return f'{self.name}/{self.config}/{self.version}'

  def prepare_command(self, data_dir: str) -> str:
    """Returns the command that prepares the data set in `data_dir`."""
    return f'python -m laser_pax prepare {self.name} SOURCE... --out {shlex.quote(data_dir)}'


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
)
