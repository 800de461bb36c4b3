"""`python -m laser_pax generate`: texts that a trained decoder continues."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from laser_pax import folders
from laser_pax.cli.checkpoint import open_run
from laser_pax.errors import UserError


def generate(
  checkpoint: Annotated[str, typer.Option(help='Folder of a job, or of one of its checkpoints.')],
  prompt: Annotated[
    list[str] | None, typer.Option(help='Text to continue; may be given several times.')
  ] = None,
  prompts: Annotated[str | None, typer.Option(help='File with a prompt in each line.')] = None,
  exp: Annotated[str | None, typer.Option(help="Experiment [default: the job's].")] = None,
  max_tokens: Annotated[int, typer.Option(help='Greatest number of new tokens.')] = 64,
  temperature: Annotated[
    float, typer.Option(help='Of the draws; 0 takes the likeliest token always.')
  ] = 0.0,
  top_k: Annotated[int, typer.Option(help='Draw from so many likeliest tokens; 0: all.')] = 0,
  top_p: Annotated[
    float, typer.Option(help='Draw from the likeliest tokens of this probability together.')
  ] = 1.0,
  seed: Annotated[int, typer.Option(help='Seed of the draws.')] = 0,
  out: Annotated[
    str | None, typer.Option(help='New file of JSON lines: prompt, text, tokens, end.')
  ] = None,
) -> None:
  """Continues prompts, and prints a continuation in each line.

  A continuation ends with the end of the sequence, or after --max-tokens. The speed stands on
  standard error. It counts new tokens alone, and the time to compile is apart.
  """
  texts = _texts(prompt or [], prompts)
  file = None if out is None else _new_file(folders.resolve_local(out))
  experiment, saved = open_run(exp, checkpoint)

  from laser_pax.evaluation import generation
  from laser_pax.evaluation.restored import Restored

  generation.check_family(experiment)
  sampling = generation.Sampling(temperature, top_k, top_p)
  tokenizer = generation.Tokenizer(experiment, saved)
  ids = [tokenizer.prompt_ids(text) for text in texts]
  generation.check(experiment, ids, max_tokens, sampling)
  restored = Restored(experiment, saved)
  drawn = {'max_tokens': max_tokens, **sampling._asdict()}
  compile_seconds = generation.compile_for(restored, ids, **drawn)
  start = time.perf_counter()
  new_ids = generation.generate(restored, ids, **drawn, seed=seed)
  seconds = time.perf_counter() - start
  records = [
    {
      'prompt': text,
      'text': tokenizer.continuation(before, after),
      'tokens': len(after),
      'end': 'end of sequence' if generation.has_ended(after) else 'max tokens',
    }
    for text, before, after in zip(texts, ids, new_ids, strict=True)
  ]
  for record in records:
    typer.echo(record['text'])
  if file is not None:
    file.write_text(''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))
  count = sum(record['tokens'] for record in records)
  typer.echo(
    f'{count:,} new tokens in {seconds:.2f} s: {count / seconds:,.0f} tokens/s; '
    f'compiled before, in {compile_seconds:.1f} s',
    err=True,
  )


def _texts(prompt: list[str], file: str | None) -> list[str]:
  """Returns all prompts: those of the command line, then those of the file.

  Raises:
    UserError: There is none, or one is empty, or the file cannot be read.
  """
  texts = list(prompt)
  if file is not None:
    texts += _lines(folders.resolve_local(file))
  if not texts:
    raise UserError('which text is to be continued? --prompt=TEXT, or --prompts=FILE')
  for number, text in enumerate(texts, start=1):
    if not text.strip():
      raise UserError(f'prompt {number} is empty: a model continues a text; give a word or more')
  return texts


def _lines(file: Path) -> list[str]:
  named = f'--prompts={folders.shown(file)}'
  try:
    return file.read_text(encoding='utf-8').splitlines()
  except OSError as e:
    raise UserError(f'{named}: cannot be read: {e.strerror}') from e
  except UnicodeDecodeError as e:
    raise UserError(
      f'{named}: byte {e.start + 1} is not UTF-8; expected a text with a prompt in each line: save '
      'it as UTF-8'
    ) from e


def _new_file(file: Path) -> Path:
  """Checks that the results will find a place, before they are computed."""
  if file.exists():
    raise UserError(f'{file}: exists already and is never overwritten; name another file')
  folders.make_folder(file.parent)
  return file
