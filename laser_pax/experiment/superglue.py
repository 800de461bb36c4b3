"""Decoders that go on from a checkpoint of their pre-training, on SuperGLUE."""

import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from praxis import py_utils

from laser_pax.data import sources, superglue, vocabulary
from laser_pax.data.datasets import SUPER_GLUE
from laser_pax.data.superglue_tasks import TASKS
from laser_pax.errors import UserError
from laser_pax.experiment import checks, equal_models, family, jobs, modes, saved_models
from laser_pax.experiment.decoder import DecoderLM
from laser_pax.experiment.evaluation import SCORE, MeanProgram, TaskEvalProgram
from laser_pax.experiment.overrides import FollowsFrom

INIT_FROM_VARIABLE = 'LASER_PAX_INIT_FROM'
# All tasks together, drawn from in proportion to their numbers of examples.
MIXTURE = 'mixture'
# What the mean of the tasks is called among the evaluations.
MEAN = 'mean'


def _steps(experiment: 'SuperGlueLM') -> int:
  examples = sum(experiment.examples().values())
  return math.ceil(experiment.EPOCHS * examples / experiment.GLOBAL_BATCH_SIZE)


def _steps_of_an_epoch(experiment: 'SuperGlueLM') -> int:
  return max(1, round(experiment.NUM_TRAIN_STEPS / experiment.EPOCHS))


