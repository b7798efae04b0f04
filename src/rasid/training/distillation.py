"""Distillation: a model learns what several trained ones, its teachers, make of a text (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

Of annotated text the targets are a mean of annotation and teachers. Raw text is annotated by the teachers, and their
probabilities are its targets.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from rasid.config import DistillationConfig
from rasid.decoding import Floats, Ints, log_softmax, sigmoid
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError, DataError
from rasid.inference import Backend, Extractor
from rasid.parallel import ordered_map
from rasid.records import Article
from rasid.scoring.calibration import RememberingBackend
from rasid.settings import ModelSettings
from rasid.training.dataset import Example, Unpredictable, build_dataset, candidates, to_dataset, window_examples
from rasid.training.raw_text import read_paragraphs

logger = logging.getLogger(__name__)

CERTAIN = 1e-6  # how near to 0 and 1 a mean probability comes, so that its logit is finite


class EnsembleBackend:
    """Several networks as one: the mean of their probabilities; see `rasid.inference.Backend`.

    Its word states are those of all of them, one after another.
    """

    def __init__(self, members: Sequence[Backend]):
        self.members = members

    def encode(self, input_ids: Ints, word_pieces: Ints) -> tuple[Floats, Floats, Floats]:
        """See `Backend`; the logits are logarithms of mean probabilities, the states [W, members * H]."""
        tags, proclitics, states = zip(*(m.encode(input_ids, word_pieces) for m in self.members), strict=True)
        return _log_mean(tags), _log_mean(proclitics), np.concatenate(states, axis=-1)

    def relate(self, states: Floats, word_tags: Ints, entities: Ints, pairs: Ints) -> Floats:
        """See `Backend`."""
        parts = np.split(states, len(self.members), axis=-1)
        logits = [m.relate(s, word_tags, entities, pairs) for m, s in zip(self.members, parts, strict=True)]
        mean = np.clip(np.mean([sigmoid(one) for one in logits], axis=0), CERTAIN, 1 - CERTAIN)
        return np.log(mean / (1 - mean)).astype(np.float32)  # type: ignore[no-any-return]


def _log_mean(logits: Sequence[Floats]) -> Floats:
    mean = np.mean([np.exp(log_softmax(one)) for one in logits], axis=0)
    return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)  # type: ignore[no-any-return]


def load_teachers(folders: Sequence[Path], encoder: TextEncoder, settings: ModelSettings) -> Extractor:
    """Exported models as one extractor; bias and thresholds are the means of theirs.

    Args:
        folders: Made by `rasid export` or `rasid train`.
        encoder: The student's, whose pieces they must read.
        settings: The student's, whose ontology and text settings they must share.

    Raises:
        ModelError: for a folder that cannot be loaded.
        ConfigError: if a teacher's types, text settings or tokenizer differ from the student's.
    """
    teachers = [Extractor.load(folder) for folder in folders]
    for folder, teacher in zip(folders, teachers, strict=True):
        for what, found, wanted in (
            ("ontology", teacher.ontology, settings.ontology),
            ("text settings", teacher.settings.text, settings.text),
            ("max_proclitic", teacher.settings.max_proclitic, settings.max_proclitic),
            ("tokenizer", teacher.encoder.tokenizer.to_str(), encoder.tokenizer.to_str()),
        ):
            if found != wanted:
                raise ConfigError(
                    f"distillation.teachers: {folder} has another {what} than this run; give models that were trained "
                    "with the same ones"
                )
        if teacher.settings.transitions is not None:
            raise ConfigError(
                f"distillation.teachers: {folder} was trained with heads.crf, so that its tag logits alone are no "
                "probabilities; give models that were trained without"
            )
    thresholds = {
        name: float(np.mean([t.settings.thresholds[n] for t in teachers]))
        for n, name in enumerate(settings.ontology.relation_names)
    }
    bias = {
        name: float(np.mean([t.settings.entity_bias.get(name, 0.0) for t in teachers]))
        for name in settings.ontology.entity_types
    }
    own = settings.model_copy(update={"entity_bias": bias, "relation_thresholds": thresholds})
    return Extractor(EnsembleBackend([t.backend for t in teachers]), encoder, own, teachers[0].threads)


def distil(
    articles: Sequence[Article], encoder: TextEncoder, settings: ModelSettings, config: DistillationConfig, seed: int
) -> tuple[Dataset, Unpredictable]:
    """Windows of annotated articles and of raw text, with the teachers' probabilities as targets.

    Args:
        articles: The annotated ones.
        encoder: The student's.
        settings: The student's.
        config: The teachers, and the raw text.
        seed: Of the choice of paragraphs.

    Returns:
        The dataset, with `tag_targets` [W, T] and `relation_targets` (flat [P, 2, R]) in each example; what of the
        annotation cannot be predicted.

    Raises:
        ModelError, ConfigError: see `load_teachers`.
        DataError: if there is no text, or a file cannot be read.
    """
    teachers = load_teachers(config.teachers, encoder, settings)
    dataset, unpredictable = build_dataset(articles, encoder, settings)
    parts = [soften(dataset, teachers, config.weight)]
    if config.corpus:
        paragraphs = set(read_paragraphs(config.corpus, config.about, config.mentions))
        texts = sorted(text for text in paragraphs if len(text) <= config.longest)
        if not texts:
            raise DataError(
                "distillation.corpus: no paragraph of distillation.longest characters or less holds enough words of "
                "distillation.about"
            )
        chosen = random.Random(seed).sample(texts, min(config.paragraphs, len(texts)))
        logger.info("%d teachers read %d of %d paragraphs", len(config.teachers), len(chosen), len(texts))
        parts.append(annotate(chosen, teachers))
    return concatenate_datasets(parts), unpredictable


def soften(dataset: Dataset, teachers: Extractor, weight: float) -> Dataset:
    """A dataset with targets that are `weight` times the teachers' probabilities and the rest the labels."""
    rows = ordered_map(lambda example: _with_targets(example, teachers, weight), dataset, teachers.threads)
    return Dataset.from_list(list(rows))


