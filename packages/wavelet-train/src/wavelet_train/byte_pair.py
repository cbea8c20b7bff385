"""Learning a byte-level byte-pair vocabulary with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as TokenizersTokenizer

from wavelet_core.tokenizer_file import byte_characters
from wavelet_core.tokenizers import GPT2_PATTERN, BytePairTokenizer

# Characters. What the split pattern leaves longer, such as a megabyte of one letter, is learnt from in parts of this
# length, because the time for a part grows with its square. Encoding has no such limit.
LONGEST_PART = 1024


def train_byte_pair(config: BytePairTokenizer.Config, documents: Iterable[str]) -> BytePairTokenizer:
    """Learn a vocabulary of `config.vocabulary_size` tokens from documents; fewer when the text has no more pairs.

    The same documents give the same vocabulary. The tokenizer made of it runs on tiktoken and cuts every text as the
    `tokenizers` library would, words longer than LONGEST_PART excepted.
    """
    learner = byte_level_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size - 1,  # the end of text comes on top
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(documents, trainer)
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    merged = sorted((rank, token) for token, rank in learner.get_vocab().items() if len(token) > 1)
    tokens = [bytes(byte_of[character] for character in token) for _, token in merged]
    return BytePairTokenizer(config, [bytes([byte]) for byte in range(256)] + tokens)


def byte_level_tokenizer() -> TokenizersTokenizer:
    """A tokenizer of the `tokenizers` library that splits text like wavelet_core's and then works on bytes.

    It cuts words longer than LONGEST_PART.
    """
    tokenizer = TokenizersTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated"),
            pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{LONGEST_PART}}}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
