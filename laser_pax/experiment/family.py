"""The protocol of a family of experiments: its own members beside those of `base.Experiment`."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from paxml import tasks_lib
from praxis import base_input, pax_fiddle, py_utils

from laser_pax.experiment import layouts

Task = pax_fiddle.Config[tasks_lib.SingleTask]
Inputs = list[pax_fiddle.Config[base_input.BaseInput]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """The figure that a run is judged by.

  Attributes:
    name: The name that PAX gives it in an evaluation's metrics, such as 'log_pplx'.
    label: The name on the console and in progress.jsonl, such as 'loss'.
    split: The evaluation input that it is judged on; None if there is one alone.
    better: Which of two figures is the better one.
    derived: Further figures to show. A label maps to the function that computes it from this one.
  """

  name: str
  label: str
  split: str | None = None
  better: Literal['lower', 'higher'] = 'lower'
  derived: Mapping[str, Callable[[float], float]] = dataclasses.field(default_factory=dict)


class Chance(NamedTuple):
  """What a model reaches that knows only how frequent each answer is.

  Attributes:
    name: What it is, in words.
    value: Its figure, that of the family's METRIC.
  """

  name: str
  value: float


class ModelFlops(NamedTuple):
  """Floating-point operations of one train step, over all chips, as MFU counts them.

  Attributes:
    weights: Operations of the weights: 6 for each weight and position. They cover the forward pass,
      and the backward pass to inputs and to weights.
    attention: Operations of attention's two products, forward and backward, over all pairs of
      positions.
    attended_share: Share of these pairs that a fused kernel computes. It is below 1 if the model is
      causal.
  """

  weights: int
  attention: int
  attended_share: float


class Family(abc.ABC):
  """The protocol of a family: its own members beside `Experiment`. Tools know no others.

  Attributes:
    METRIC: The figure that a run is judged by.
    UNIT: The unit in which training is counted, in the plural: 'tokens', 'images', 'frames'.
    SCORES_TEXT: Whether the model gives each token's probability after the ones before it, so that
      `eval` and `generate` take it.
  """

  METRIC: Metric
  UNIT: str
  SCORES_TEXT = False

  @abc.abstractmethod
  def task(self) -> Task:
    """Returns PAX's task: model, optimiser, schedule."""

  @abc.abstractmethod
  def datasets(self) -> Inputs:
    """Returns PAX's inputs, the training split first."""

  @abc.abstractmethod
  def input_specs(self, batch_size: int) -> py_utils.NestedMap:
    """Returns the shapes and dtypes of a batch of `batch_size` rows, without opening the data."""

  @abc.abstractmethod
  def random_batch(self, rng: np.random.Generator, batch_size: int) -> py_utils.NestedMap:
    """Returns an array for each of `input_specs`, of random content, to time steps without data."""

  @abc.abstractmethod
  def sizes(self) -> layouts.Sizes:
    """Returns the sizes that the layout rule needs: those of the model and of its batch."""

  @abc.abstractmethod
  def units_per_step(self) -> int:
    """Returns how many units one step trains on, over all devices."""

  @abc.abstractmethod
  def model_flops(self, parameters: int) -> ModelFlops:
    """Returns the operations of one train step, over all chips.

    Args:
      parameters: Number of the model's weights.
    """

  @abc.abstractmethod
  def describe(self) -> dict[str, str]:
    """Returns the family's rows of `show`, by name. One of them is 'global batch'."""

  @abc.abstractmethod
  def chance(self) -> Chance:
    """Returns what knowledge of frequencies alone reaches on the data to evaluate on."""

  @abc.abstractmethod
  def check(self) -> None:
    """Checks the sizes against each other.

    Raises:
      UserError: They do not fit; the message has the fix.
    """

  @abc.abstractmethod
  def check_data(self) -> None:
    """Checks that the data exist and fit the model.

    Raises:
      UserError: They do not; the message has the fix.
    """
