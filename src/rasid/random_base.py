"""A base of random weights, for trying out every step of a run without a pre-trained encoder."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

RANDOM = "random"
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")


def make_random_base(
    texts: Iterable[str], folder: Path, *, pieces: int = 2000, hidden: int = 32, layers: int = 2
) -> Path:
    """Write a BERT of random weights with a Unigram tokenizer trained on `texts`, in the form of the compact base.

    Args:
        texts: What the tokenizer learns its pieces from.
        folder: Where to write it.
        pieces: Most pieces of the vocabulary.
        hidden: Hidden size; the feed-forward layers are twice as wide.
        layers: Encoder layers.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=pieces, special_tokens=list(SPECIAL_TOKENS), unk_token="<unk>")
    tokenizer.train_from_iterator(texts, trainer)
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
