"""Generation with a cache: equal to one pass over the whole, token by token; draws; errors."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax import configs
from laser_pax.data import sample, vocabulary
from laser_pax.errors import UserError
from laser_pax.evaluation import generation
from laser_pax.evaluation.generation import Sampling
from laser_pax.experiment import saved_models
from tests.support import steps

EOS = vocabulary.EOS_ID


NAMES = ('C4LaserTiny', 'C4StandardTiny')


@pytest.fixture(scope='module')
def generated(commands):
  """The output of tests/support/generated.py, by experiment."""
  return steps.in_own_process(commands, 1, 'generated', '[1,1,1]', *NAMES)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_64_tokens_with_the_cache_are_those_of_one_pass(generated, name):
  rows = (generated[name][x] for x in ('prompts', 'greedy', 'likeliest'))
  for prompt, new, best in zip(*rows, strict=True):
    assert new == best[len(prompt) :] and len(new) == 64
  assert max(len(set(new)) for new in generated[name]['greedy']) >= 8


@pytest.mark.slow
def test_a_continuation_does_not_depend_on_the_other_prompts(generated):
  result = generated['C4LaserTiny']
  assert result['beside others'] == result['greedy'][2]
  assert result['fewer'] == [new[:44] for new in result['greedy']]


@pytest.mark.slow
def test_a_continuation_stops_after_the_end_of_the_sequence(generated):
  ending = generated['C4LaserTiny']['ending']
  lengths = [len(new) for new in ending]
  assert min(lengths) < 64
  for new in ending:
    assert EOS not in new[:-1] and len(new) <= 64
    assert generation.has_ended(new) == (new[-1] == EOS) and (len(new) == 64 or new[-1] == EOS)


def _frequencies(logits, dtype, sampling):
  """How often each token is drawn from logits [V], as PAX's decoding draws."""
  count = 20_000
  sampler = generation.Float32Sampler(
    top_k=sampling.top_k, top_p=sampling.top_p if sampling.top_p < 1 else None
  )
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.PRNGKey(0), i))(jnp.arange(count))
  model = types.SimpleNamespace(next_prng_key=lambda: jax.random.PRNGKey(1))
  rows = jnp.tile(jnp.asarray(logits, dtype), (count, 1))
  ids = sampler(model, rows, sampling.temperature, None, gumbel_prng_key=keys).new_ids
  return np.bincount(np.asarray(ids), minlength=len(logits)) / count


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'sampling, kept',
  [
    (Sampling(1.0), 6),
    (Sampling(0.5), 6),
    (Sampling(1.0, top_k=3), 3),
    (Sampling(1.0, top_p=0.9), 4),  # 0.51, 0.31, 0.07, 0.06: 0.89 is not enough.
    (Sampling(2.0, top_k=5, top_p=0.8), 2),
  ],
)
def test_draws_have_the_chances_of_the_softmax(dtype, sampling, kept):
  logits = np.array([3.0, 2.5, 1.0, 0.875, -1.0, 0.25])
  chances = np.exp(logits / sampling.temperature)
  chances[np.argsort(logits)[: len(logits) - kept]] = 0
  chances /= chances.sum()
  drawn = _frequencies(logits, dtype, sampling)
  np.testing.assert_allclose(drawn, chances, atol=4 * np.sqrt(0.25 / 20_000))
  assert not drawn[chances == 0].any()


def _experiment():
  return configs.C4LaserTiny()


@pytest.mark.parametrize(
  ('prompts', 'max_tokens', 'sampling', 'words'),
  [
    ([[5], []], 4, Sampling(), ['prompt 2 is empty']),
    ([[5] * 100], 29, Sampling(), ['prompt 1 has 100 tokens', '29 more', 'SEQ_LEN = 128']),
    ([[4_096]], 4, Sampling(), ['4096', 'VOCAB_SIZE = 4096', 'another vocabulary']),
    ([[5]], 0, Sampling(), ['max_tokens must be at least 1']),
    ([[5]], 4, Sampling(-1.0), ['temperature must be 0 or greater', '-1']),
    ([[5]], 4, Sampling(1.0, top_p=0.0), ['top_p must be above 0']),
    ([[5]], 4, Sampling(1.0, top_k=5_000), ['top_k', '4096']),
    ([[5]], 4, Sampling(top_k=5), ['temperature above 0']),
  ],
)
def test_what_cannot_be_generated_is_one_clear_error(prompts, max_tokens, sampling, words):
  with pytest.raises(UserError) as error:
    generation.check(_experiment(), prompts, max_tokens, sampling)
  for word in words:
    assert word in str(error.value)


def test_the_longest_prompt_fits():
  generation.check(_experiment(), [[5] * 100], 28, Sampling())


def test_a_model_that_is_no_decoder_is_refused():
  with pytest.raises(UserError, match='BertTiny generates no text'):
    generation.check(configs.WikipediaLaserBertTiny(), [[5]], 4, Sampling())


def test_texts_become_the_ids_of_training_and_back(tmp_path):
  (tmp_path / 'vocab.model').write_bytes(sample.VOCAB.read_bytes())
  tokenizer = generation.Tokenizer(_experiment(), saved_models.Saved(str(tmp_path), 0, None))
  prompt, whole = (tokenizer.ids(x) for x in ('The state of', 'The state of the Union is strong'))
  assert whole[: len(prompt)] == prompt and EOS not in whole
  new = [*whole[len(prompt) :], EOS]
  assert tokenizer.continuation(prompt, new) == ' the Union is strong'


def test_another_vocabulary_is_one_clear_error(tmp_path):
  texts = [' '.join(f'word{i}' for i in range(100))] * 4
  vocabulary.train_vocabulary(texts, tmp_path / 'vocab.model', size=19, sentences=4)
  with pytest.raises(UserError, match='has 19 pieces, but the model has VOCAB_SIZE = 4096'):
    generation.Tokenizer(_experiment(), saved_models.Saved(str(tmp_path), 0, None))
