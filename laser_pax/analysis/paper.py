"""The paper's figures that a report shows beside ours, each with its mark.

[paper]: stated by the paper. [digest]: stated only by third-party digests of it. "read off a
picture" is the author's own picture of the 2.2B run, and approximate.
"""

from typing import NamedTuple


class Figure(NamedTuple):
  """A figure of LASER beside standard attention's.

  Attributes:
    item: What it is.
    laser: LASER's, as text.
    standard: Standard attention's, as text; empty if it is not known.
    mark: '[paper]' or '[digest]'.
    experiments: Names of our pair, standard attention first; empty where no pair is of it.
    metric: The label of the pair's metric, or of a figure derived from it, that is of this kind;
      empty where a training gives none.
  """

  item: str
  laser: str
  standard: str
  mark: str
  experiments: tuple[str, ...] = ()
  metric: str = ''


RESULTS = (
  Figure(
    '301M, C4 test loss', '2.595', '2.641', '[digest]', ('C4Standard300M', 'C4Laser300M'), 'loss'
  ),
  Figure(
    '16-layer model, C4 test loss',
    '2.673',
    '',
    '[digest]',
    ('C4Standard234M', 'C4Laser234M'),
    'loss',
  ),
  Figure(
    '2.2B, mean of 16 downstream tasks',
    '63.39%',
    '62.34%',
    '[digest]',
    ('C4Standard2B', 'C4Laser2B'),
  ),
  Figure(
    '7.7B, mean of 11 downstream tasks',
    '53.97%',
    '52.53%',
    '[digest]; +1.44 [paper]',
    ('C4Standard7B', 'C4Laser7B'),
  ),
  Figure(
    'SuperGLUE after fine-tuning the 2.2B, mean',
    '44.01%',
    '42.35%',
    '[digest]; +1.65 [paper]',
    ('SuperGlueStandard2B', 'SuperGlueLaser2B'),
  ),
  Figure(
    'BERT 2.2B, share of wrong masked tokens',
    '0.2125',
    '0.2145',
    '[digest]',
    ('WikipediaStandardBert2B', 'WikipediaLaserBert2B'),
    'wrong',
  ),
  Figure(
    'ViT-S/16, ImageNet validation error',
    '24.17%',
    '25.32%',
    '[digest]',
    ('ImageNetStandardViTS16', 'ImageNetLaserViTS16'),
    'error',
  ),
  Figure(
    'ViT-S/16 with QK-norm, ImageNet validation error',
    '23.72%',
    '',
    '[digest]',
    ('ImageNetStandardViTS16QkNorm', 'ImageNetLaserViTS16QkNorm'),
    'error',
  ),
  Figure(
    'Conformer, LibriSpeech validation WER',
    '8.08%',
    '8.32%',
    '[digest]',
    ('LibriSpeechStandardConformer', 'LibriSpeechLaserConformer'),
    'WER',
  ),
  Figure(
    '2.2B, Differential Transformer, mean of downstream tasks',
    '51.52%',
    '50.59%',
    '[digest]',
    ('C4Standard2BDifferential', 'C4Laser2BDifferential'),
  ),
  Figure(
    '2.2B with per-dimension temperature, mean of 16 downstream tasks', '63.52%', '', '[digest]'
  ),
  Figure('LAMB in place of AdamW, test loss', '2.741', '2.758', '[digest]'),
  Figure("2.2B, hours to standard attention's best loss", '24.88', '27.22', '[digest]'),
  Figure('scaling law, fewer parameters at equal loss', '15.65%', '', '[digest]'),
)


class Shares(NamedTuple):
  """Shares of attention probabilities below 1e-3 and 1e-7.

  Attributes:
    item: What it is.
    below_1e_3: The first share, as text.
    below_1e_7: The second share, as text.
    mark: The mark.
  """

  item: str
  below_1e_3: str
  below_1e_7: str
  mark: str


SHARES = (
  Shares('a trained LLM (Figure 1)', 'about 0.80', 'about 0.20', '[paper]'),
  Shares('2.2B, near step 5,000', 'near 0.96', 'near 0.70', '[digest], read off a picture'),
  Shares('2.2B, at step 44,000', 'near 0.70', 'near 0.16', '[digest], read off a picture'),
)
