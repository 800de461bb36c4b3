"""Text from a decoder, token by token, by PAX's decoding with a cache of keys and values.

A row of training begins with id 0, so the model reads a prompt as [0, tokens...]. Prompts are
padded to few lengths, and batches to few sizes, so that few programs are compiled. Neither changes
what a row gives.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from etils import epath
from paxml import trainer_lib
from praxis import base_layer, decoder_hparams, pax_fiddle, py_utils, token_samplers

from laser_pax.data import vocabulary
from laser_pax.errors import UserError
from laser_pax.evaluation.restored import Restored
from laser_pax.experiment import jobs, saved_models
from laser_pax.experiment.base import Experiment

NestedMap = py_utils.NestedMap

# The shortest length to which prompts are padded, and to which the number of new tokens is rounded.
_MIN_LENGTH = 16


class Sampling(NamedTuple):
  """How the next token is chosen.

  Attributes:
    temperature: Next tokens have the probabilities softmax(logits / temperature). 0 takes the
      likeliest token.
    top_k: Number of likeliest tokens that are chosen from. 0 stands for all.
    top_p: Only the likeliest tokens are chosen from, as few as have more than this probability
      together. It is that of the `top_k` tokens, at temperature 1. 1 stands for all.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def check(self, vocab_size: int) -> None:
    """Checks the numbers.

    Raises:
      UserError: One is out of its range.
    """
    if not 0 <= self.temperature < float('inf'):
      raise UserError(f'temperature must be 0 or greater, got {self.temperature}')
    if not 0 <= self.top_k <= vocab_size:
      raise UserError(f'top_k must be between 0, for all, and {vocab_size}, got {self.top_k}')
    if not 0 < self.top_p <= 1:
      raise UserError(f'top_p must be above 0 and at most 1, got {self.top_p}')
    if not self.temperature and (self.top_k > 1 or self.top_p < 1):
      raise UserError('top_k and top_p choose nothing at temperature 0: give a temperature above 0')


def check_family(experiment: Experiment) -> None:
  """Checks that an experiment's model writes text.

  Raises:
    UserError: It does not.
  """
  if not experiment.SCORES_TEXT:
    raise UserError(
      f'{type(experiment).__name__} generates no text: expected a decoder, such as C4LaserTiny'
    )


def check(
  experiment: Experiment, prompts: Sequence[Sequence[int]], max_tokens: int, sampling: Sampling
) -> None:
  """Checks the arguments of `generate`. It takes no weights, so it can be called before they load.

  Raises:
    UserError: As for `generate`.
  """
  check_family(experiment)
  sampling.check(experiment.VOCAB_SIZE)
  if max_tokens < 1:
    raise UserError(f'max_tokens must be at least 1, got {max_tokens}')
  for number, prompt in enumerate(prompts, start=1):
    if not len(prompt):
      raise UserError(f'prompt {number} is empty: a model continues a text; give a word or more')
    if len(prompt) + max_tokens > experiment.SEQ_LEN:
      raise UserError(
        f'prompt {number} has {len(prompt)} tokens, and {max_tokens} more are asked for: the model '
        f'has SEQ_LEN = {experiment.SEQ_LEN} positions; shorten the prompt, or ask for fewer tokens'
      )
    if not 0 <= min(prompt) <= max(prompt) < experiment.VOCAB_SIZE:
      raise UserError(
        f'prompt {number} has ids from {min(prompt)} to {max(prompt)}, but the model has '
        f'VOCAB_SIZE = {experiment.VOCAB_SIZE}: another vocabulary made it'
      )


