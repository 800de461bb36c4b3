"""Ways in which a file goes wrong, drawn by a seeded generator."""

import random
from collections.abc import Callable

# So many bytes of a file are looked at as a piece, at most.
_PIECE = 64


def _flip(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  for _ in range(rng.choice((1, 1, 2, 8))):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  return bytes(data)


def _cut(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  return bytes(data[: rng.randrange(1, len(data) + 1)])


def _splice(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  place, start = rng.randrange(len(data)), rng.randrange(len(other))
  piece = other[start : start + rng.randrange(1, _PIECE)]
  data[place : place + rng.choice((0, len(piece)))] = piece
  return bytes(data)


def _join(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  return bytes(data[: rng.randrange(len(data) + 1)]) + other[rng.randrange(len(other)) :]


def _duplicate(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  start = rng.randrange(len(data))
  end = rng.choice((len(data), start + rng.randrange(1, _PIECE)))
  data[start:start] = data[start:end]
  return bytes(data)


def _drop(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  start = rng.randrange(len(data))
  del data[start : start + rng.randrange(1, _PIECE)]
  return bytes(data)


def _zeros(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  place, count = rng.randrange(len(data) + 1), rng.randrange(1, _PIECE)
  data[place : place + rng.choice((0, count))] = bytes(count)
  return bytes(data)


def _swap(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  return other


def _empty(data: bytearray, other: bytes, rng: random.Random) -> bytes:
  return b''


def _missing(data: bytearray, other: bytes, rng: random.Random) -> None:
  return None


Corruption = Callable[[bytearray, bytes, random.Random], bytes | None]
_KINDS: dict[str, Corruption] = {
  'flip': _flip,
  'cut': _cut,
  'splice': _splice,
  'join': _join,
  'duplicate': _duplicate,
  'drop': _drop,
  'zeros': _zeros,
  'swap': _swap,
  'empty': _empty,
  'missing': _missing,
}
# The simple kinds come more often: the last three have one result for each file.
_WEIGHTS = (8, 6, 6, 3, 4, 4, 4, 1, 1, 1)


def corrupt(data: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes | None]:
  """Returns a kind of corruption, and what it makes of a file; None where the file is gone.

  Args:
    data: The file, of at least one byte.
    other: Another file, of which pieces are taken.
    rng: The generator of all choices.
  """
  (kind,) = rng.choices(list(_KINDS), _WEIGHTS)
  return kind, _KINDS[kind](bytearray(data), other, rng)
