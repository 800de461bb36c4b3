"""The console's lines for a run, and the run's records."""

import io
import json
import math

import jax.numpy as jnp

from laser_pax.cli.watch import Watch
from laser_pax.experiment.decoder import DecoderLM


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _watched(console, folder, losses):
  watch = Watch(console, folder)
  watch.start(0, len(losses))
  for step, loss in enumerate(losses, start=1):
    watch.step(step, jnp.float32(loss), bool(math.isfinite(loss)), units=64)
  watch.drain()
  return watch


def test_skipped_steps_are_counted_and_shown(tmp_path):
  console = io.StringIO()
  watch = _watched(console, tmp_path, [3.0, math.nan, 2.0])
  watch.close()
  assert watch.skipped_steps == 1
  assert console.getvalue().splitlines()[-1].endswith('1 skipped')


def test_a_skipped_step_is_told(tmp_path):
  console = io.StringIO()
  _watched(console, tmp_path, [3.0] * 8 + [math.nan]).close()
  assert 'step 9 was skipped: its gradients are not finite (loss nan)' in console.getvalue()


def test_a_spike_is_told_and_counted(tmp_path):
  console = io.StringIO()
  noise = [3.0 + 0.01 * (i % 7) for i in range(120)]
  watch = _watched(console, tmp_path, [9.0, *noise, 3.9, *noise[:9]])
  watch.close()
  spikes = [line for line in console.getvalue().splitlines() if 'above the median' in line]
  assert len(spikes) == watch.spikes == 1
  assert spikes[0].startswith('step 122: loss 3.9000 is 0.8700 above the median of the last 100')
  assert '--step=122' in spikes[0]


def test_every_step_is_recorded_once_in_order(tmp_path):
  watch = _watched(io.StringIO(), tmp_path, [3.0, math.nan, 2.0])
  watch.evaluation(3, 'validation', DecoderLM.METRIC, 2.5, 1.0)
  watch.close()
  records = [json.loads(line) for line in (tmp_path / 'progress.jsonl').read_text().splitlines()]
  assert [r['step'] for r in records] == [1, 2, 3, 3]
  assert [r['loss'] for r in records] == [3.0, None, 2.0, 2.5]
  assert records[-1]['perplexity'] == math.exp(2.5)


def test_a_terminal_has_one_line_that_is_rewritten(tmp_path):
  console = _Terminal()
  watch = _watched(console, tmp_path, [3.0] * 5)
  watch.evaluation(5, 'validation', DecoderLM.METRIC, 2.5, 61.0)
  watch.close()
  lines = console.getvalue().split('\n')
  assert lines[0].startswith('starting of 5')
  assert lines[1].split('\x1b[K')[-1].startswith('step 5: validation loss 2.5000, perplexity 12.18')
  assert '1m01s' in lines[1]


def test_a_plain_console_is_not_flooded(tmp_path):
  console = io.StringIO()
  _watched(console, tmp_path, [3.0] * 500).close()
  assert len(console.getvalue().splitlines()) < 5
  assert '\r' not in console.getvalue()


def test_a_resumed_run_appends(tmp_path):
  _watched(io.StringIO(), tmp_path, [3.0]).close()
  _watched(io.StringIO(), tmp_path, [2.0]).close()
  assert len((tmp_path / 'progress.jsonl').read_text().splitlines()) == 2


def test_a_cut_record_is_ended_before_the_next(tmp_path):
  (tmp_path / 'progress.jsonl').write_text('{"kind": "tr')
  _watched(io.StringIO(), tmp_path, [2.0]).close()
  assert json.loads((tmp_path / 'progress.jsonl').read_text().splitlines()[1])['loss'] == 2.0


class _Loss(float):
  """A loss that is computed when `ready` says so."""

  ready = False

  def is_ready(self):
    return type(self).ready

  def block_until_ready(self):
    type(self).ready = True


def test_steps_found_finished_together_have_no_speed_of_their_own(tmp_path, monkeypatch):
  """Two steps of a second each, of which the second waits until both are collected at once."""
  now = [0.0]
  monkeypatch.setattr('time.time', lambda: now[0])
  console = io.StringIO()
  watch = Watch(console, tmp_path)
  watch.start(0, 5)
  for step in range(1, 6):
    now[0] += 1.0
    _Loss.ready = step in (1, 3)
    watch.step(step, _Loss(2.0), True, units=64)
  now[0] += 1.0
  watch.drain()
  watch.close()
  records = [json.loads(line) for line in (tmp_path / 'progress.jsonl').read_text().splitlines()]
  rates = [r['tokens_per_second'] for r in records]
  assert rates == [None, 64.0, 64.0, 51.2, 51.2]  # 256 tokens in the five seconds from step 1 on.


def test_a_record_that_cannot_be_written_is_told_once(tmp_path):
  console = io.StringIO()
  watch = Watch(console, tmp_path)
  watch._records.close()
  watch._records = open('/dev/full', 'a', buffering=1)  # noqa: SIM115
  watch.start(0, 3)
  for step in (1, 2, 3):
    watch.step(step, jnp.float32(2.0), True, units=64)
  watch.close()
  assert console.getvalue().count('cannot be written (No space left on device)') == 1
  assert watch.last_step == 3
