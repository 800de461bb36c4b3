"""The registered experiments. Importing this package registers all of them with PAX.

`python -m paxml.main --exp=laser_pax.configs.C4Laser2B` finds them here; `python -m laser_pax list`
lists them.
"""

from laser_pax import pax_fixes
from laser_pax.errors import require_pax

require_pax()
pax_fixes.apply()

from laser_pax.configs.bert import (  # noqa: E402
  WikipediaLaserBert2B,
  WikipediaLaserBertTiny,
  WikipediaStandardBert2B,
  WikipediaStandardBertTiny,
)
from laser_pax.configs.c4 import (  # noqa: E402
  C4Laser1B,
  C4Laser2B,
  C4Laser7B,
  C4Laser234M,
  C4Laser300M,
  C4LaserTiny,
  C4Standard1B,
  C4Standard2B,
  C4Standard7B,
  C4Standard234M,
  C4Standard300M,
  C4StandardTiny,
)
from laser_pax.configs.c4_ablations import (  # noqa: E402
  C4Laser2BDifferential,
  C4Laser2BFixedTemperature,
  C4Laser300MBeta2,
  C4Laser300MBetaHalf,
  C4Laser300MBetaLearned,
  C4Laser300MCap5,
  C4Laser300MLamb,
  C4Laser300MNoCap,
  C4Laser300MQkNorm,
  C4Laser300MUnshifted,
  C4Standard2BDifferential,
  C4Standard2BFixedTemperature,
  C4Standard300MCap5,
  C4Standard300MLamb,
  C4Standard300MNoCap,
  C4Standard300MQkNorm,
)
from laser_pax.configs.imagenet import (  # noqa: E402
  ImageNetLaserViTS16,
  ImageNetLaserViTS16QkNorm,
  ImageNetLaserViTTiny,
  ImageNetStandardViTS16,
  ImageNetStandardViTS16QkNorm,
  ImageNetStandardViTTiny,
)
from laser_pax.configs.librispeech import (  # noqa: E402
  LibriSpeechLaserConformer,
  LibriSpeechLaserConformerTiny,
  LibriSpeechStandardConformer,
  LibriSpeechStandardConformerTiny,
)
from laser_pax.configs.superglue import (  # noqa: E402
  SuperGlueLaser2B,
  SuperGlueLaserTiny,
  SuperGlueStandard2B,
  SuperGlueStandardTiny,
)
from laser_pax.experiment.bert import BertMLM  # noqa: E402
from laser_pax.experiment.conformer import LibriSpeechConformer  # noqa: E402
from laser_pax.experiment.decoder import DecoderLM  # noqa: E402
from laser_pax.experiment.laser import LaserMixin  # noqa: E402
from laser_pax.experiment.superglue import SuperGlueLM  # noqa: E402
from laser_pax.experiment.vit import ImageNetViT  # noqa: E402

__all__ = [
  'BertMLM',
  'C4Standard2BFixedTemperature',
  'C4Laser2BFixedTemperature',
  'C4Standard300MQkNorm',
  'C4Laser300MQkNorm',
  'C4Standard2BDifferential',
  'C4Laser2BDifferential',
  'C4Standard300MLamb',
  'C4Laser300MLamb',
  'C4Standard300MCap5',
  'C4Laser300MCap5',
  'C4Standard300MNoCap',
  'C4Laser300MNoCap',
  'C4Laser300MUnshifted',
  'C4Laser300MBetaHalf',
  'C4Laser300MBeta2',
  'C4Laser300MBetaLearned',
  'C4Laser1B',
  'C4Laser234M',
  'C4Laser2B',
  'C4Laser300M',
  'C4Laser7B',
  'C4LaserTiny',
  'C4Standard1B',
  'C4Standard234M',
  'C4Standard2B',
  'C4Standard300M',
  'C4Standard7B',
  'C4StandardTiny',
  'DecoderLM',
  'ImageNetLaserViTS16',
  'ImageNetLaserViTS16QkNorm',
  'ImageNetLaserViTTiny',
  'ImageNetStandardViTS16',
  'ImageNetStandardViTS16QkNorm',
  'ImageNetStandardViTTiny',
  'ImageNetViT',
  'LaserMixin',
  'LibriSpeechConformer',
  'LibriSpeechLaserConformer',
  'LibriSpeechLaserConformerTiny',
  'LibriSpeechStandardConformer',
  'LibriSpeechStandardConformerTiny',
  'SuperGlueLM',
  'SuperGlueLaser2B',
  'SuperGlueLaserTiny',
  'SuperGlueStandard2B',
  'SuperGlueStandardTiny',
  'WikipediaLaserBert2B',
  'WikipediaLaserBertTiny',
  'WikipediaStandardBert2B',
  'WikipediaStandardBertTiny',
]
