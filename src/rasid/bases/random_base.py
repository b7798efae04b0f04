"""A base of random weights, for trying out every step of a run without a pre-trained encoder."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

RANDOM = "random"
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
LONGEST_PIECE = 8


def make_random_base(
    texts: Iterable[str], folder: Path, *, pieces: int = 2000, hidden: int = 32, layers: int = 2
) -> Path:
    """Write a BERT of random weights with a Unigram tokenizer for `texts`, in the form of the compact base.

    Args:
        texts: Where the pieces come from.
        folder: Where to write it.
        pieces: Most pieces of the vocabulary, characters aside.
        hidden: Hidden size; the feed-forward layers are twice as wide.
        layers: Encoder layers.
    """
    normalizer, pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    words = Counter(
        word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    )
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + _choose_pieces(words, pieces)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL_TOKENS.index("<unk>")))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=512,
        pad_token_id=1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def _choose_pieces(words: Counter[str], most: int) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities: the parts of words that cover most, and every character.

    The library's trainer gives other pieces each time, so that no run on them could be repeated.
    """
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for start in range(len(word)):
            for stop in range(start + 1, min(start + LONGEST_PIECE, len(word)) + 1):
                counts[word[start:stop]] += times
    ranked = sorted(counts, key=lambda piece: (-counts[piece] * len(piece), piece))
    chosen = [piece for n, piece in enumerate(ranked) if n < most or len(piece) == 1]
    total = sum(counts[piece] for piece in chosen)
    return [(piece, math.log(counts[piece] / total)) for piece in chosen]
