"""The log-mel spectrogram against its formula in float64, on real speech."""

import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax.layers import log_mel
from tests.support import small_speech


def oracle(samples):
  """The formula, frame by frame, with a sum over time in place of the fast transform."""
  x = samples.astype(np.float64) / 2**15
  means, stds = (np.asarray(s, np.float64) for s in log_mel.statistics())
  edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7600 / 700), 82)
  triangles = np.zeros((257, 80))
  for f in range(1, 257):
    place = 1127 * np.log(1 + f * 8000 / 256 / 700)
    for b, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
      if left < place < right:
        share = (place - left) / (centre - left), (right - place) / (right - centre)
        triangles[f, b] = min(share)
  phases = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(257)) / 512)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
  frames = []
  for start in range(0, len(x) - 400, 160):
    frame = x[start : start + 401]
    y = np.array([frame[0] * 0.03] + [frame[k] - 0.97 * frame[k - 1] for k in range(1, 400)])
    mel = np.abs((y * hann) @ phases) ** 2 @ triangles
    frames.append((np.log(np.maximum(mel, 1e-5)) - means) / stds)
  return np.array(frames)


@pytest.mark.parametrize('name', small_speech.utterances('train-clean-100'))
def test_real_speech_to_a_ten_thousandth(name):
  samples, _ = small_speech.utterances('train-clean-100')[name]
  samples = samples[:24_000]
  features = np.asarray(log_mel.log_mel(jnp.asarray(samples)[None]))[0]
  expected = oracle(samples)
  assert features.shape == expected.shape == (log_mel.num_frames(len(samples)), 80)
  np.testing.assert_allclose(features, expected, atol=1e-4)


def test_real_speech_is_normalised():
  """LibriSpeech's statistics fit another reader of the same kind."""
  samples = [s for s, _ in small_speech.utterances('train-clean-100').values()]
  features = np.concatenate([np.asarray(log_mel.log_mel(jnp.asarray(s)[None]))[0] for s in samples])
  assert abs(features.mean()) < 0.5 and 0.5 < features.std() < 1.5


def test_twenty_seconds_have_1998_frames():
  assert log_mel.num_frames(320_000) == 1_998
  assert log_mel.num_frames(401) == 1 and log_mel.num_frames(400) == 0


def test_a_frame_is_padding_if_no_sample_of_it_is_speech():
  paddings = np.asarray(log_mel.frame_paddings(jnp.array([0, 1, 160, 161, 10_000]), 4))
  np.testing.assert_array_equal(
    paddings, [[1] * 4, [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0] * 4]
  )


def test_a_length_that_is_no_whole_number_of_hops():
  samples, _ = small_speech.utterances('dev-clean')['2-1-0000']
  whole = np.asarray(log_mel.log_mel(jnp.asarray(samples[:8_000])[None]))
  cut = np.asarray(log_mel.log_mel(jnp.asarray(samples[:7_777])[None]))
  np.testing.assert_allclose(cut[0], whole[0, : cut.shape[1]], atol=1e-5)
