"""A training job as the command line asks for it, and what its flags say."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from laser_pax import folders
from laser_pax.cli import cluster
from laser_pax.experiment import jobs, modes, overrides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A training job, as the command line asks for it.

  Attributes:
    experiment: The experiment's full name.
    selector: The flag that names it to paxml, 'exp' or 'fdl_config'.
    folder: The job's folder: an absolute path, or a bucket's address.
    flags: All other flags of paxml.
    attributes: Attributes of the experiment that --data, --vocab and --init_from set, by name.
    profile: Steps to trace, START:STOP, or None.
  """

  experiment: str
  selector: str
  folder: str
  flags: tuple[str, ...]
  attributes: Mapping[str, str]
  profile: str | None

  @property
  def mark(self) -> str:
    """The text that marks its folder."""
    return jobs.mark_text(self.experiment, self.changed)

  @property
  def changed(self) -> list[str]:
    """The overrides, a `NAME=VALUE` each."""
    return [f.lstrip('-').removeprefix('fdl.') for f in self.flags if is_override(f)]

  @property
  def is_alone(self) -> bool:
    """Whether this process trains without jax's distributed service."""
    return mode(self.flags) == modes.TRAIN and not cluster.is_joined(values(self.flags))

  @property
  def saves_together(self) -> bool:
    """Whether the processes of this training agree to save and end when SIGTERM comes."""
    given = values(self.flags)
    ends = cluster.is_on(given, 'exit_after_ondemand_checkpoint')
    return mode(self.flags) == modes.TRAIN and cluster.is_joined(given) and ends

  @property
  def local_folder(self) -> pathlib.Path:
    """The folder for logs, on this host."""
    if '://' in self.folder:
      return folders.cache_dir() / 'runs' / re.sub(r'\W+', '-', self.folder)
    return pathlib.Path(self.folder)

  def overrides(self) -> dict[str, Any]:
    """Returns the values that `--fdl.NAME=VALUE` gives to attributes, by name."""
    parts = (override.partition('=') for override in self.changed)
    return {name: overrides.read(value) for name, _, value in parts}

  def argv(self) -> list[str]:
    """Returns paxml's command line. Fiddle takes text only in quotes, so it gets them here."""
    argv = ['laser_pax train', f'--job_log_dir={self.folder}', '--eval_on_test']
    argv += ['--exit_after_ondemand_checkpoint'] if self.is_alone else []
    argv += [f for f in self.flags if not f.lstrip('-').startswith('fdl_config=')]
    argv = [f for f in argv if not is_override(f)]
    argv += [f'--fdl.{name}={value!r}' for name, value in self.overrides().items()]
    return [*argv, f'--{self.selector}={self.experiment}']


def values(flags: Sequence[str]) -> dict[str, str]:
  """Returns the value of each flag, by name. A switch without a value is on."""
  parts = (flag.lstrip('-').partition('=') for flag in flags)
  return {name: value if is_given else 'true' for name, is_given, value in parts}


def mode(flags: Sequence[str]) -> str:
  """Returns the mode that --mode names."""
  return values(flags).get('mode', modes.TRAIN)


def is_override(flag: str) -> bool:
  """Returns whether a flag overrides an attribute: `--fdl.NAME=VALUE`."""
  return flag.lstrip('-').startswith('fdl.')
