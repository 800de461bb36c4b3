"""A decoder as a model of lm_eval, the language model evaluation harness.

lm_eval makes the prompts and the metrics. It asks a model for three things, and `PaxModel` answers
all of them. Answers are handed to lm_eval's cache as they come, a batch at a time.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import lm_eval
import numpy as np
from etils import epath
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from laser_pax.errors import UserError
from laser_pax.evaluation.restored import Restored
from laser_pax.evaluation.scoring import Model, Row, Scorer
from laser_pax.experiment import saved_models

# Greatest number of new tokens where a task does not say it [ours].
MAX_TOKENS = 64
# Attributes of experiments that say where files are.
_PLACES = ('DATA_DIR', 'INIT_FROM', 'VOCAB')


class Tokenizer(Protocol):
  """The vocabulary that a model was trained with."""

  def ids(self, text: str) -> list[int]:
    """Returns the token ids of a text, without an end of the sequence."""

  def continuation(self, prompt: Sequence[int], new_ids: Sequence[int]) -> str:
    """Returns the text that new token ids add to a prompt's text."""


class Sampling(NamedTuple):
  """What a task asks of generation.

  Attributes:
    max_tokens: Greatest number of new tokens.
    temperature: 0 takes the likeliest token.
    top_k: Number of likeliest tokens that are chosen from. 0 stands for all.
    top_p: Their least probability together. 1 stands for all.
  """

  max_tokens: int
  temperature: float
  top_k: int
  top_p: float


