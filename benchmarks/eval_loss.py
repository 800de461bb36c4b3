"""The log-likelihood of held-out passages by lm_eval's model, beside the loss of PAX's evaluation.

    python benchmarks/eval_loss.py JOB [JOB...]

For each job of a decoder it takes 100 passages of the sample's validation split. One side is
`PaxModel`, as lm_eval calls it. The other is PAX's evaluation step, on rows that the training's own
converter makes. It prints both in nats a token, and the greatest difference of a passage, divided
by its number of tokens.
"""

import itertools
import json
import pathlib
import sys

import numpy as np
import tensorflow as tf
from lm_eval.api.instance import Instance
from paxml import trainer_lib
from praxis import py_utils

from laser_pax.cli.checkpoint import open_run
from laser_pax.data import datasets, records, sample, text_lm
from laser_pax.evaluation import generation, harness
from laser_pax.evaluation.restored import Restored

PASSAGES = 100


def passages(tokenizer: generation.Tokenizer, length: int, vocab_size: int) -> list[str]:
  """Returns held-out passages of 1 to length / 2 words, each of at most `length` tokens."""
  source = sample.find_source_or_sample(None, None, vocab_size)
  texts = records.read_texts(pathlib.Path(source.data_dir), datasets.C4, 'validation')
  words = itertools.chain.from_iterable(text.split() for text in texts)
  counts = np.random.default_rng(0).integers(1, length // 2, 2 * PASSAGES)
  pieces = (' '.join(itertools.islice(words, int(count))) for count in counts)
  fitting = (piece for piece in pieces if 0 < len(tokenizer.ids(piece)) <= length)
  return list(itertools.islice(fitting, PASSAGES))


def nats_by_lm_eval(model: harness.PaxModel, texts: list[str]) -> np.ndarray:
  """Returns minus the log-likelihood of each text, as lm_eval asks for it."""
  requests = [
    Instance('loglikelihood_rolling', doc={}, arguments=(text,), idx=0, metadata=('text', i, 1))
    for i, text in enumerate(texts)
  ]
  return -np.array(model.loglikelihood_rolling(requests))


def nats_by_training(model: Restored, rows: list[list[int]]) -> np.ndarray:
  """Returns the summed loss of each row of tokens, by PAX's evaluation step."""
  length = model.experiment.SEQ_LEN
  tokens = tf.data.Dataset.from_generator(
    lambda: ({'targets': row} for row in rows),
    output_signature={'targets': tf.TensorSpec([None], tf.int32)},
  )
  converted = text_lm.TextFeatures(pack=False, bos_id=0)(tokens, {'targets': length})
  specs = text_lm.batch_specs(len(rows), length)
  (fields,) = converted.batch(len(rows)).as_numpy_iterator()
  batch = py_utils.NestedMap({name: fields[name].astype(specs[name].dtype) for name in specs})
  output = model.run(trainer_lib.eval_step_single_learner, batch)
  return (output.per_example_out.per_example_xent * batch.weights).sum(-1)


def main() -> None:
  """Prints a line of JSON for each job."""
  for job in sys.argv[1:]:
    experiment, saved = open_run(None, job)
    model = Restored(experiment, saved)
    tokenizer = generation.Tokenizer(experiment, saved)
    texts = passages(tokenizer, experiment.SEQ_LEN, experiment.VOCAB_SIZE)
    rows = [tokenizer.ids(text) for text in texts]
    counts = np.array([len(row) for row in rows])
    ours = nats_by_lm_eval(harness.PaxModel(model, tokenizer, generation.generate), texts)
    theirs = nats_by_training(model, rows)
    record = {
      'experiment': type(experiment).__name__,
      'step': saved.step,
      'passages': len(rows),
      'tokens': int(counts.sum()),
      'lm_eval': round(float(ours.sum() / counts.sum()), 7),
      'training': round(float(theirs.sum() / counts.sum()), 7),
      'greatest_difference': float(np.abs((ours - theirs) / counts).max()),
    }
    print(json.dumps(record))


if __name__ == '__main__':
  main()
