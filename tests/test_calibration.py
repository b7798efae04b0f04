from itertools import product

import numpy as np
import pytest

from rasid.encoding import TextEncoder
from rasid.inference import Extractor
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology
from rasid.scoring.calibration import (
    BIAS,
    BIASES,
    OWN_THRESHOLDS,
    THRESHOLDS,
    WORTHWHILE,
    DevScores,
    choose_bias,
    choose_thresholds,
    dev_scores,
    pooled_f1,
)
from rasid.scoring.evaluation import strict_tables
from rasid.scoring.metrics import Score
from rasid.settings import ModelSettings, shipped_model

RULE = {"head": ["UNIT"], "tail": ["PLACE"]}
ONTOLOGY = Ontology.model_validate(
    {"entity_types": ["UNIT", "PLACE"], "relation_types": {"AT": RULE, "TO": RULE}, "proclitics": ""}
)
OUTSIDE, UNIT, PLACE = 0, 1, 3  # tags


def counts(tp: int, fp: int, fn: int) -> Score:
    """A score whose rates are no use here: of several types, only counts can be pooled."""
    return Score(precision=-1, recall=-1, f1=-1, tp=tp, fp=fp, fn=fn)


# Choosing


def test_pooled_f1_is_that_of_summed_counts() -> None:
    assert pooled_f1([counts(8, 2, 4)]) == 16 / 22
    assert pooled_f1(iter([counts(8, 2, 4), counts(0, 5, 0), counts(1, 0, 1)])) == 18 / (18 + 7 + 5)


@pytest.mark.parametrize("nothing", [[], [counts(0, 0, 0)], [counts(0, 3, 0)], [counts(0, 0, 3)]])
def test_pooled_f1_of_nothing_right_is_zero(nothing: list[Score]) -> None:
    assert pooled_f1(nothing) == 0.0


def test_common_threshold_is_the_best_of_all_types_together() -> None:
    """A is best under 0.3 and B under 0.5, both by far; but A is much the more frequent one."""
    by_threshold = {
        0.3: {"A": counts(100, 0, 0), "B": counts(0, 9, 10)},
        0.4: {"A": counts(90, 10, 10), "B": counts(0, 9, 10)},
        0.5: {"A": counts(80, 20, 20), "B": counts(10, 0, 0)},
    }
    threshold, own = choose_thresholds(by_threshold)
    assert threshold == 0.3
    assert own == {"B": 0.5}


def test_threshold_of_one_type_is_the_common_one() -> None:
    assert choose_thresholds({0.2: {"A": counts(5, 5, 0)}, 0.6: {"A": counts(5, 0, 0)}}) == (0.6, {})


def test_of_equal_thresholds_the_highest_is_taken() -> None:
    same = {"A": counts(5, 1, 1), "B": counts(2, 1, 1)}
    assert choose_thresholds({0.4: same, 0.6: same, 0.5: same}) == (0.6, {})
    # … and for a type of its own too
    many, better, worse = counts(100, 0, 0), counts(10, 0, 0), counts(0, 10, 10)
    by_threshold = {
        0.2: {"A": many, "B": worse},
        0.3: {"A": counts(0, 100, 100), "B": better},
        0.4: {"A": counts(0, 100, 100), "B": better},
    }
    assert choose_thresholds(by_threshold) == (0.2, {"B": 0.4})


def with_rare_type(gain: int) -> dict[float, dict[str, Score]]:
    """Under 0.5 the common type is best; under 0.2 the rare one finds some that it misses else."""
    return {
        0.2: {"COMMON": counts(0, 1000, 1000), "RARE": counts(gain, 0, 10 - gain)},
        0.5: {"COMMON": counts(1000, 0, 0), "RARE": counts(0, 0, 10)},
    }


def test_a_threshold_of_its_own_must_be_worthwhile() -> None:
    """What one more right relation of the rare type adds to micro F1: about half a thousandth."""

    def gain(found: int) -> float:
        common = counts(1000, 0, 0)
        return pooled_f1([common, counts(found, 0, 10 - found)]) - pooled_f1([common, counts(0, 0, 10)])

    assert 0 < gain(1) < WORTHWHILE < gain(3)
    assert choose_thresholds(with_rare_type(1)) == (0.5, {})
    assert choose_thresholds(with_rare_type(3)) == (0.5, {"RARE": 0.2})


def test_types_that_never_occur_keep_the_common_threshold() -> None:
    by_threshold = {t: {"A": counts(9, int(10 * t), 0), "NONE": counts(0, 0, 0)} for t in (0.2, 0.4, 0.6)}
    assert choose_thresholds(by_threshold) == (0.2, {})


