r"""Decoder language models on C4, in pairs of standard attention and LASER.

The paper's setting is 160,000 steps of 1024 sequences of 1024 tokens, 167.8B tokens together. It
uses AdamW, linear warm-up and cosine decay to zero [paper]. The paper searched its hyperparameters
on a 16-layer model, and kept them for the larger ones [paper]. Their values are not known, nor are
precision, clipping, logit caps, tokeniser and mesh shapes. Here they are PAX's defaults or our
choice [ours].

To train one, on every host of its slice, and the Tiny pair on a laptop:

    python -m paxml.main --exp=laser_pax.configs.C4Laser2B --job_log_dir=DIR \
      --eval_on_test --jax_fully_async_checkpoint
    python -m laser_pax train --exp=C4LaserTiny --job_log_dir=DIR

To scale a model, subclass a pair and change its capital attributes:

    @experiment_registry.register
    class MyStandard500M(C4Standard300M):
      NUM_LAYERS = 54

    @experiment_registry.register
    class MyLaser500M(LaserMixin, MyStandard500M):
      pass
"""

from paxml import experiment_registry

from laser_pax.data import sample, sources
from laser_pax.experiment.decoder import DecoderLM
from laser_pax.experiment.laser import LaserMixin
from laser_pax.experiment.text import TinyText


# Parameters: 4 (4 x 128^2 + 2 x 128 x 256) + 4,096 x 128 = 1.05M. Tokens: 600 x 8 x 128 = 0.61M,
# 0.6 per parameter. FLOPs: 6 x parameters x tokens = 3.9e12, minutes on two cores.
@experiment_registry.register
class C4StandardTiny(TinyText, DecoderLM):
  """Standard attention at a size for laptops, on the sample [ours].

  1.05M parameters, 0.61M tokens, one device.
  """

  GLOBAL_BATCH_SIZE = 8
  SEQ_LEN = 128
  LEARNING_RATE = 8e-3  # The best of a grid on the standard twin (docs/quickstart.md).

  def source(self) -> sources.Source:
    """Returns the sample that ships, unless the user names other data or another vocabulary.

    Raises:
      UserError: Data or vocabulary is missing, or does not fit VOCAB_SIZE.
    """
    return sample.find_source_or_sample(self.DATA_DIR, self.VOCAB, self.VOCAB_SIZE)


@experiment_registry.register
class C4LaserTiny(LaserMixin, C4StandardTiny):
  """LASER at a size for laptops, on the sample [ours].

  1.05M parameters, 0.61M tokens, one device.
  """


# Parameters: 16 (4 x 1024^2 + 2 x 1024 x 4096) + 32,000 x 1024 = 234.1M [derived]. Tokens: 167.8B,
# 717 per parameter. FLOPs: 6 x parameters x tokens = 2.4e20.
@experiment_registry.register
class C4Standard234M(DecoderLM):
  """Standard attention, 16 layers: the model of the hyperparameter search [paper].

  234.1M parameters [derived], 167.8B tokens [paper], 64 chips [ours]. A model of 24 layers with MLP
  hidden 2048 has as many parameters. It is not known which of the two the paper means.
  """

  NUM_LAYERS = 16  # [paper]
  MODEL_DIMS = 1_024  # [derived]
  HIDDEN_DIMS = 4_096  # [derived]
  POD = 'v5p-64chips'  # [ours]


@experiment_registry.register
class C4Laser234M(LaserMixin, C4Standard234M):
  """LASER, 16 layers. C4 test loss 2.673 [digest].

  234.1M parameters [derived], 167.8B tokens [paper], 64 chips [ours].
  """


