r"""The model of this folder in plain NumPy: token ids in, logits out.

    python numpy_forward.py next 5 17 42      the most probable tokens after 5 17 42
    python numpy_forward.py loss 5 17 42      the loss of each of the three tokens, in nats

It reads config.json and the *.safetensors beside it, and needs NumPy alone. In training every row
began with id 0, so a text's first input is 0. With x_t the state of position t, [D]:

    x        = sqrt(D) E_(id t) + positions_t
    x        = x + attention(norm(x))                    each layer
    x        = x + relu(norm(x) U + b) W + c             each layer
    logits   = cap(norm(x) E + e)

    attention, standard   O_th = sum_s p_ts v_sh
    attention, LASER      O_th = log( sum_s p_ts exp(v_sh) )       p = softmax(cap(q k^T)), s <= t

Shapes: T positions (S of keys), N heads, H head size, D model, F hidden, V vocabulary. All arrays
are float32.
"""

import json
import pathlib
import sys

import numpy as np

SHOWN = 10  # Tokens that `next` prints.


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the weights by name. They stay in their files until they are used.

  A file has the length of its header, 8 bytes; the header, in JSON; and the bytes of all arrays.
  """
  weights = {}
  for path in sorted(folder.glob('*.safetensors')):
    with path.open('rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, mode='r', offset=8 + length)
    for name, entry in header.items():
      if name != '__metadata__':
        first, last = entry['data_offsets']
        weights[name] = data[first:last].view('<f4').reshape(entry['shape'])
  return weights


def forward(config: dict, weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
  """Returns the logits of the token that follows each position.

  Args:
    config: The contents of config.json.
    weights: The weights by name.
    ids: [T] token ids, the first of which is 0.

  Returns:
    [T, V] float32.
  """
  embedding = weights['embedding.w']  # [D, V]
  size = np.float32(embedding.shape[0])
  x = np.sqrt(size) * embedding[:, ids].T + positions(len(ids), embedding.shape[0])
  for i in range(config['num_hidden_layers']):
    layer = below(weights, f'layers.{i}')
    x = x + attention(config, below(layer, 'attention'), norm(below(layer, 'attention_norm'), x))
    x = x + mlp(below(layer, 'mlp'), norm(below(layer, 'mlp_norm'), x))
  x = norm(below(weights, 'final_norm'), x)
  return cap(x @ embedding + weights['embedding.b'], config['logit_cap'])


def below(weights: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
  """Returns the weights of a part of the model, by their names in it."""
  prefix = f'{part}.'
  return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def positions(length: int, size: int) -> np.ndarray:
  """Returns sines and cosines of each position, [T, D], at wavelengths from 2 pi to 20,000 pi."""
  half = size // 2
  rates = np.exp(np.arange(half) * -np.log(10_000) / max(half - 1, 1))
  angles = np.arange(length)[:, None] * rates
  signal = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  return np.pad(signal, [(0, 0), (0, size % 2)]).astype(np.float32)


def norm(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
  """Layer norm. A scale of 0 leaves x as it is: the factor is 1 + scale."""
  centred = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(1e-6))
  return centred / deviation * (1 + w['scale']) + w['bias']


def cap(logits: np.ndarray, limit: float | None) -> np.ndarray:
  """Keeps logits between -limit and limit. Small ones stay as they are."""
  return logits if limit is None else np.float32(limit) * np.tanh(logits / np.float32(limit))


def mlp(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
  """Two matrices with a ReLU between them."""
  return np.maximum(x @ w['up.w'] + w['up.b'], 0) @ w['down.w'] + w['down.b']


def attention(config: dict, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
  """Causal attention, standard or LASER. It has no biases."""
  q, k, v = np.einsum('td,cdnh->cnth', x, w['qkv.w'], optimize=True)  # [N, T, H] each
  # The scale of 1 / sqrt(H) is learned, dimension by dimension: softplus(0) = log 2.
  scale = np.log1p(np.exp(w['per_dim_scale'])) / np.log(2) / np.sqrt(q.shape[-1])
  logits = cap(q * scale.astype(np.float32) @ k.swapaxes(1, 2), config['attention_logit_cap'])
  log_p = log_softmax(np.where(np.tri(len(x), dtype=bool), logits, -np.inf))  # [N, T, S]
  mixed = mix_exponentials(log_p, v) if config['attention'] == 'laser' else np.exp(log_p) @ v
  return np.einsum('nth,dnh->td', mixed, w['out.w'], optimize=True)


def mix_exponentials(log_p: np.ndarray, v: np.ndarray) -> np.ndarray:
  """LASER: log( sum_s p_ts exp(v_sh) ), the logarithm of a sum of exp(log p_ts + v_sh).

  Each query takes the greatest of its own terms out of the sum, so nothing overflows or vanishes.

  Args:
    log_p: [N, T, T], logarithms of the probabilities; -inf where s > t.
    v: [N, T, H], finite.

  Returns:
    [N, T, H].
  """
  output = np.empty_like(v)
  for t in range(v.shape[1]):
    terms = log_p[:, t, : t + 1, None] + v[:, : t + 1]  # [N, S, H]
    greatest = terms.max(1, keepdims=True)
    output[:, t] = greatest[:, 0] + np.log(np.exp(terms - greatest).sum(1))
  return output


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Returns the logarithms of the probabilities, over the last axis."""
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def main(folder: pathlib.Path, command: str, *words: str) -> None:
  """Prints the answer to a command, `next` or `loss`, about token ids."""
  config = json.loads((folder / 'config.json').read_text())
  ids = [int(word) for word in words]
  log_p = log_softmax(forward(config, read_weights(folder), [0, *ids]))
  if command == 'next':
    for token in np.argsort(-log_p[-1])[:SHOWN]:
      print(f'{token:6d}  {np.exp(log_p[-1, token]):.6f}')
  else:
    losses = -log_p[np.arange(len(ids)), ids]
    for token, loss in zip(ids, losses, strict=True):
      print(f'{token:6d}  {loss:.6f}')
    print(f'  mean  {losses.mean():.6f}')


if __name__ == '__main__':
  if len(sys.argv) < 3 or sys.argv[1] not in ('next', 'loss'):
    sys.exit('expected: python numpy_forward.py next|loss ID ID ...')
  main(pathlib.Path(__file__).parent, *sys.argv[1:])