def test_no_types_at_all() -> None:
    assert choose_thresholds({0.5: {}}) == (0.5, {})


# What is made of it


def test_mean_f1() -> None:
    assert DevScores(0.8, 0.4, 0.5, {}).mean_f1 == pytest.approx(0.6)
    assert DevScores(0.8, 0.0, 0.5, {}).mean_f1 == 0.4
    assert DevScores(0.8, None, 0.5, {}).mean_f1 == 0.8


def test_calibrate_puts_bias_and_thresholds_into_the_settings() -> None:
    settings = ModelSettings(
        ontology=ONTOLOGY,
        entity_bias={"UNIT": 2.0},
        relation_threshold=0.9,
        relation_thresholds={"AT": 0.1},
        max_proclitic=1,
    )
    calibrated = DevScores(1, 1, 0.35, {"TO": 0.6}, {"PLACE": -1.0}).calibrate(settings)
    assert calibrated.thresholds == (0.35, 0.6)  # of AT nothing is left
    assert calibrated == ModelSettings(
        ontology=ONTOLOGY,
        entity_bias={"PLACE": -1.0},
        relation_threshold=0.35,
        relation_thresholds={"TO": 0.6},
        max_proclitic=1,
    )
    assert ModelSettings.model_validate(calibrated.model_dump(mode="json")) == calibrated


