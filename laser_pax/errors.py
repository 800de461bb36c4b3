"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
  """Bad input, told in one message: what was expected, what came, and what to do.

  The command line prints it without a traceback and exits with code 2.
  """
