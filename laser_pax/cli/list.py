"""`python -m laser_pax list`: prints the table of experiments."""

from rich.console import Console
from rich.table import Table

from laser_pax.cli import experiments


def list_experiments() -> None:
  """Prints the table of registered experiments."""
  table = Table(box=None)
  for column in experiments.COLUMNS:
    table.add_column(column, justify='left' if column == 'experiment' else 'right', no_wrap=True)
  for row in experiments.table():
    table.add_row(*(row.get(column, '') for column in experiments.COLUMNS))
  console = Console()
  console.print(table)
  console.print('python -m laser_pax show EXPERIMENT tells more of one', style='dim')