class Backend:
    """Tags a word by its first piece; the relations of two words have the given probabilities."""

    def __init__(self, tag_of: dict[int, int], probability: dict[tuple[int, int], tuple[float, float]]):
        self.tag_of, self.probability, self.calls = tag_of, probability, 0

    def encode(self, input_ids: np.ndarray, word_pieces: np.ndarray) -> tuple[np.ndarray, ...]:
        self.calls += 1
        words = input_ids[word_pieces]
        tags = 40 * np.eye(len(ONTOLOGY.tags), dtype=np.float32)[[self.tag_of.get(int(w), OUTSIDE) for w in words]]
        return tags, np.zeros((len(words), 1), np.float32), words[:, None].astype(np.float32)

    def relate(self, states: np.ndarray, word_tags: np.ndarray, entities: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        self.calls += 1
        word = states[entities[:, 0], 0].astype(int)
        logits = np.full((len(pairs), 2, 2), -40.0, np.float32)
        for p, pair in enumerate(word[pairs[:, :2]].tolist()):
            chance = np.array(self.probability[tuple(pair)])
            logits[p, 0] = np.log(chance / (1 - chance))
        return logits


UNITS, PLACES = ("قسد", "داعش"), ("حلب", "إدلب")


@pytest.fixture
def extractor() -> Extractor:
    """A model whose AT holds where it is above 0.6, and whose TO does where it is above 0.3; see `gold`."""
    settings = ModelSettings(ontology=ONTOLOGY, max_proclitic=0)
    encoder = TextEncoder.load(shipped_model(), settings.text)
    piece = {word: int(encoder.encode(word).windows[0].input_ids[1]) for word in (*UNITS, *PLACES)}
    tag_of = {piece[w]: UNIT for w in UNITS} | {piece[w]: PLACE for w in PLACES}
    chances = dict(zip(product(UNITS, PLACES), [(0.65, 0.35), (0.62, 0.25), (0.5, 0.32), (0.58, 0.22)], strict=True))
    backend = Backend(tag_of, {(piece[u], piece[p]): chance for (u, p), chance in chances.items()})
    return Extractor(backend, encoder, settings)


@pytest.fixture
def gold(extractor: Extractor) -> list[Article]:
    """What the extractor finds with the thresholds 0.6 and 0.3."""
    best = extractor.settings.model_copy(update={OWN_THRESHOLDS: {"AT": 0.6, "TO": 0.3}})
    oracle = Extractor(extractor.backend, extractor.encoder, best)
    articles = [oracle(f"وصلت {unit} إلى {place}", id=f"{unit}-{place}") for unit, place in product(UNITS, PLACES)]
    assert [[r.type for r in a.relations] for a in articles] == [["AT", "TO"], ["AT"], ["TO"], []]
    return articles


def test_dev_scores_find_the_thresholds_of_each_type(extractor: Extractor, gold: list[Article]) -> None:
    # Of common ones 0.3 is best: it finds all, and two AT too many. 0.6 is right about AT, but finds no TO.
    assert dev_scores(extractor, gold) == DevScores(1.0, 1.0, 0.3, {"AT": 0.6})


def test_an_extractor_uses_the_thresholds_that_were_chosen(extractor: Extractor, gold: list[Article]) -> None:
    scores = dev_scores(extractor, gold)
    settings = ModelSettings(ontology=ONTOLOGY, max_proclitic=0, relation_threshold=0.5)
    user = Extractor(extractor.backend, extractor.encoder, scores.calibrate(settings))
    assert [user(a.text, id=a.id) for a in gold] == gold
    before = Extractor(extractor.backend, extractor.encoder, settings)
    assert [before(a.text, id=a.id) for a in gold] != gold
    raised = settings.model_copy(update={OWN_THRESHOLDS: {"AT": 0.63}})
    found = Extractor(extractor.backend, extractor.encoder, raised)(gold[0].text)
    assert found.relations == (Relation(type="AT", head="T1", tail="T2", score=0.65),)
    assert Extractor(extractor.backend, extractor.encoder, raised)(gold[1].text).relations == ()


def test_thresholds_that_a_model_had_before_do_not_matter(extractor: Extractor, gold: list[Article]) -> None:
    scores = dev_scores(extractor, gold)
    extractor.settings = DevScores(0, 0, 0.99, {"AT": 0.98}).calibrate(extractor.settings)
    assert dev_scores(extractor, gold) == scores


def test_the_network_runs_once_for_all_thresholds(extractor: Extractor, gold: list[Article]) -> None:
    backend = extractor.backend
    backend.calls = 0
    dev_scores(extractor, gold)
    assert backend.calls == 2 * len(gold)
    assert len(THRESHOLDS) > 1


def test_an_ontology_without_relations_has_no_f1_of_them(extractor: Extractor, gold: list[Article]) -> None:
    ontology = Ontology(entity_types=("UNIT", "PLACE"))
    settings = ModelSettings(ontology=ontology, max_proclitic=0, relation_threshold=0.7)
    only = Extractor(extractor.backend, extractor.encoder, settings)
    articles = [a.model_copy(update={"relations": ()}) for a in gold]
    assert dev_scores(only, articles) == DevScores(1.0, None, 0.7, {})


# Bias

DOUBTFUL = {"مدينة": 0.7, "قرية": 1.2, "بلدة": 2.2}  # words, and how much likelier than no entity each is, as a logit


class DoubtfulBackend:
    """Takes each word of `DOUBTFUL` for a place, with the logit it has there; knows no relation."""

    def __init__(self, logit_of: dict[int, float]):
        self.logit_of = logit_of

    def encode(self, input_ids: np.ndarray, word_pieces: np.ndarray) -> tuple[np.ndarray, ...]:
        words = input_ids[word_pieces].tolist()
        tags = np.full((len(words), len(ONTOLOGY.tags)), -40, np.float32)
        tags[:, OUTSIDE] = 0
        tags[:, PLACE] = [self.logit_of.get(word, -40) for word in words]
        return tags, np.zeros((len(words), 1), np.float32), np.zeros((len(words), 1), np.float32)

    def relate(self, states: np.ndarray, word_tags: np.ndarray, entities: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        return np.full((len(pairs), 2, 2), -40, np.float32)


@pytest.fixture
def doubtful() -> Extractor:
    settings = ModelSettings(ontology=ONTOLOGY, max_proclitic=0)
    encoder = TextEncoder.load(shipped_model(), settings.text)
    logit_of = {int(encoder.encode(w).windows[0].input_ids[1]): logit for w, logit in DOUBTFUL.items()}
    assert len(logit_of) == len(DOUBTFUL)
    return Extractor(DoubtfulBackend(logit_of), encoder, settings)


def annotated(wanted: set[str]) -> list[Article]:
    """An article for each doubtful word; those that are wanted are places."""
    articles = []
    for word in DOUBTFUL:
        place = Entity(id="T1", type="PLACE", start=5, end=5 + len(word), text=word)
        articles.append(Article(id=word, text=f"إلى، {word}", entities=(place,) if word in wanted else ()))
    return articles


@pytest.mark.parametrize(
    ("wanted", "bias"),
    [
        ({"مدينة", "قرية", "بلدة"}, {}),  # right as it is
        ({"قرية", "بلدة"}, {"PLACE": -1.0}),  # and not -0.5, which would keep the first
        ({"بلدة"}, {"PLACE": -1.5}),
        (set(), {}),  # nothing helps: F1 stays 0
    ],
)
def test_a_type_that_is_tagged_too_often_gets_a_bias(
    doubtful: Extractor, wanted: set[str], bias: dict[str, float]
) -> None:
    articles = annotated(wanted)
    assert choose_bias(doubtful, articles) == bias
    scores = dev_scores(doubtful, articles)
    assert scores.bias == bias
    assert scores.entity_f1 == (1.0 if wanted else 0.0)


def test_a_type_that_is_tagged_too_rarely_gets_a_bias(doubtful: Extractor) -> None:
    backend = doubtful.backend
    backend.logit_of = {piece: logit - 1.8 for piece, logit in backend.logit_of.items()}
    assert choose_bias(doubtful, annotated({"قرية", "بلدة"})) == {"PLACE": 1.0}
    assert max(BIASES) == -min(BIASES)


def test_an_extractor_uses_the_bias_that_was_chosen(doubtful: Extractor) -> None:
    articles = annotated({"بلدة"})
    assert [len(doubtful(a.text).entities) for a in articles] == [1, 1, 1]
    doubtful.settings = dev_scores(doubtful, articles).calibrate(doubtful.settings)
    found = [doubtful(a.text).entities for a in articles]
    assert [len(entities) for entities in found] == [0, 0, 1]
    # The score is the probability under the bias, too: of 2.2 - 1.5 against 0.
    assert found[2][0].score == pytest.approx(1 / (1 + np.exp(-0.7)), abs=1e-3)


def test_a_bias_that_a_model_had_before_does_not_matter(doubtful: Extractor) -> None:
    articles = annotated({"قرية", "بلدة"})
    before = dev_scores(doubtful, articles)
    doubtful.settings = DevScores(0, 0, 0.5, {}, {"PLACE": -5.0}).calibrate(doubtful.settings)
    assert dev_scores(doubtful, articles) == before


def test_a_bias_must_be_worthwhile(doubtful: Extractor) -> None:
    """One error among a thousand entities is no reason for one."""
    sure = {piece: 9.0 for piece, logit in doubtful.backend.logit_of.items() if logit > 2}
    doubtful.backend.logit_of |= sure
    right, wrong = annotated({"بلدة"})[2], annotated({"بلدة"})[0]
    many = [right.model_copy(update={"id": str(n)}) for n in range(400)]
    assert choose_bias(doubtful, [*many, wrong]) == {}
    assert choose_bias(doubtful, [*many[:40], wrong]) == {"PLACE": -1.0}


class UncertainBackend:
    """Random logits of tags for each piece, near to one another, so that every bias changes some tags."""

    def encode(self, input_ids: np.ndarray, word_pieces: np.ndarray) -> tuple[np.ndarray, ...]:
        words = input_ids[word_pieces].tolist()
        tags = np.array([np.random.default_rng(w).normal(size=len(ONTOLOGY.tags)) for w in words], np.float32)
        return tags, np.zeros((len(words), 1), np.float32), np.zeros((len(words), 1), np.float32)


@pytest.mark.parametrize("transitions", [None, (np.arange(30).reshape(6, 5) / 20).tolist()])
def test_the_bias_is_the_one_that_reading_everything_anew_would_choose(
    transitions: list[list[float]] | None, gold: list[Article]
) -> None:
    settings = ModelSettings(
        ontology=Ontology(entity_types=ONTOLOGY.entity_types), max_proclitic=0, transitions=transitions
    )
    extractor = Extractor(UncertainBackend(), TextEncoder.load(shipped_model(), settings.text), settings)
    texts = [f"{a.text}\n{b.text}" for a, b in product(gold, repeat=2)]
    truth = Extractor(extractor.backend, extractor.encoder, settings.model_copy(update={BIAS: {"PLACE": -1.2}}))
    articles = [truth(text, id=str(n)) for n, text in enumerate(texts)]

    def f1(bias: dict[str, float]) -> float:
        user = Extractor(extractor.backend, extractor.encoder, settings.model_copy(update={BIAS: bias}))
        pairs = [(a, user(a.text, id=a.id)) for a in articles]
        return strict_tables(pairs, settings.ontology)[0].micro.f1

    chosen = choose_bias(extractor, articles)
    alone = {(name, b): f1({name: b}) for name in ("UNIT", "PLACE") for b in BIASES}
    first = next(iter(chosen))
    assert alone[first, chosen[first]] == max(alone.values()) > f1({}) + 0.01
    assert len(set(alone.values())) > 5
    assert dev_scores(extractor, articles).entity_f1 == f1(chosen)
