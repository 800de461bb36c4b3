"""The data sets, one `DatasetSpec` each."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
  """A data set as TFDS lays it out.

  Attributes:
    name: TFDS's name of it, 'c4', which is also that of the command that prepares it.
    config: TFDS's config, 'en'.
    version: Of the layout, '3.0.1'.
    splits: The training split first.
    features: Fields of a record, all text.
  """

  name: str
  config: str
  version: str
  splits: tuple[str, ...]
  features: tuple[str, ...]

  @property
  def tfds_name(self) -> str:
    """The name under which TFDS and seqio load it. With the version they take any such folder."""
    return f'{self.name}/{self.config}:{self.version}'

  @property
  def folder(self) -> str:
    """Its folder under the data folder."""
    return f'{self.name}/{self.config}/{self.version}'

  def prepare_command(self, data_dir: str) -> str:
    """Returns the command that prepares it in `data_dir`."""
    return f'python -m laser_pax prepare {self.name} SOURCE... --out {data_dir}'


C4 = DatasetSpec(
  name='c4',
  config='en',
  version='3.0.1',
  splits=('train', 'validation'),
  features=('text', 'timestamp', 'url'),
)