class Tokenizer:
  """The vocabulary that a model was trained with: texts to token ids, and back."""

  def __init__(self, experiment: Experiment, saved: saved_models.Saved):
    """Reads the copy that the job keeps. A job without one has the experiment's own vocabulary.

    Raises:
      UserError: The vocabulary is missing, or is not that of the model.
    """
    self._experiment = experiment
    path = saved_models.vocabulary(saved) or experiment.vocabulary()
    vocabulary.check_size(path, experiment.VOCAB_SIZE, f'{saved.job}/{jobs.VOCABULARY}')
    self._processor = sentencepiece.SentencePieceProcessor(
      model_proto=epath.Path(path).read_bytes()
    )

  def ids(self, text: str) -> list[int]:
    """Returns the token ids of a text, without an end of the sequence."""
    return self._processor.encode(text)

  def prompt_ids(self, text: str) -> list[int]:
    """Returns the token ids of a prompt, as the experiment's rows have it before an answer."""
    return self._experiment.prompt_ids(self.ids(text))

  def continuation(self, prompt: Sequence[int], new_ids: Sequence[int]) -> str:
    """Returns the text that new token ids add to a prompt's text, with the space before it."""
    before, after = (self._processor.decode(list(x)) for x in (prompt, [*prompt, *new_ids]))
    return after[len(before) :]


def generate(
  restored: Restored,
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  seed: int = 0,
) -> list[list[int]]:
  """Returns the continuation of each prompt.

  But for rounding, what a prompt gives does not depend on the other prompts. Where tokens are
  drawn, it depends on `seed`, on the prompt's place, and on the length of its batch.

  Args:
    restored: A decoder's weights.
    prompts: Token ids of each prompt, without the 0 that rows begin with.
    max_tokens: Greatest number of new tokens of each prompt.
    temperature: See `Sampling`.
    top_k: See `Sampling`.
    top_p: See `Sampling`.
    seed: Seed of the draws.

  Returns:
    The new token ids of each prompt. The end of the sequence, `vocabulary.EOS_ID`, is the last
    one where the model ended; a continuation without it was cut at `max_tokens`.

  Raises:
    UserError: A prompt is empty, has an id that is not in the vocabulary, or is too long for the
      model. Or a number is out of its range.
  """
  sampling = Sampling(temperature, top_k, top_p)
  continuations: list[list[int]] = [[] for _ in prompts]
  for batch in _batches(restored, prompts, max_tokens, sampling, seed):
    output = restored.run(batch.step, batch.rows(max_tokens))
    for row, index in enumerate(batch.indices):
      first, last = 1 + len(prompts[index]), output.decode_lengths[row, 0]
      continuations[index] = output.output_ids[row, 0, first:last].tolist()
  return continuations


def has_ended(new_ids: Sequence[int]) -> bool:
  """Returns whether the model ended a continuation, which else was cut at `max_tokens`."""
  return len(new_ids) > 0 and new_ids[-1] == vocabulary.EOS_ID