# Parameters: 32 (4 x 1024^2 + 2 x 1024 x 2048) + 32,000 x 1024 = 301.2M [derived]. Tokens: 167.8B,
# 557 per parameter. FLOPs: 6 x parameters x tokens = 3.0e20.
@experiment_registry.register
class C4Standard300M(DecoderLM):
  """Standard attention, the base model [paper]. C4 test loss 2.641 [digest].

  301.2M parameters, 167.8B tokens, 64 chips [paper]. 32 layers, 8 heads of 128, MLP hidden 2048.
  """

  NUM_LAYERS = 32  # [paper]
  MODEL_DIMS = 1_024  # [paper]
  HIDDEN_DIMS = 2_048  # [paper]
  POD = 'v5p-64chips'  # 64 TPUv5 chips [paper]


@experiment_registry.register
class C4Laser300M(LaserMixin, C4Standard300M):
  """LASER, the base model [paper]. C4 test loss 2.595 [digest].

  301.2M parameters, 167.8B tokens, 64 chips [paper].
  """


# Parameters: 32 (4 x 2048^2 + 2 x 2048 x 4096) + 32,000 x 2048 = 1.139B [ours]. Tokens: 167.8B, 147
# per parameter. FLOPs: 6 x parameters x tokens = 1.1e21.
@experiment_registry.register
class C4Standard1B(DecoderLM):
  """Standard attention at 1.1B [paper]. No result of this size is known.

  1.139B parameters, the shape [ours]; 167.8B tokens, 128 chips [paper].
  """

  NUM_LAYERS = 32  # [ours]
  MODEL_DIMS = 2_048  # [ours]
  HIDDEN_DIMS = 4_096  # [ours]
  POD = 'v5p-128chips'  # 128 TPUv5 chips [paper]


@experiment_registry.register
class C4Laser1B(LaserMixin, C4Standard1B):
  """LASER at 1.1B [paper]. No result of this size is known.

  1.139B parameters, the shape [ours]; 167.8B tokens, 128 chips [paper].
  """


# Parameters: 64 (4 x 2048^2 + 2 x 2048 x 4096) + 32,000 x 2048 = 2.213B [ours]. Tokens: 167.8B, 76
# per parameter. FLOPs: 6 x parameters x tokens = 2.2e21.
@experiment_registry.register
class C4Standard2B(DecoderLM):
  """Standard attention at 2.2B [paper]. Mean of 16 downstream tasks 62.34% [digest].

  2.213B parameters, the shape [ours]; 167.8B tokens, 256 chips [paper].
  """

  NUM_LAYERS = 64  # [ours]
  MODEL_DIMS = 2_048  # [ours]
  HIDDEN_DIMS = 4_096  # [ours]
  POD = 'v5p-256chips'  # 256 TPUv5 chips [paper]


@experiment_registry.register
class C4Laser2B(LaserMixin, C4Standard2B):
  """LASER at 2.2B [paper]. Mean of 16 downstream tasks 63.39% [digest].

  2.213B parameters, the shape [ours]; 167.8B tokens, 256 chips [paper].
  """


# Parameters: 36 (4 x 5120^2 + 2 x 5120 x 10240) + 32,000 x 5120 = 7.714B [ours]. Tokens: 44B
# [digest], 5.7 per parameter. Steps: 44B / 1,048,576 = 41,962 [derived]. FLOPs: 6 x parameters x
# tokens = 2.0e21.
@experiment_registry.register
class C4Standard7B(DecoderLM):
  """Standard attention at 7.7B [paper]. Mean of 11 downstream tasks 52.53% [digest].

  7.714B parameters, the shape [ours]; 44B tokens [digest], 256 chips [ours].
  """

  NUM_LAYERS = 36  # [ours]
  MODEL_DIMS = 5_120  # [ours]
  HIDDEN_DIMS = 10_240  # [ours]
  NUM_TRAIN_STEPS = 41_962  # [derived]
  POD = 'v5p-256chips'  # [ours]


@experiment_registry.register
class C4Laser7B(LaserMixin, C4Standard7B):
  """LASER at 7.7B. Mean of 11 downstream tasks 53.97% [digest], +1.44 [paper].

  7.714B parameters, the shape [ours]; 44B tokens [digest], 256 chips [ours].
  """
