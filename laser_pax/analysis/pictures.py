"""The pictures that explain LASER: `python -m laser_pax.analysis.pictures DIR`."""

import pathlib
import sys

import numpy as np


def plot_gradient(out: pathlib.Path, value: float = 6.0) -> None:
  """Draws the gradient with respect to a logit against its attention probability, for two keys.

  s is the probability of the first key. The values are v1 = `value` and v2 = 0. The gradients are:

      standard   do1/da11 = s (1 - s) (v1 - v2)
      LASER      do1/da11 = s (1 - s) (e^v1 - e^v2) / (s e^v1 + (1 - s) e^v2)

  Args:
    out: PNG or SVG file to write.
    value: v1, the value of the first key.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  s = np.logspace(-7, -0.01, 400)
  standard = s * (1 - s) * value
  laser = s * (1 - s) * np.expm1(value) / (s * np.exp(value) + 1 - s)
  figure, axes = plt.subplots(figsize=(7, 3.4), layout='constrained')
  axes.loglog(s, laser, color='#d1495b', lw=2, label='LASER')
  axes.loglog(s, standard, color='#3a6ea5', lw=2, label='standard')
  axes.fill_between(s, standard, laser, where=laser > standard, color='#d1495b', alpha=0.12)
  axes.set(
    xlabel='attention probability of the key',
    ylabel='gradient of the output\nwith respect to its logit',
    title=f'Two keys, values {value:g} and 0: a large value that gets little attention',
    xlim=(1e-7, 1),
    ylim=(1e-7, 3),
  )
  axes.title.set_fontsize(10)
  axes.legend(frameon=False)
  axes.spines[['top', 'right']].set_visible(False)
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  plt.close(figure)


if __name__ == '__main__':
  plot_gradient(pathlib.Path(sys.argv[1]) / 'gradient.png')
