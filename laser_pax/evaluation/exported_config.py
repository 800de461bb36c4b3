"""What an export says of its model: config.json and tokenizer_config.json."""

from typing import Any

import fiddle
from fiddle import daglish

from laser_pax.errors import UserError
from laser_pax.experiment.base import Experiment
from laser_pax.experiment.decoder import DecoderLM
from laser_pax.experiment.saved_models import Saved
from laser_pax.layers import LaserFusedDotProductAttention, use_laser
from laser_pax.layers.swap import attention_class

# Ids of T5's layout. A row of the training begins with the id 0, so a text does.
_START, _END = 0, 1
# Attributes that an exported model may have in any value. All others are a plain DecoderLM's.
_FREE = (
  *('NUM_LAYERS', 'MODEL_DIMS', 'HIDDEN_DIMS', 'NUM_HEADS', 'DIMS_PER_HEAD', 'VOCAB_SIZE'),
  *('SEQ_LEN', 'GLOBAL_BATCH_SIZE', 'ATTEN_LOGIT_CAP', 'SOFTMAX_CAP_LOGITS', 'FPROP_DTYPE'),
  *('USE_REPEATED_LAYER', 'LAYERS_PER_BLOCK', 'DROPOUT_PROB', 'TRAINING_OPTIMIZED_SHARDING'),
  'ATTENTION_SUMMARY_QUERIES',
)


def check_model(experiment: Experiment) -> None:
  """Checks that an experiment's model is one that an export describes.

  Raises:
    UserError: It is no decoder, or differs from `DecoderLM` in more than sizes and attention.
  """
  name = type(experiment).__name__
  if not isinstance(experiment, DecoderLM):
    raise UserError(
      f'{name} cannot be exported: export takes decoders alone, such as C4Laser2B, and no BERT, '
      'ViT or Conformer'
    )
  plain = DecoderLM()
  for attribute in _FREE:
    setattr(plain, attribute, getattr(experiment, attribute))
  plain.use_layout(experiment.layout())
  model, expected = experiment.task().model, plain.task().model
  expected.decoder_tpl = model.decoder_tpl  # It says how PAX decodes, and is no part of the model.
  if _is_laser(model):
    use_laser(expected, _attention(model).numerics)
  actual, known = _fields(model), _fields(expected)
  for path in sorted(actual.keys() | known.keys()):
    if actual.get(path) != known.get(path):
      raise UserError(
        f'{name} cannot be exported: its model{path} is {actual.get(path)}, and export knows '
        f'{known.get(path)} alone'
      )


def _fields(model: fiddle.Buildable) -> dict[str, Any]:
  """Returns the classes and values of a config, by path."""
  return {
    daglish.path_str(path): fiddle.get_callable(node)
    if isinstance(node, fiddle.Buildable)
    else node
    for node, path in daglish.iterate(model, memoized=False)
    if isinstance(node, fiddle.Buildable) or not daglish.is_traversable_type(type(node))
  }


def _attention(model: fiddle.Buildable) -> fiddle.Buildable:
  return next(node for node, _ in daglish.iterate(model) if attention_class(node))


def _is_laser(model: fiddle.Buildable) -> bool:
  return attention_class(_attention(model)) is LaserFusedDotProductAttention


def model_config(experiment: DecoderLM, saved: Saved) -> dict[str, Any]:
  """Returns the contents of config.json. The names are those that transformers gives such fields.

  Args:
    experiment: The experiment, which `check_model` accepts.
    saved: The checkpoint.
  """
  run = saved.run.overrides if saved.run else {}
  return {
    'model_type': 'laser_decoder',
    'architectures': ['LaserForCausalLM'],
    'auto_map': {
      'AutoConfig': 'modeling_laser.LaserConfig',
      'AutoModelForCausalLM': 'modeling_laser.LaserForCausalLM',
    },
    'attention': 'laser' if _is_laser(experiment.task().model) else 'standard',
    'num_hidden_layers': experiment.NUM_LAYERS,
    'hidden_size': experiment.MODEL_DIMS,
    'intermediate_size': experiment.HIDDEN_DIMS,
    'num_attention_heads': experiment.num_heads(),
    'head_dim': experiment.DIMS_PER_HEAD,
    'vocab_size': experiment.VOCAB_SIZE,
    'max_position_embeddings': experiment.SEQ_LEN,
    'attention_logit_cap': _cap(experiment.ATTEN_LOGIT_CAP),
    'logit_cap': _cap(experiment.SOFTMAX_CAP_LOGITS),
    'bos_token_id': _START,
    'eos_token_id': _END,
    # Not 0: from a text without a mask, `generate` would leave its start out as padding.
    'pad_token_id': _END,
    'torch_dtype': 'float32',
    'laser_pax': {
      'experiment': f'{type(experiment).__module__}.{type(experiment).__name__}',
      'overrides': [f'{name}={value}' for name, value in sorted(run.items())],
      'step': saved.step,
    },
  }


def _cap(limit: float | None) -> float | None:
  """Returns a cap of logits; None where PAX has none."""
  return limit if limit and limit > 0 else None


def tokenizer_config(experiment: DecoderLM) -> dict[str, Any]:
  """Returns the contents of tokenizer_config.json."""
  return {
    'tokenizer_class': 'LaserTokenizer',
    'auto_map': {'AutoTokenizer': ['tokenization_laser.LaserTokenizer', None]},
    'model_max_length': experiment.SEQ_LEN,
  }
