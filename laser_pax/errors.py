"""The exception for mistakes of a user."""


class UserError(ValueError):
  """A user's mistake. Its message says what was expected, what came, and what to do.

  The command line prints it without a traceback and exits with code 2.
  """
