"""The tokenizer of this folder for transformers: tokenizer.model, in T5's layout.

    AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)

The ids are pad 0, end 1, unknown 2. A text's first id is 0, as every row of the training had it.
"""

import itertools
import os
import shutil

import sentencepiece
from transformers import PreTrainedTokenizer


class LaserTokenizer(PreTrainedTokenizer):
  """SentencePiece's own pieces and ids. Special tokens are a 0 before the text, and nothing after.

  Attributes:
    vocab_file: The model of SentencePiece.
    pieces: SentencePiece's processor.
  """

  vocab_files_names = {'vocab_file': 'tokenizer.model'}
  model_input_names = ['input_ids', 'attention_mask']

  def __init__(self, vocab_file: str, **kwargs):
    """Reads the model of SentencePiece."""
    self.vocab_file = vocab_file
    self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
    names = {'bos_token': 0, 'pad_token': 0, 'eos_token': 1, 'unk_token': 2}
    kwargs = {name: self.pieces.IdToPiece(i) for name, i in names.items()} | kwargs
    super().__init__(**kwargs)

  @property
  def vocab_size(self) -> int:
    """The number of pieces."""
    return self.pieces.GetPieceSize()

  def get_vocab(self) -> dict[str, int]:
    """Returns the id of each piece."""
    return {self.pieces.IdToPiece(i): i for i in range(self.vocab_size)} | self.added_tokens_encoder

  def build_inputs_with_special_tokens(self, first: list[int], second=None) -> list[int]:
    """Returns the ids of a text, or of two as one, with a 0 before them."""
    return [self.bos_token_id, *first, *(second or [])]

  def get_special_tokens_mask(self, first, second=None, already_has_special_tokens=False):
    """Returns 1 for the 0 before a text, and 0 for the text."""
    if already_has_special_tokens:
      return super().get_special_tokens_mask(first, second, already_has_special_tokens=True)
    return [1] + [0] * (len(first) + len(second or []))

  def create_token_type_ids_from_sequences(self, first, second=None) -> list[int]:
    """Returns a 0 for each id: the model knows no types."""
    return [0] * len(self.build_inputs_with_special_tokens(first, second))

  def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
    """Copies the model of SentencePiece into a folder."""
    name = f'{filename_prefix}-tokenizer.model' if filename_prefix else 'tokenizer.model'
    target = os.path.join(save_directory, name)
    if os.path.abspath(target) != os.path.abspath(self.vocab_file):
      shutil.copy(self.vocab_file, target)
    return (target,)

  def convert_tokens_to_string(self, tokens: list[str]) -> str:
    """Returns the text of pieces. Special tokens stay as they are written.

    SentencePiece would leave them out. lm_eval looks for the start token by its text, and takes an
    empty one for found.
    """
    runs = itertools.groupby(tokens, self.all_special_tokens.__contains__)
    return ''.join(
      ''.join(run) if is_special else self.pieces.DecodePieces([*run]) for is_special, run in runs
    )

  def _tokenize(self, text: str, **kwargs) -> list[str]:
    return self.pieces.EncodeAsPieces(text)

  def _convert_token_to_id(self, token: str) -> int:
    return self.pieces.PieceToId(token)

  def _convert_id_to_token(self, index: int) -> str:
    return self.pieces.IdToPiece(index)