def compile_for(
  restored: Restored,
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> float:
  """Compiles what `generate` needs for these arguments, and returns the seconds that it took.

  Raises:
    UserError: As for `generate`.
  """
  start, compiled = time.perf_counter(), set()
  for batch in _batches(restored, prompts, max_tokens, Sampling(temperature, top_k, top_p), seed=0):
    if batch.shape not in compiled:
      restored.run(batch.step, batch.rows(max_tokens=1))
      compiled.add(batch.shape)
  return time.perf_counter() - start


class _Batch(NamedTuple):
  """Some of the prompts, as one batch of the model.

  Attributes:
    step: Function of the step, as `Restored.run` takes it.
    indices: Places of its prompts among all.
    ids: int32 [B, P], a prompt a row, from the left. B and P are rounded up.
    lengths: int32 [B], the ids of each row that are no padding.
    keys: uint32 [B, 2], jax's random key of each row.
  """

  step: Callable[..., tuple[None, NestedMap]]
  indices: Sequence[int]
  ids: np.ndarray
  lengths: np.ndarray
  keys: np.ndarray

  @property
  def shape(self) -> tuple:
    """What it is compiled for."""
    return (self.step, *self.ids.shape)

  def rows(self, max_tokens: int) -> NestedMap:
    """Returns the fields that PAX's decoding reads. Rows without a prompt end after one token."""
    is_prompt = np.arange(len(self.ids)) < len(self.indices)
    return NestedMap(
      ids=self.ids,
      paddings=(np.arange(self.ids.shape[1]) >= self.lengths[:, None]).astype(np.float32),
      prefix_lengths=self.lengths,
      per_example_max_decode_steps=np.where(is_prompt, max_tokens, 1).astype(np.int32),
      gumbel_prng_key=self.keys,
    )


def _batches(
  restored: Restored,
  prompts: Sequence[Sequence[int]],
  max_tokens: int,
  sampling: Sampling,
  seed: int,
) -> list[_Batch]:
  """Returns the prompts in batches of like lengths, after checking all arguments."""
  experiment = restored.experiment
  check(experiment, prompts, max_tokens, sampling)
  step = _step(_power_of_two(max_tokens), sampling)
  devices = restored.data_parallel()
  most = devices * max(1, experiment.eval_batch_size() // devices)
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  batches = []
  for start in range(0, len(order), most):
    indices = order[start : start + most]
    rows = min(most, devices * _power_of_two(-(-len(indices) // devices), at_least=1))
    length = _power_of_two(1 + max(len(prompts[i]) for i in indices))
    ids, lengths = np.zeros((rows, length), np.int32), np.ones(rows, np.int32)
    for row, i in enumerate(indices):
      lengths[row] = 1 + len(prompts[i])
      ids[row, 1 : lengths[row]] = prompts[i]
    batches.append(_Batch(step, indices, ids, lengths, _keys(seed, indices, rows)))
  return batches


def _keys(seed: int, indices: Sequence[int], rows: int) -> np.ndarray:
  """Returns a key for each row, which depends on the place of its prompt alone."""
  places = np.zeros(rows, np.uint32)
  places[: len(indices)] = indices
  return np.asarray(
    jax.vmap(functools.partial(jax.random.fold_in, jax.random.PRNGKey(seed)))(places)
  )


def _power_of_two(length: int, at_least: int = _MIN_LENGTH) -> int:
  return max(at_least, 1 << (length - 1).bit_length())


class Float32Sampler(token_samplers.DefaultNextTokenSampler):
  """Praxis's choice of the next token, on logits in float32.

  In bfloat16 the noise of a draw is rounded to three digits, and tokens with like logits get like
  numbers. Then their chances are not those of the softmax.
  """

  def __call__(self, model, logits, *args, **kwargs) -> NestedMap:
    """As the base's."""
    return super().__call__(model, logits.astype(jnp.float32), *args, **kwargs)


@functools.cache
def _step(max_decode_steps: int, sampling: Sampling) -> Callable[..., tuple[None, NestedMap]]:
  """Returns the function that decodes a batch, in the form that PAX's partitioner takes."""
  decoder = decoder_hparams.SampleDecoderHParams(
    seqlen=max_decode_steps,  # Not read where a pass makes the prefix, but it must be positive.
    max_decode_steps=max_decode_steps,
    fprop_for_prefix=True,
    eos_id=vocabulary.EOS_ID,
    temperature=sampling.temperature,
    k=sampling.top_k if sampling.temperature else 1,
    p=sampling.top_p if sampling.top_p < 1 else None,
    next_token_sampler_tpl=pax_fiddle.Config(Float32Sampler),
  )

  def step(task, state, key, inputs, fprop_dtype, var_weight_hparams, static_args=None):
    del static_args
    (_, decoded, _), _ = trainer_lib.decode_step(
      task.model.clone(decoder_tpl=decoder),
      state,
      key,
      var_weight_hparams,
      inputs,
      fprop_dtype,
      apply_mutable_list=(base_layer.DECODE_CACHE,),
    )
    return None, NestedMap(output_ids=decoded.output_ids, decode_lengths=decoded.decode_lengths)

  return step
