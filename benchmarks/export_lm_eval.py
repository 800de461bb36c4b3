"""One task of lm_eval by an exported model under transformers, and by its checkpoint under PAX.

    python benchmarks/export_lm_eval.py task FOLDER            the task, of the sample's test texts
    python benchmarks/export_lm_eval.py hf FOLDER EXPORT       lm_eval's own `hf` model
    python benchmarks/export_lm_eval.py pax FOLDER JOB         the task's requests, scored by PAX
    python benchmarks/export_lm_eval.py compare FOLDER

Only `hf` needs PyTorch, in an environment with lm_eval of its own: docs/export.md. A question is 24
words of an address, and the right answer the next eight. The others come from other addresses.
"""

import json
import pathlib
import sys

import numpy as np

QUESTIONS, CHOICES, WORDS, ANSWER = 60, 4, 24, 8
TASK = """task: union_next_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: '{{{{question}}}}'
doc_to_choice: '{{{{choices}}}}'
doc_to_target: '{{{{label}}}}'
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1}}
"""


def make_task(folder: pathlib.Path) -> None:
  """Writes the task and its questions."""
  from laser_pax.data import datasets, records, sample

  folder.mkdir(parents=True, exist_ok=True)
  source = sample.find_source_or_sample(None, None, 4_096)
  texts = [*records.read_texts(pathlib.Path(source.data_dir), datasets.C4, 'validation')]
  rng = np.random.default_rng(0)
  pieces = []
  while len(pieces) < QUESTIONS:
    words = texts[rng.integers(len(texts))].split()
    if len(words) > WORDS + ANSWER:
      first = rng.integers(len(words) - WORDS - ANSWER)
      piece = words[first : first + WORDS + ANSWER]
      pieces.append((' '.join(piece[:WORDS]), ' '.join(piece[WORDS:])))
  with (folder / 'questions.jsonl').open('w') as file:
    for question, answer in pieces:
      choices = [answer]
      while len(choices) < CHOICES:
        choices.append(pieces[rng.integers(QUESTIONS)][1])
      order = rng.permutation(CHOICES)
      line = {'question': question, 'choices': [choices[i] for i in order]}
      file.write(json.dumps(line | {'label': int(np.argmin(order))}) + '\n')
  data = json.dumps(str(folder / 'questions.jsonl'))
  (folder / 'union_next_words.yaml').write_text(TASK.format(data=data))


def score_by_hf(folder: pathlib.Path, exported: str) -> None:
  """Runs the task by lm_eval's own model of transformers."""
  import lm_eval
  from lm_eval.tasks import TaskManager

  result = lm_eval.simple_evaluate(
    model='hf',
    model_args=f'pretrained={exported},trust_remote_code=True,add_bos_token=True',
    tasks=['union_next_words'],
    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    device='cpu',
    batch_size=8,
    bootstrap_iters=0,
    log_samples=True,
  )
  samples = sorted(result['samples']['union_next_words'], key=lambda s: s['doc_id'])
  scores = [[float(answer[0]) for answer in sample['filtered_resps']] for sample in samples]
  print(json.dumps({k: v for k, v in result['results']['union_next_words'].items() if 'acc' in k}))
  (folder / 'hf.json').write_text(json.dumps(scores))


def score_by_pax(folder: pathlib.Path, job: str) -> None:
  """Scores the same requests by PAX's own evaluation step."""
  import sentencepiece
  from paxml import trainer_lib
  from praxis import py_utils

  from laser_pax.cli.checkpoint import open_run
  from laser_pax.evaluation.restored import Restored

  experiment, saved = open_run(None, job)
  model = Restored(experiment, saved)
  pieces = sentencepiece.SentencePieceProcessor(model_file=experiment.VOCAB)
  scores = []
  for line in (folder / 'questions.jsonl').read_text().splitlines():
    doc = json.loads(line)
    shape = (CHOICES, experiment.SEQ_LEN)
    labels, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    is_answer = np.zeros(shape, bool)
    for row, choice in enumerate(doc['choices']):
      ids = pieces.EncodeAsIds(f'{doc["question"]} {choice}')
      labels[row, : len(ids)], weights[row, : len(ids)] = ids, 1
      is_answer[row, len(pieces.EncodeAsIds(doc['question'])) : len(ids)] = True
    batch = py_utils.NestedMap(
      ids=np.pad(labels, [(0, 0), (1, 0)])[:, :-1],
      labels=labels,
      weights=weights,
      paddings=1 - weights,
      segment_ids=weights.astype(np.int32),
      segment_pos=np.tile(np.arange(shape[1], dtype=np.int32), (CHOICES, 1)),
    )
    output = model.run(trainer_lib.eval_step_single_learner, batch)
    xent = output.per_example_out.per_example_xent
    scores.append([float(x) for x in -np.where(is_answer, xent, 0).sum(-1)])
  (folder / 'pax.json').write_text(json.dumps(scores))


def compare(folder: pathlib.Path) -> None:
  """Prints both accuracies, and by how much the log-likelihoods differ."""
  lines = (folder / 'questions.jsonl').read_text().splitlines()
  labels = np.array([json.loads(line)['label'] for line in lines])
  hf, pax = (np.array(json.loads((folder / f'{name}.json').read_text())) for name in ('hf', 'pax'))
  record = {name: float((s.argmax(1) == labels).mean()) for name, s in (('hf', hf), ('pax', pax))}
  record |= {'requests': hf.size, 'greatest_difference': float(np.abs(hf - pax).max())}
  record['same_choices'] = int((hf.argmax(1) == pax.argmax(1)).sum())
  print(json.dumps(record | {'mean_log_likelihood': float(pax.mean())}))


if __name__ == '__main__':
  command, where, *rest = sys.argv[1:]
  commands = {'task': make_task, 'hf': score_by_hf, 'pax': score_by_pax, 'compare': compare}
  commands[command](pathlib.Path(where).resolve(), *rest)
