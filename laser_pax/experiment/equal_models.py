"""Whether an experiment has the model of the run that it goes on from, beyond the shapes.

Caps, precision and the form of attention leave no trace in the weights.
"""

from collections.abc import Collection, Mapping
from typing import Any

from praxis import pax_fiddle

from laser_pax.errors import UserError
from laser_pax.experiment.decoder import DecoderLM
from laser_pax.experiment.saved_models import Saved

# These say how a model is trained, and not what it computes afterwards.
_FREE = (
  'GLOBAL_BATCH_SIZE',
  'DROPOUT_PROB',
  'TRAINING_OPTIMIZED_SHARDING',
  'ATTENTION_SUMMARY_QUERIES',
)


def check(
  experiment: DecoderLM, pretrained: type[DecoderLM], saved: Saved, own: Collection[str]
) -> None:
  """Checks that an experiment has the model of a run. A job without a mark tells nothing of it.

  Layout, dropout and the way of decoding may differ.

  Args:
    experiment: The experiment.
    pretrained: The class of the run's experiment.
    saved: A checkpoint of the run.
    own: Names of attributes of the training, which the experiment has its own values of.

  Raises:
    UserError: The models differ; the message has the attributes, and the flags that mend them.
  """
  if saved.run is None:
    return
  run = _as_it_was(pretrained, saved.run.overrides, experiment)
  model = _model(run)
  if _model(experiment) == model:
    return
  name = type(experiment).__name__
  attributes = [
    attribute
    for attribute in sorted(set(dir(run)) & set(dir(experiment)) - set(own))
    if attribute.isupper()
    and getattr(run, attribute) != getattr(experiment, attribute)
    and _changes(model, attribute, pretrained, saved.run.overrides, experiment)
  ]
  if not attributes:
    raise UserError(
      f'{name} has another model than {pretrained.__name__}: let `task` make the same in both'
    )
  there = [f'{attribute}={_shown(run, attribute)}' for attribute in attributes]
  here = [f'{attribute}={_shown(experiment, attribute)}' for attribute in attributes]
  raise UserError(
    f'{saved.job} was trained with {", ".join(there)}, but {name} has {", ".join(here)}: give '
    f'--fdl_config={name} --fdl.{" --fdl.".join(there)}'
  )


def _as_it_was(
  pretrained: type[DecoderLM], overrides: Mapping[str, Any], experiment: DecoderLM
) -> DecoderLM:
  """Returns the experiment of a run, laid out and trained as `experiment` is."""
  run = pretrained()
  free = {name: getattr(experiment, name) for name in _FREE}
  for name, value in {**overrides, **free}.items():
    setattr(run, name, value)
  run.check_overrides()
  run.use_layout(experiment.layout())
  return run


def _model(experiment: DecoderLM) -> pax_fiddle.Config:
  """Returns the config of an experiment's model, without the way in which it decodes."""
  model = experiment.task().model
  model.decoder_tpl = None
  return model


def _changes(
  model: pax_fiddle.Config,
  attribute: str,
  pretrained: type[DecoderLM],
  overrides: Mapping[str, Any],
  experiment: DecoderLM,
) -> bool:
  """Returns whether the model of a run would be another with `experiment`'s value."""
  changed = {**overrides, attribute: getattr(experiment, attribute)}
  try:
    return _model(_as_it_was(pretrained, changed, experiment)) != model
  except UserError:  # It does not fit the run's other attributes, as a schedule's steps may not.
    return False


def _shown(experiment: DecoderLM, attribute: str) -> str:
  """Returns an attribute's value as a flag takes it; a class by its name."""
  value = getattr(experiment, attribute)
  return str(getattr(value, '__name__', value))
