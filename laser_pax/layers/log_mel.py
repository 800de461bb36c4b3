r"""The log-mel spectrogram of speech, as AlgoPerf's Conformer reads it.

    frame_t   401 samples from 160 t on, without padding at the end
    y_0       0.03 x_0,   y_k = x_k - 0.97 x_(k-1)   for k < 400
    power_f   |rfft_512(hann y)_f|^2
    mel_b     log max( sum_f power_f triangle_bf, 1e-5 )
    feature   (mel_b - mean_b) / std_b

Samples are at 16 kHz, and are divided by 2^15. Triangles are even on the scale
mel(f) = 1127 ln(1 + f / 700), from 125 to 7,600 Hz.

Source: AlgoPerf, workload librispeech_conformer; log_mel_stats.csv has its means and deviations.

Shapes: B batch, S samples, T frames, F bins.
"""

import csv
import functools
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np

SAMPLE_RATE = 16_000  # samples a second
HOP = 160  # samples
BINS = 80

_WINDOW = 400  # samples
_FFT = 512
_LOWEST, _HIGHEST = 125.0, 7_600.0  # Hz
_PRE_EMPHASIS = 0.97
_FLOOR = 1e-5


def num_frames(samples: int) -> int:
  """Returns T, the number of frames of S samples: 1,998 for 20 seconds."""
  return max(0, (samples - _WINDOW - 1) // HOP + 1)


def frame_paddings(num_samples: jax.Array, frames: int) -> jax.Array:
  """Returns which frames are padding: 1 for a frame with no sample of the speech.

  Args:
    num_samples: [B] integers, the length of each row's speech.
    frames: T, the number of frames.

  Returns:
    float32 [B, T].
  """
  return (HOP * jnp.arange(frames) >= num_samples[:, None]).astype(jnp.float32)


def log_mel(speech: jax.Array) -> jax.Array:
  """Returns the normalised log-mel spectrogram.

  Args:
    speech: [B, S] samples, integers of 16 bits.

  Returns:
    float32 [B, T, 80].
  """
  frames = _frames(speech.astype(jnp.float32) * 2.0**-15)
  first = frames[..., :1] * (1 - _PRE_EMPHASIS)
  rest = frames[..., 1:_WINDOW] - _PRE_EMPHASIS * frames[..., : _WINDOW - 1]
  emphasised = jnp.concatenate([first, rest], -1) * _hann()
  power = jnp.square(jnp.abs(jnp.fft.rfft(emphasised, _FFT)))
  # On a TPU a product of float32 is else one of bfloat16.
  mel = jnp.matmul(power, mel_triangles(), precision=jax.lax.Precision.HIGHEST)
  means, deviations = statistics()
  return (jnp.log(jnp.maximum(mel, _FLOOR)) - means) / deviations


def _frames(samples: jax.Array) -> jax.Array:
  """Cuts [B, S] into frames [B, T, 401], by whole hops: a gather is slow on a TPU."""
  frames = num_frames(samples.shape[1])
  hops = -(-samples.shape[1] // HOP)
  blocks = jnp.pad(samples, ((0, 0), (0, hops * HOP - samples.shape[1])))
  blocks = blocks.reshape(len(samples), hops, HOP)
  parts = [blocks[:, i : i + frames] for i in range(-(-(_WINDOW + 1) // HOP))]
  return jnp.concatenate(parts, -1)[..., : _WINDOW + 1]


@functools.cache
def _hann() -> np.ndarray:
  """Returns the periodic Hann window: float32 [400]."""
  phase = 2 * np.pi * np.arange(_WINDOW) / _WINDOW
  return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


@functools.cache
def mel_triangles() -> np.ndarray:
  """Returns the weight of each frequency in each bin: float32 [257, 80]. Frequency 0 has none."""

  def mel(hertz):
    return 1127 * np.log1p(np.asarray(hertz) / 700)

  frequencies = mel(np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1))[:, None]
  edges = np.linspace(mel(_LOWEST), mel(_HIGHEST), BINS + 2)
  lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
  rising, falling = (
    (frequencies - lower) / (centre - lower),
    (upper - frequencies) / (upper - centre),
  )
  triangles = np.maximum(0, np.minimum(rising, falling))
  triangles[0] = 0
  return triangles.astype(np.float32)


@functools.cache
def statistics() -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the standard deviation of each bin over LibriSpeech: float32 [80]."""
  file = importlib.resources.files('laser_pax.layers') / 'log_mel_stats.csv'
  rows = list(csv.DictReader(file.read_text().splitlines()))
  return tuple(np.array([float(row[name]) for row in rows], np.float32) for name in ('mean', 'std'))
