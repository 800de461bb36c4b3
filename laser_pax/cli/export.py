"""`python -m laser_pax export` and `import-weights`: a decoder leaves PAX, and comes back."""

from typing import Annotated

import typer

from laser_pax import folders
from laser_pax.cli import experiments
from laser_pax.cli.checkpoint import open_experiment, open_run


def export(
  checkpoint: Annotated[
    str, typer.Option(help='folder of a job, for its newest checkpoint; or of one checkpoint')
  ],
  out: Annotated[str, typer.Option(help='the folder to make; never overwritten')],
  exp: Annotated[
    str | None, typer.Option(help="experiment [default: the one that the job's mark names]")
  ] = None,
) -> None:
  """Exports a decoder: weights in safetensors, the model in NumPy and for transformers.

  The weights stay bit for bit. docs/export.md has their names, and how to use the folder.
  """
  from laser_pax.evaluation import exported_folder

  folder = folders.resolve_local(out)
  exported_folder.check_new(folder)
  experiment, saved = open_run(exp, checkpoint)

  from laser_pax.evaluation import export

  parameters = export.export(experiment, saved, folder)
  typer.echo(f'{folder}: {parameters:,} parameters of step {saved.step}')


def import_weights(
  weights: Annotated[str, typer.Option(help='folder that `export` made')],
  job_log_dir: Annotated[
    str, typer.Option('--job_log_dir', help='the folder to make; never overwritten')
  ],
) -> None:
  """Makes a job's folder of exported weights: PAX evaluates them, or goes on training them.

  The weights stay bit for bit. Adam's moments are not exported, and begin at zero.
  """
  from laser_pax import pax_fixes
  from laser_pax.evaluation import exported_folder

  source, folder = folders.resolve_local(weights), folders.resolve_local(job_log_dir)
  exported_folder.check_new(folder)
  exported = exported_folder.read_export(source)
  name = experiments.full_name(exported.run.experiment)
  pax_fixes.read_lambdas_fast()

  from laser_pax.evaluation import import_weights

  tokenizer = source / exported_folder.TOKENIZER
  experiment = open_experiment(name, exported.run.overrides, tokenizer)
  import_weights.import_weights(experiment, exported, folder)
  step = exported.config['laser_pax']['step']
  typer.echo(f'{folder}: checkpoint {step} of {name}')
