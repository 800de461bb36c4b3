"""Folders of jobs as `train`, `analyse` and `eval` leave them, without checkpoints."""

import json
import pathlib

import numpy as np

from laser_pax.analysis import lines

SIZES = dict(NUM_LAYERS=2, MODEL_DIMS=32, HIDDEN_DIMS=64, DIMS_PER_HEAD=8, SEQ_LEN=32)
STEPS, INTERVAL = 40, 10
_THRESHOLDS = ('1e-12', '1e-07', '0.001', '0.1')


def losses(form: str) -> dict[int, float]:
  """Returns the test loss at each evaluation. LASER is 4 steps ahead."""
  ahead = 4 if form == lines.LASER else 0
  return {step: 6.0 - 0.05 * (step + ahead) for step in range(INTERVAL, STEPS + 1, INTERVAL)}


def write(folder: pathlib.Path, name: str, form: str) -> pathlib.Path:
  """Writes the folder of a decoder's job, and returns it. A step takes a second, once 2 skipped."""
  folder.mkdir(parents=True)
  overrides = {**SIZES, 'NUM_TRAIN_STEPS': STEPS, 'WARMUP_STEPS': 4}
  mark = [f'laser_pax.configs.{name}', *(f'fdl.{k}={v}' for k, v in overrides.items())]
  (folder / 'experiment.txt').write_text('\n'.join(mark) + '\n')
  write_progress(folder, form)
  (folder / 'logs').mkdir()
  (folder / 'logs' / 'train-20260102-030405-my-host-17.log').write_text('')
  return folder


def write_progress(folder: pathlib.Path, form: str) -> None:
  """Writes the records of the steps and evaluations."""
  records = []
  for step in range(1, STEPS + 1):
    record = {'kind': 'train', 'step': step, 'loss': 6.0 - 0.05 * step, 'seconds': float(step)}
    records.append(record | {'tokens_per_second': 256.0, 'skipped_steps': 2 * (step > 5)})
    if step in losses(form):
      figures = {'loss': losses(form)[step], 'perplexity': float(np.exp(losses(form)[step]))}
      records.append({'kind': 'eval', 'step': step, 'split': 'validation', **figures})
      records[-1]['seconds'] = float(step)
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / 'progress.jsonl').write_text(text)


def add_analysis(folder: pathlib.Path, form: str, share: float) -> None:
  """Adds what `analyse` measured at two steps: the shares rise, LASER's gradients are doubled."""
  (folder / 'analysis').mkdir()
  for step in (INTERVAL, STEPS):
    below = (0.0, share * step / STEPS / 4, share * step / STEPS, 0.9)
    measured = []
    for layer in range(2):
      common = {'experiment': 'x', 'step': step, 'layer': layer, 'rows': 8}
      shares = {t: [x, x] for t, x in zip(_THRESHOLDS, below, strict=True)}
      own = {'kind': 'attention', 'attention': form, 'pairs': 9, 'share_below': shares}
      own |= {'value_std': [0.5, 0.7], 'value_range': [2.0, 4.0], 'value_range_max': [5.0, 6.0]}
      measured.append(common | own)
      for other, factor in ((lines.STANDARD, 1.0), (lines.LASER, 2.0)):
        norms = {'logits': [3.0 * factor, 4.0 * factor], 'query': factor, 'key': factor}
        gradients = {'kind': 'gradients', 'attention': other, 'value': factor, **norms}
        measured.append(common | gradients)
    lines.write(lines.file_of(folder / 'analysis', step, 8), measured)


def add_evaluation(folder: pathlib.Path) -> None:
  """Adds what `eval` leaves."""
  task = {'metric': 'acc', 'value': 0.625, 'standard_error': 0.01, 'examples': 4}
  record = {'experiment': 'x', 'step': STEPS, 'mean': None, 'tasks': {'arc_easy': task}}
  (folder / 'eval_00000040').mkdir()
  (folder / 'eval_00000040' / 'arc_easy_1-shot.json').write_text(json.dumps(record))
