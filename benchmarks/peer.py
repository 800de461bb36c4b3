"""The worker that trains x-transformers' decoder with LASER attention, in PyTorch.

`plain` forms the probabilities; `flash` calls PyTorch's fused attention. As in PAX's decoder, the
MLP is a ReLU's, positions are sinusoidal, and input and output embedding are tied. The library's
LASER clamps values softly at 15, and takes exp and log without a shift.
"""

import torch
import turns
from torch.nn import functional
from x_transformers import Decoder, TransformerWrapper


def decoder(variant: str, length: int) -> TransformerWrapper:
  """Returns the model, in float32."""
  layers = Decoder(
    dim=turns.DIMS,
    depth=turns.LAYERS,
    heads=turns.HEADS,
    attn_dim_head=turns.DIMS // turns.HEADS,
    attn_laser=True,
    attn_flash=variant == 'flash',
    ff_mult=turns.HIDDEN // turns.DIMS,
    ff_custom_activation=torch.nn.ReLU(),
  )
  return TransformerWrapper(
    num_tokens=turns.VOCAB,
    max_seq_len=length,
    tie_embedding=True,
    scaled_sinu_pos_emb=True,
    attn_layers=layers,
  )


def prepare(variant: str, batch: int, length: int):
  """Returns the variant's step as `turns.serve` takes it."""
  torch.manual_seed(0)
  model = decoder(variant, length)
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=turns.LEARNING_RATE,
    betas=turns.BETAS,
    eps=turns.EPSILON,
    weight_decay=turns.WEIGHT_DECAY,
  )

  def step() -> float:
    ids = torch.randint(0, turns.VOCAB, (batch, length + 1))
    logits = model(ids[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()

  parameters = sum(p.numel() for p in model.parameters())
  return step, {'parameters': parameters, 'threads': torch.get_num_threads()}


if __name__ == '__main__':
  args = turns.arguments('plain', 'flash')
  turns.serve(lambda: prepare(args.variant, args.batch, args.length))
