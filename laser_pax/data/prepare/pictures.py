"""Pictures as JPEG files of RGB or grey: what a data set of images holds.

| a picture that is | becomes |
|---|---|
| a JPEG of RGB or grey | itself, byte for byte |
| a JPEG of CMYK | a JPEG of RGB |
| a PNG | a JPEG of RGB, on white where it is transparent |
| damaged, of another kind, or above 89 million pixels | nothing: it is left out, with its name |
"""

from __future__ import annotations

from typing import NamedTuple

# A picture with more pixels is taken for an attack on the memory, or a mistake.
MOST_PIXELS = 89_000_000
_QUALITY = 95

FROM_CMYK, FROM_PNG = 'JPEG of CMYK, made RGB', 'PNG, made JPEG'
DAMAGED = 'a damaged picture'
OTHER_KIND = 'no JPEG and no PNG'
TOO_LARGE = f'a picture of more than {MOST_PIXELS / 1e6:.0f} million pixels'


class Picture(NamedTuple):
  """A picture that was looked at.

  Attributes:
    jpeg: The JPEG file; None if it is left out.
    note: What was changed, or why it is left out; None if it is as it was.
  """

  jpeg: bytes | None
  note: str | None


def as_jpeg(data: bytes) -> Picture:
  """Returns a picture by the rule of this module. It decodes all of it, so damage shows."""
  import tensorflow as tf

  try:
    if data.startswith(b'\xff\xd8\xff'):
      return _from_jpeg(data)
    if data.startswith(b'\x89PNG\r\n\x1a\n'):
      return _from_png(data)
  except tf.errors.InvalidArgumentError:
    return Picture(None, DAMAGED)
  return Picture(None, OTHER_KIND)


def _from_jpeg(data: bytes) -> Picture:
  import tensorflow as tf

  height, width, channels = tf.io.extract_jpeg_shape(data).numpy().tolist()
  if height * width > MOST_PIXELS:
    return Picture(None, TOO_LARGE)
  if channels == 4:
    pixels = tf.io.decode_jpeg(data, channels=3)
    return Picture(_encoded(pixels), FROM_CMYK)
  tf.io.decode_jpeg(data, channels=3, ratio=8)  # The whole file is read, but few pixels are made.
  return Picture(data, None)


def _from_png(data: bytes) -> Picture:
  import tensorflow as tf

  width, height = (int.from_bytes(data[i : i + 4], 'big') for i in (16, 20))
  if height * width > MOST_PIXELS:
    return Picture(None, TOO_LARGE)
  pixels = tf.cast(tf.io.decode_png(data, channels=4), tf.float32)
  opaque = pixels[..., 3:] / 255
  on_white = tf.round(pixels[..., :3] * opaque + 255 * (1 - opaque))
  return Picture(_encoded(tf.cast(on_white, tf.uint8)), FROM_PNG)


def _encoded(pixels) -> bytes:
  import tensorflow as tf

  return tf.io.encode_jpeg(pixels, format='rgb', quality=_QUALITY).numpy()
