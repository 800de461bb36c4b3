"""PAX's evaluation for families that are judged by what they decode, such as words."""

import dataclasses

from paxml import decode_programs, programs


class DecodingEvalProgram(programs.SingleTaskEvalProgram):
  """An evaluation that also decodes its split. Its metrics are those of both.

  PAX decodes in a training only with --decode_during_train, and an experiment has no say in how.
  """

  def __init__(self, input_p):
    """Takes the split's input."""
    super().__init__(input_p)
    self._decoding = decode_programs.SingleTaskDecodeProgram(input_p.clone())

  def setup(self, task, partitioner, job_log_dir, eval_prng_seed, *args, **kwargs) -> None:
    """Sets both programs up."""
    super().setup(task, partitioner, job_log_dir, eval_prng_seed, *args, **kwargs)
    self._decoding.setup(task, partitioner, job_log_dir, eval_prng_seed, output_pickle=False)

  def run(self, state, step):
    """Evaluates, and then decodes."""
    output = super().run(state, step)
    decoded = self._decoding.run(state, step).processed_decode_metrics or {}
    return dataclasses.replace(output, eval_metrics={**(output.eval_metrics or {}), **decoded})

  def shutdown(self) -> None:
    """Closes both programs."""
    self._decoding.shutdown()
    super().shutdown()