class SuperGlueLM(DecoderLM):
  """A decoder-only language model, fine-tuned on SuperGLUE as texts with answers to write.

  A config derives it from the experiment of the pre-training too, whose model it is:
  `class SuperGlueStandard2B(SuperGlueLM, C4Standard2B)`. PAX loads the weights at step 0. The
  optimiser, its schedule and the step begin anew, unless INIT_FROM_TAKES is 'all'.

  Attributes:
    TASK: Name of one task, such as 'boolq', or 'mixture' for all eight.
    INIT_FROM: Job of the pre-training, or one of its checkpoints. None stands for
      LASER_PAX_INIT_FROM.
    VOCAB: SentencePiece model. None stands for LASER_PAX_VOCAB, and without that for the copy that
      the job of the pre-training keeps.
    EPOCHS: How often training goes through the examples.
    NUM_TRAIN_STEPS: Steps of the training. They follow from EPOCHS, unless they are set.
    INPUTS_LEN: Tokens that an input is cut to.
    TARGETS_LEN: Tokens that a target is cut to, and the most that are decoded.
    EVAL_SPLITS: Splits to evaluate on. METRIC is that of the validation.
  """

  TASK: str = MIXTURE

  EPOCHS = 10
  INPUTS_LEN = 576  # [ours]; T5 has 512 and 62. With 64 a row has five blocks of a TPU's kernel.
  TARGETS_LEN = 64  # [ours]
  EVAL_SPLITS: tuple[str, ...] = ('validation',)

  GLOBAL_BATCH_SIZE = 128  # [ours], as T5
  SEQ_LEN: int = FollowsFrom('INPUTS_LEN + TARGETS_LEN', lambda e: e.INPUTS_LEN + e.TARGETS_LEN)
  NUM_TRAIN_STEPS: int = FollowsFrom('EPOCHS x examples / GLOBAL_BATCH_SIZE', _steps)
  WARMUP_STEPS: int = FollowsFrom('NUM_TRAIN_STEPS / 10', lambda e: e.NUM_TRAIN_STEPS // 10)
  EVAL_INTERVAL_STEPS: int = FollowsFrom('the steps of an epoch', _steps_of_an_epoch)
  CHECKPOINT_EVERY_N_STEPS: int = FollowsFrom('the steps of an epoch', _steps_of_an_epoch)
  LEARNING_RATE = 1e-5  # [ours]

  @property
  def METRIC(self) -> family.Metric:  # noqa: N802
    """The mean of the tasks' scores, or the score of the one task, from 0 to 100."""
    split = MEAN if self.TASK == MIXTURE else f'{self.TASK}_validation'
    return family.Metric(name=SCORE, label=SCORE, split=split, better='higher')

  def pretrained(self) -> type[DecoderLM]:
    """Returns the experiment whose checkpoints this one goes on from. A config defines it."""
    raise NotImplementedError

  def tasks(self) -> tuple[str, ...]:
    """Returns the names of the tasks to train and evaluate on."""
    return tuple(TASKS) if self.TASK == MIXTURE else (self.TASK,)

  def examples(self) -> dict[str, int]:
    """Returns the number of training examples of each task.

    They are those of the prepared data. If these are not there, or if the experiment is planned for
    a slice (`on`), they are SuperGLUE's.
    """
    if self._pod is None:
      try:
        data_dir = self.source().data_dir
      except UserError:  # check_data says what is missing.
        return self.known_examples()
      return {name: superglue.count_examples(name, data_dir) for name in self.tasks()}
    return self.known_examples()

  def known_examples(self) -> dict[str, int]:
    """Returns the number of T5's training examples of each of SuperGLUE's tasks."""
    return {name: TASKS[name].examples for name in self.tasks()}

  def task(self) -> family.Task:
    """Returns the task: PAX's model, which decodes greedily.

    Raises:
      UserError: The sizes do not fit each other.
    """
    task_p = super().task()
    decoder = task_p.model.decoder_tpl
    decoder.seqlen = self.SEQ_LEN + 1
    decoder.max_decode_steps = self.TARGETS_LEN
    decoder.fprop_for_prefix = True
    decoder.eos_id = vocabulary.EOS_ID
    return task_p

  def init_from(self) -> sources.Named | None:
    """Returns the job or checkpoint that INIT_FROM or LASER_PAX_INIT_FROM names, or None."""
    variable = os.environ.get(INIT_FROM_VARIABLE)
    return super().init_from() or sources.first_named(sources.Named(variable, INIT_FROM_VARIABLE))

  def data_dir(self) -> str | None:
    """Returns the folder of the prepared data; None where flags or the environment name it."""
    return self.DATA_DIR

  def vocab(self) -> str | None:
    """Returns the SentencePiece model: the named one, else that of the pre-training; or None.

    A run that has begun keeps a copy of it.
    """
    if sources.is_named(None, self.VOCAB):
      return self.VOCAB
    folder = modes.job_folder()
    kept = jobs.kept_vocabulary(folder) if folder and not modes.starts_anew() else None
    named = self.init_from()
    if kept is None and named is not None and sources.exists(named.path):
      kept = saved_models.vocabulary(saved_models.find(named.path, named.named_by))
    return None if kept is None else str(kept)

  def source(self) -> sources.Source:
    """Returns the data and the vocabulary of this experiment, after checking both.

    Raises:
      UserError: One is missing, or the vocabulary does not fit VOCAB_SIZE.
    """
    data_dir, vocab = self.data_dir(), self.vocab()
    return [
      sources.find_source(SUPER_GLUE[name], data_dir, vocab, self.VOCAB_SIZE)
      for name in self.tasks()
    ][0]

  def datasets(self) -> family.Inputs:
    """Returns the input to train on, and one for each task and split to score.

    Raises:
      UserError: As for `source`.
    """
    train = superglue.train_input(
      self.examples(),
      batch_size=self.GLOBAL_BATCH_SIZE // jax.process_count(),
      seed=self.DATA_SEED,
      **self._rows(),
    )
    return [train, *self._inputs(superglue.eval_input)]

  def decode_datasets(self) -> family.Inputs:
    """Returns an input for each task and split, without targets: the model writes them."""
    return self._inputs(superglue.decode_input)

  def _inputs(self, make) -> family.Inputs:
    batch_size = self.eval_batch_size() // jax.process_count()
    rows = self._rows()
    return [
      make(name, split, batch_size=batch_size, **rows)
      for split in self.EVAL_SPLITS
      for name in self.tasks()
    ]

  def _rows(self) -> dict:
    source = self.source()
    lengths = {'inputs': self.INPUTS_LEN, 'targets': self.TARGETS_LEN}
    return {'data_dir': source.data_dir, 'vocab': source.vocab, 'lengths': lengths}

  def evaluations(self) -> list:
    """Returns PAX's evaluations, which also decode, and the mean of several tasks."""
    programs = [
      TaskEvalProgram(input_p, decode_input_p)
      for input_p, decode_input_p in zip(self.eval_datasets(), self.decode_datasets(), strict=True)
    ]
    if self.TASK == MIXTURE:
      first = self.EVAL_SPLITS.index('validation') * len(self.tasks())
      programs.append(MeanProgram(programs[first : first + len(self.tasks())], MEAN))
    return programs

  def prompt_ids(self, ids: Sequence[int]) -> list[int]:
    """Returns a prompt as a row has its input: with an EOS, after which the target begins."""
    return [*ids, vocabulary.EOS_ID]

  def input_specs(self, batch_size: int) -> py_utils.NestedMap:
    """Returns the shapes and dtypes of a batch of `batch_size` rows."""
    return superglue.batch_specs(batch_size, self.SEQ_LEN)

  def random_batch(self, rng: np.random.Generator, batch_size: int) -> py_utils.NestedMap:
    """Returns a batch of random tokens. Those of the input have no weight."""
    batch = super().random_batch(rng, batch_size)
    is_input = batch.segment_pos < self.INPUTS_LEN
    batch.inputs_indicator = is_input.astype(np.int32)
    batch.weights = 1 - is_input.astype(np.float32)
    return batch

  def describe(self) -> dict[str, str]:
    """Returns the rows of `show`: the decoder's, and the tasks."""
    examples = self.examples()
    epochs = f'{self.EPOCHS} epochs of {sum(examples.values()):,} examples'
    return {
      **super().describe(),
      'tasks': f'{", ".join(examples)}: {epochs}',
      'tokens of inputs, of targets': f'{self.INPUTS_LEN:,}, {self.TARGETS_LEN:,}',
      'starts from': f'a checkpoint of {self.pretrained().__name__}',
    }

  def chance(self) -> family.Chance:
    """Returns the score of the commonest target of each task, given to each example."""
    source = self.source()
    scores = [superglue.chance(name, source.data_dir, source.vocab) for name in self.tasks()]
    return family.Chance('commonest target', sum(scores) / len(scores))

  def check(self) -> None:
    """Checks the task and the sizes.

    Raises:
      UserError: There is no such task, or sizes do not fit; the message has the fix.
    """
    if self.TASK != MIXTURE and self.TASK not in TASKS:
      raise UserError(f'TASK = {self.TASK!r}: expected {MIXTURE} or one of {", ".join(TASKS)}')
    if 'validation' not in self.EVAL_SPLITS or set(self.EVAL_SPLITS) - {'train', 'validation'}:
      raise UserError(
        f"EVAL_SPLITS = {self.EVAL_SPLITS}: expected ('validation',) or ('train', 'validation')"
      )
    checks.check_at_least(self, 1, ('EPOCHS',))
    checks.check_at_least(self, 2, ('INPUTS_LEN', 'TARGETS_LEN'))  # A token, and the EOS.
    if self.SEQ_LEN != self.INPUTS_LEN + self.TARGETS_LEN:
      raise UserError(
        f'SEQ_LEN = {self.SEQ_LEN} must be INPUTS_LEN + TARGETS_LEN = '
        f'{self.INPUTS_LEN + self.TARGETS_LEN}: set these two, and leave SEQ_LEN out'
      )
    super().check()

  def check_data(self) -> None:
    """Checks that the data are whole.

    Raises:
      UserError: Something is missing or broken; the message has the fix.
    """
    source = self.source()
    for name in self.tasks():
      command = SUPER_GLUE[name].prepare_command(source.data_dir)
      superglue.check_data(name, source.data_dir, command)

  def check_initial(self) -> None:
    """Checks that INIT_FROM is of the pre-training, with this model and vocabulary.

    Raises:
      UserError: It is not, or nothing is named; the message has the fix.
    """
    name = f'{self.pretrained().__module__}.{self.pretrained().__name__}'
    named, saved = self.init_from(), self.initial()
    if named is None or saved is None:
      raise UserError(
        f'nothing to start from: neither INIT_FROM nor {INIT_FROM_VARIABLE} names a checkpoint; '
        f'give --init_from=DIR, the --job_log_dir of a run of {name}'
      )
    if saved.run is not None and saved.run.experiment != name:
      raise UserError(
        f'{named.named_by}={named.path} holds a run of {saved.run.experiment}, and '
        f'{type(self).__name__} goes on from one of {name}: name a run of that'
      )
    super().check_initial()
    equal_models.check(self, self.pretrained(), saved, own=vars(SuperGlueLM))

  def check_initial_vocabulary(self, saved: saved_models.Saved) -> None:
    """Checks that a run to start from had this vocabulary.

    Raises:
      UserError: It had another.
    """
    kept, own = saved_models.vocabulary(saved), self.source().vocab
    if kept is not None and not sources.same_contents(kept, own):
      raise UserError(
        f'{own} is not the vocabulary of {saved.job}, which is {kept}: leave VOCAB and '
        f'{sources.VOCAB_VARIABLE} out, and that one is taken'
      )
