"""The report of two stored jobs: what it says, and that a browser shows it."""

import contextlib
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest

from laser_pax import cli
from laser_pax.analysis import lines, paper, report, runs
from laser_pax.cli import report as report_cli
from tests.support import browser, stored_jobs

NAMES = {lines.LASER: 'C4LaserTiny', lines.STANDARD: 'C4StandardTiny'}


@pytest.fixture(scope='module')
def jobs(tmp_path_factory):
  """Folders of a LASER job and its twin; the first one has no task evaluated."""
  root = tmp_path_factory.mktemp('jobs')
  folders = [stored_jobs.write(root / f'{form}<job>', NAMES[form], form) for form in NAMES]
  for folder, form, share in zip(folders, NAMES, (0.6, 0.8), strict=True):
    stored_jobs.add_analysis(folder, form, share)
  stored_jobs.add_evaluation(folders[1])
  return folders


def run(*words):
  """Returns the exit code and what was printed."""
  printed = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', write_through=True)
  with (
    contextlib.redirect_stdout(printed),
    contextlib.redirect_stderr(printed),
    pytest.raises(SystemExit) as ended,
  ):
    cli.main(['report', *map(str, words)])
  return ended.value.code, printed.buffer.getvalue().decode()


@pytest.fixture(scope='module')
def page(jobs):
  code, printed = run(*jobs)
  assert code == 0, printed
  return jobs[0] / 'report' / 'report.html'


class Reader(html.parser.HTMLParser):
  """The texts of a page's tables, row by row, and all addresses that it names."""

  def __init__(self, text):
    super().__init__()
    self.rows, self.addresses, self._cell = [], [], False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.addresses += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data', 'action')]
    if tag == 'tr':
      self.rows.append([])
    elif tag in ('td', 'th'):
      self.rows[-1].append('')
      self._cell = True

  def handle_endtag(self, tag):
    self._cell = self._cell and tag not in ('td', 'th')

  def handle_data(self, data):
    if self._cell:
      self.rows[-1][-1] += data

  def row(self, first, *more):
    """Returns the one row that begins so."""
    (row,) = (r for r in self.rows if r[: 1 + len(more)] == [first, *more])
    return row


@pytest.fixture(scope='module')
def read(page):
  return Reader(page.read_text())


def test_results_have_each_job_standard_first(read):
  rows = [row for row in read.rows if row[:1] in (['LASER<job>'], ['standard<job>'])]
  assert rows[0][:4] == ['standard<job>', 'C4StandardTiny', 'standard', '40']
  assert rows[1][:4] == ['LASER<job>', 'C4LaserTiny', 'LASER', '40']
  header = read.row('job', 'experiment')
  standard = dict(zip(header, rows[0], strict=True))
  assert standard['test loss'] == '4.0000'
  assert standard['perplexity'] == f'{np.exp(4.0):.4g}'
  assert (standard['best'], standard['at step']) == ('4.0000', '40')
  assert (standard['tokens/s'], standard['skipped steps']) == ('256', '2')
  assert standard['minutes'] == f'{39 / 60:.1f}'


def test_it_says_when_laser_reaches_the_best_loss_of_its_twin(page):
  expected = (
    'LASER&lt;job&gt; reaches standard&lt;job&gt;&#x27;s best loss 4.0000, at step 40 after 0.7 '
    'minutes: at step 36 after 0.6 minutes (90.0% of the steps, 89.7% of the time).'
  )
  assert expected in ' '.join(page.read_text().split())


def test_shares_stand_beside_the_papers_with_their_marks(read):
  row = read.row('standard<job>, standard, step 40')
  assert row[1:] == ['0.8000', '0.2000', '[ours]']
  for shares in paper.SHARES:
    assert read.row(f'the paper: {shares.item}')[1:] == list(shares[1:])
  ratios = read.row('LASER<job>', 'LASER', '40')
  assert ratios[-4:] == ['2.000'] * 4


def test_the_papers_results_are_there_and_not_called_ours(page, read):
  for figure in paper.RESULTS:
    row = read.row(figure.item)
    assert row[1:4] == [figure.laser, figure.standard, figure.mark]
    assert row[4:] == ['', '']
  assert 'not to be compared' in page.read_text()