def annotate(texts: Sequence[str], teachers: Extractor) -> Dataset:
    """Windows of raw texts: entities and relations as the teachers find them, their probabilities as targets.

    Raises:
        DataError: if the texts hold no word.
    """

    def read(text: str) -> list[Example]:
        # What is found and how probable it is come out of the same answers of the networks.
        backend = RememberingBackend(teachers.backend)
        once = Extractor(backend, teachers.encoder, teachers.settings)
        windows = window_examples(once(text), once.encoder, once.settings, Unpredictable())
        return [_with_targets(example, once, 1.0) for example in windows]

    return to_dataset([row for rows in ordered_map(read, texts, teachers.threads) for row in rows])


def _with_targets(example: Example, teachers: Extractor, weight: float) -> Example:
    tags = np.eye(len(teachers.ontology.tags), dtype=np.float32)[example["tags"]]
    pairs, relations = candidates(example, teachers.ontology)
    if weight:
        taught = teach(example, pairs, teachers)
        tags, relations = ((1 - weight) * a + weight * b for a, b in zip((tags, relations), taught, strict=True))
    return example | {"tag_targets": tags.tolist(), "relation_targets": relations.ravel().tolist()}


def teach(example: Example, pairs: Ints, teachers: Extractor) -> tuple[Floats, Floats]:
    """What the teachers say of one window, given its entities: probabilities of tags [W, T] and relations [P, 2, R].

    Args:
        example: The window.
        pairs: Its candidate pairs [P, 3]; see `candidates`.
        teachers: See `load_teachers`.
    """
    pieces, words = (np.array(example[name], dtype=np.int64) for name in ("input_ids", "word_pieces"))
    tags, _, states = teachers.backend.encode(pieces, words)
    relations = np.zeros((len(pairs), 2, len(teachers.ontology.relation_names)))
    if len(pairs):
        where = np.array(example["entities"], dtype=np.int64)[:, :2]
        relations = sigmoid(teachers.backend.relate(states, np.array(example["tags"], dtype=np.int64), where, pairs))
    return np.exp(log_softmax(tags)).astype(np.float32), relations.astype(np.float32)
