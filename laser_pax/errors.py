"""The exceptions for mistakes of a user."""

import importlib.util


class UserError(ValueError):
  """A user's mistake. Its message says what was expected, what came, and what to do.

  The command line prints it without a traceback and exits with code 2.
  """


class MissingPaxError(UserError, ImportError):
  """A part of the package that needs PAX is asked for, where the light install is."""


def require_pax() -> None:
  """Checks that PAX is installed, without importing it.

  Raises:
    MissingPaxError: It is not.
  """
  if importlib.util.find_spec('paxml') is None:
    raise MissingPaxError(
      'expected PAX in this environment, found the light install (jax and numpy alone); '
      'run scripts/setup.sh in a clone of the repository, and use the .venv that it makes'
    )