def test_settings_tasks_and_environment_are_there(read):
  assert read.row('overrides')[1] == read.row('overrides')[2]
  assert 'NUM_LAYERS=2' in read.row('overrides')[1]
  assert read.row('experiment', 'C4StandardTiny')[2] == 'C4LaserTiny'
  assert int(read.row('parameters')[1].replace(',', '')) > 4096 * 32
  assert read.row('standard<job>', '40', 'arc_easy')[3:] == ['acc', '0.6250 ± 0.0100']
  assert read.row('jax')[1].startswith('0.') or read.row('jax')[1][0].isdigit()
  (row,) = (r for r in read.rows if r[-1:] == ['2026-01-02 03:04 on my-host'] and 'LASER' in r[0])
  assert row[0] == 'LASER<job>'


def test_the_page_needs_no_other_file(read):
  pictures = [address for address in read.addresses if address.startswith('data:image/png;base64,')]
  assert len(pictures) == 4
  assert set(read.addresses) - set(pictures) == {'data:,'}


def test_a_browser_shows_it_without_a_message(page, tmp_path):
  picture = tmp_path / 'page.png'
  assert browser.open_page(page.as_uri(), picture) == []
  from matplotlib import image

  pixels = image.imread(picture)[..., :3]
  assert pixels.shape[:2] == (4_000, 1_150)
  # A page of pictures and text has dark lines and both colors; an empty one has none.
  assert (pixels.max(-1) < 0.3).mean() > 0.002
  blue = (pixels[..., 2] > pixels[..., 0] + 0.3).mean()
  red = (pixels[..., 0] > pixels[..., 2] + 0.3).mean()
  assert blue > 1e-4 and red > 1e-4


def test_a_browser_tells_of_what_goes_wrong(tmp_path):
  """Otherwise the test above could not fail."""
  page = tmp_path / 'page.html'
  page.write_text('<img src="http://nowhere.invalid/x.png"><script>missing()</script>')
  messages = browser.open_page(page.as_uri(), tmp_path / 'page.png', height=100)
  assert any('missing is not defined' in message for message in messages), messages


def test_a_job_that_diverged_is_shown_beside_its_twin(jobs, tmp_path):
  diverged = stored_jobs.write(tmp_path / 'diverged', NAMES[lines.LASER], lines.LASER)
  file = diverged / 'progress.jsonl'
  file.write_text(
    re.sub(r'"loss": [0-9.]+, "perplexity": [0-9.e+]+', '"loss": null', file.read_text())
  )
  code, printed = run(jobs[1], diverged, f'--out={tmp_path / "out"}')
  assert code == 0, printed
  row = Reader((tmp_path / 'out' / 'report.html').read_text()).row('diverged', 'C4LaserTiny')
  assert row[4:8] == ['not finite', 'not finite', 'not finite', '']


def test_only_the_same_kind_of_figure_stands_beside_the_papers(jobs):
  job = lambda name, loss, **overrides: dataclasses.replace(  # noqa: E731
    report_cli._job(jobs[1], 'x', None),
    experiment=name,
    overrides=overrides,
    run=runs.Run('x', 'test', {}, {1: loss}, 1.0, 1.0),
  )
  ours = [job('C4Laser2B', 2.4), job('C4Standard300M', 2.7), job('C4Standard300M', 2.8)]
  ours += [job('C4Laser300M', 9.9, NUM_TRAIN_STEPS='20')]
  read = Reader(''.join(report._paper(ours)))
  assert read.row('2.2B, mean of 16 downstream tasks')[4:] == ['', '']
  assert read.row('301M, C4 test loss')[4:] == ['', '2.7000; 2.8000']


def test_a_folder_that_is_no_job_is_refused(tmp_path):
  code, printed = run(tmp_path)
  assert code == 2 and re.search(r'has no experiment.txt: expected the --job_log_dir', printed)


def test_a_job_that_is_named_twice_is_refused(jobs):
  code, printed = run(jobs[0], jobs[0])
  assert code == 2 and 'named twice' in printed