class PaxModel(LM):
  """A decoder of PAX, as lm_eval takes it.

  A text longer than SEQ_LEN keeps its last SEQ_LEN tokens. `is_cut` tells which do.
  """

  def __init__(
    self,
    model: Model,
    tokenizer: Tokenizer,
    generate: Callable[..., list[list[int]]],
    on_progress: Callable[[str, int, int], None] = lambda kind, answered, requests: None,
  ):
    """Takes a model and its vocabulary.

    Args:
      model: A `Restored` decoder.
      tokenizer: Its vocabulary.
      generate: The function `generate` of laser_pax/evaluation/generation.py.
      on_progress: Called after each answer: the kind of request, how many are answered, how many
        there are.
    """
    super().__init__()
    self._model, self._tokenizer, self._generate = model, tokenizer, generate
    self._on_progress = on_progress
    self._scorer = Scorer(model)
    self._seq_len = model.experiment.SEQ_LEN

  def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
    """Returns, for each (context, continuation), log p(continuation | context), and is_greedy.

    Raises:
      UserError: A request has no token at all.
    """
    rows = [self._row(request).cut(self._seq_len) for request in requests]
    scores = ((i, tuple(score)) for i, score in self._scorer.score(rows))
    return self._answer('loglikelihood', requests, scores)

  def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
    """Returns the log-likelihood of each whole text, without an end of the sequence.

    A text of more than SEQ_LEN tokens is scored in windows. Each but the first begins with the
    last token of the one before it, as context.
    """
    texts = [windows(self._tokenizer.ids(request.args[0]), self._seq_len) for request in requests]
    owners = [i for i, rows in enumerate(texts) for _ in rows]
    rows = [row for rows in texts for row in rows]

    def sums() -> Iterator[tuple[int, float]]:
      waiting, total = [len(rows) for rows in texts], [0.0] * len(texts)
      for place, score in self._scorer.score(rows):
        owner = owners[place]
        total[owner] += score.log_likelihood
        waiting[owner] -= 1
        if not waiting[owner]:
          yield owner, total[owner]

    return self._answer('loglikelihood_rolling', requests, sums())

  def generate_until(self, requests: list[Instance]) -> list[str]:
    """Returns the continuation of each context, up to the first of its stopping texts.

    Raises:
      UserError: A context has no token.
    """
    return self._answer('generate_until', requests, self._continuations(requests))

  def is_cut(self, request: Sequence[Any]) -> bool:
    """Returns whether a request has more tokens than the model takes.

    Args:
      request: Its arguments: (context, continuation), or (context, settings of generation). A text
        for a rolling log-likelihood is never cut.
    """
    if len(request) < 2:
      return False
    context, rest = request
    if isinstance(rest, Mapping):
      return len(self._tokenizer.ids(context)) + self._sampling(rest).max_tokens > self._seq_len
    return len(self._tokenizer.ids(context + rest)) > self._seq_len

  def _answer(
    self, kind: str, requests: list[Instance], answers: Iterable[tuple[int, Any]]
  ) -> list[Any]:
    """Returns the answers in the order of the requests, and caches each as it comes."""
    ordered: list[Any] = [None] * len(requests)
    for answered, (i, answer) in enumerate(answers, start=1):
      ordered[i] = answer
      self.cache_hook.add_partial(kind, requests[i].args, answer)
      self._on_progress(kind, answered, len(requests))
    return ordered

  def _row(self, request: Instance) -> Row:
    """Returns context and continuation as one row, encoded together.

    Spaces at the end of the context belong to the continuation. A token that is partly of both is
    scored.
    """
    context, continuation = request.args
    tokens = self._tokenizer.ids(context + continuation)
    if not tokens:
      raise UserError(_empty(request))
    return Row(tokens, min(len(self._tokenizer.ids(context.rstrip())), len(tokens) - 1))

  def _continuations(self, requests: list[Instance]) -> Iterator[tuple[int, str]]:
    alike: dict[Sampling, list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
      alike[self._sampling(request.args[1])].append(i)
    for sampling, places in alike.items():
      prompts = {i: self._prompt(requests[i], sampling.max_tokens) for i in places}
      places.sort(key=lambda i: -len(prompts[i]))
      while places:
        longest = self._scorer.padded(len(prompts[places[0]]) + sampling.max_tokens)
        count = self._scorer.batch_rows(longest)
        batch, places = places[:count], places[count:]
        new_ids = self._generate(self._model, [prompts[i] for i in batch], **sampling._asdict())
        for i, ids in zip(batch, new_ids, strict=True):
          text = self._tokenizer.continuation(prompts[i], ids)
          yield i, until(text, requests[i].args[1].get('until', ()))

  def _prompt(self, request: Instance, max_tokens: int) -> list[int]:
    tokens = self._tokenizer.ids(request.args[0])
    if not tokens:
      raise UserError(_empty(request))
    return tokens[-(self._seq_len - max_tokens) :]

  def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
    """Returns what the settings of a task ask for, as lm_eval's own models read them.

    Half of SEQ_LEN at least is for the context.
    """
    asked = normalize_gen_kwargs(dict(settings), MAX_TOKENS)
    max_tokens = min(asked['max_gen_toks'], self._seq_len // 2)
    temperature = asked.get('temperature', 1.0) if asked['do_sample'] else 0.0
    if not temperature:
      return Sampling(max_tokens, temperature=0.0, top_k=0, top_p=1.0)
    return Sampling(max_tokens, temperature, asked.get('top_k', 0), asked.get('top_p', 1.0))


def windows(tokens: Sequence[int], length: int) -> list[Row]:
  """Returns rows of at most `length` tokens that score each token of a text once.

  Each row but the first begins with the last token of the row before it, as context. An empty text
  has one row, without a token.
  """
  if len(tokens) <= length:
    return [Row(tokens, 0)]
  starts = range(length, len(tokens), length - 1)
  return [Row(tokens[:length], 0)] + [Row(tokens[i - 1 : i - 1 + length], 1) for i in starts]


def until(text: str, stops: str | Sequence[str]) -> str:
  """Returns the text before the first of the stopping texts."""
  for stop in [stops] if isinstance(stops, str) else stops:
    if stop:
      text = text.split(stop, 1)[0]
  return text


def evaluate(
  model: PaxModel, tasks: Mapping[str, Task], *, shots: int, limit: int | None, cache: Path
) -> Mapping[str, Any]:
  """Runs tasks, and returns lm_eval's results, with what each example gave.

  Args:
    model: The model.
    tasks: lm_eval's tasks, by name.
    shots: Number of solved examples before each prompt. A task that fixes 0 keeps 0.
    limit: Greatest number of examples of each task; None for all.
    cache: File of the answers. What it has is not computed again.
  """
  return lm_eval.simple_evaluate(
    model=model,
    tasks=list(tasks.values()),
    num_fewshot=shots,
    limit=limit,
    use_cache=str(cache),
    task_manager=TaskManager(include_defaults=False),  # Its default reads thousands of files.
    bootstrap_iters=0,  # tables.py has the standard errors; lm_eval would fork processes.
  )


def _empty(request: Instance) -> str:
  return (
    f'task {request.task_name}, example {request.doc_id}: the prompt is empty; expected a text, '
    'so mend its doc_to_text or its data'
  )


def cache_key(restored: Restored) -> str:
  """Returns a key for a model's answers: of its experiment, step, weights and vocabulary.

  It reads one vector, along the last axis, of each weight of each layer. A step of training changes
  all of them. Files may be moved: of the vocabulary, the contents count.
  """
  experiment, saved = restored.experiment, restored.saved
  changed = sorted((k, repr(v)) for k, v in vars(experiment).items() if k not in _PLACES)
  digest = hashlib.sha256(repr((type(experiment).__name__, changed, saved.step)).encode())
  digest.update(epath.Path(saved_models.vocabulary(saved) or experiment.vocabulary()).read_bytes())
  for name, weight in sorted(restored.weights.items()):
    # PAX keeps the turns of a loop in one array.
    layers = (slice(None),) if '.repeat.' in name else ()
    zeros = (0,) * (weight.ndim - 1 - len(layers))
    vectors = np.asarray(weight[(*layers, *zeros)])
    digest.update(f'{name} {weight.shape}'.encode() + vectors.tobytes())
  return digest.hexdigest()[:16]


def count_cut(model: PaxModel, evaluation: Mapping[str, Any]) -> tuple[int, int]:
  """Returns how many prompts of an evaluation were cut, and how many there were.

  Args:
    model: The model.
    evaluation: Results of `evaluate`.
  """
  prompts = {
    (task, sample['doc_id'], i): request
    for task, samples in evaluation['samples'].items()
    for sample in samples
    for i, request in enumerate(sample['arguments'])
  }
  return sum(map(model.is_cut, prompts.values())), len(prompts)
