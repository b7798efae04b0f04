"""Teachers as one extractor, what they add to the targets, and students that learn from them alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from rasid.config import DistillationConfig, load_config
from rasid.decoding import allowed_relations, log_softmax, sigmoid
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError, DataError, ModelError
from rasid.inference import Extractor
from rasid.modeling.checkpoint import create_model, load_checkpoint, load_torch_extractor
from rasid.modeling.model import RasidModel
from rasid.records import Article, read_articles
from rasid.scoring.calibration import dev_scores
from rasid.training.dataset import Collator, build_dataset, candidates
from rasid.training.distillation import EnsembleBackend, annotate, distil, load_teachers, soften, teach
from rasid.training.trainer import fit, save_checkpoint

Configure = Callable[..., Any]


@pytest.fixture(scope="module")
def teacher(toy_run: Path) -> Extractor:
    return Extractor.load(toy_run / "onnx", threads=1)


@pytest.fixture(scope="module")
def articles(toy: dict[str, Path]) -> list[Article]:
    return list(read_articles(toy["dev"]))


@pytest.fixture
def raw(toy: dict[str, Path], tmp_path: Path) -> Path:
    """The sentences of the toy training corpus, without their annotation, one of them twice."""
    texts = [a.text for a in read_articles(toy["train"])]
    (tmp_path / "raw.txt").write_text("\n".join([*texts, texts[0]]), encoding="utf-8")
    return tmp_path / "raw.txt"


class Fixed:
    """A backend that says the same of everything."""

    def __init__(self, tag: float, relation: float, hidden: int):
        self.tag, self.relation, self.hidden = tag, relation, hidden

    def encode(self, input_ids: Any, word_pieces: Any) -> tuple[Any, Any, Any]:
        tags = np.log(np.array([[self.tag, 1 - self.tag]], dtype=np.float32))
        return tags + 3, tags - 5, np.full((1, self.hidden), self.tag, dtype=np.float32)

    def relate(self, states: Any, word_tags: Any, entities: Any, pairs: Any) -> Any:
        assert states.shape == (1, self.hidden)
        assert (states == np.float32(self.tag)).all()
        return np.full((2, 2, 1), self.relation, dtype=np.float32)


def test_ensemble_is_the_mean_of_probabilities() -> None:
    ensemble = EnsembleBackend([Fixed(0.9, 2.0, 3), Fixed(0.2, -40.0, 3)])
    nothing = np.zeros((1,), dtype=np.int64)
    tags, proclitics, states = ensemble.encode(nothing, nothing)
    for logits in (tags, proclitics):
        assert logits.dtype == np.float32
        assert np.exp(log_softmax(logits)) == pytest.approx(np.array([[0.55, 0.45]]), abs=1e-6)
    assert states.shape == (1, 6)
    relations = ensemble.relate(states, nothing, nothing, nothing)
    assert relations.dtype == np.float32
    assert sigmoid(relations) == pytest.approx(np.full((2, 2, 1), sigmoid(np.array([2.0]))[0] / 2), abs=1e-5)


def test_logits_of_sure_members_are_finite() -> None:
    ensemble = EnsembleBackend([Fixed(1 - 1e-7, 500.0, 2), Fixed(1 - 1e-7, 500.0, 2)])
    nothing = np.zeros((1,), dtype=np.int64)
    tags, _, states = ensemble.encode(nothing, nothing)
    assert np.isfinite(tags).all()
    assert np.isfinite(ensemble.relate(states, nothing, nothing, nothing)).all()


def test_two_of_the_same_are_one(toy_run: Path, teacher: Extractor, articles: list[Article]) -> None:
    both = load_teachers([toy_run / "onnx"] * 2, teacher.encoder, teacher.settings)
    assert both.settings.thresholds == pytest.approx(teacher.settings.thresholds)
    for article in articles:
        one, two = teacher(article.text), both(article.text)
        assert [e.model_dump(exclude={"score"}) for e in one.entities] == [
            e.model_dump(exclude={"score"}) for e in two.entities
        ]
        assert [e.score for e in two.entities] == pytest.approx([e.score for e in one.entities], abs=1e-3)
        assert {(r.type, r.head, r.tail) for r in one.relations} == {(r.type, r.head, r.tail) for r in two.relations}


def test_threshold_is_the_mean_of_the_teachers(toy_run: Path, teacher: Extractor, tmp_path: Path) -> None:
    for name, threshold in (("a", 0.2), ("b", 0.6)):
        shutil.copytree(toy_run / "onnx", tmp_path / name)
        edit_settings(tmp_path / name, relation_threshold=threshold, relation_thresholds={})
    teachers = load_teachers([tmp_path / "a", tmp_path / "b"], teacher.encoder, teacher.settings)
    assert teachers.settings.thresholds == pytest.approx((0.4,))


def edit_settings(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["settings"] |= changed
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_targets_between_labels_and_teachers(weight: float, teacher: Extractor, articles: list[Article]) -> None:
    dataset, _ = build_dataset(articles, teacher.encoder, teacher.settings)
    soft = soften(dataset, teacher, weight)
    assert len(soft) == len(dataset) == len(articles)
    held = 0
    for before, after in zip(dataset, soft, strict=True):
        assert {k: after[k] for k in before} == before
        tags, relations = teach(before, candidates(before, teacher.ontology)[0], teacher)
        labels = candidates(before, teacher.ontology)[1]
        assert tags.shape == (len(before["tags"]), len(teacher.ontology.tags))
        assert tags.sum(-1) == pytest.approx(1, abs=1e-5)
        assert relations.shape == labels.shape
        hard = np.eye(tags.shape[1])[before["tags"]]
        assert np.array(after["tag_targets"]) == pytest.approx((1 - weight) * hard + weight * tags, abs=1e-6)
        found = candidates(after, teacher.ontology)[1]
        assert found == pytest.approx((1 - weight) * labels + weight * relations, abs=1e-6)
        held += int(labels.sum())
    assert held


def test_teachers_say_what_they_say_in_inference(teacher: Extractor, articles: list[Article]) -> None:
    dataset, _ = build_dataset(articles, teacher.encoder, teacher.settings)
    for example, article in zip(dataset, articles, strict=True):
        tags, relations = teach(example, candidates(example, teacher.ontology)[0], teacher)
        related = teacher.relate(article.model_copy(update={"relations": ()}))
        scores = [r.score for r in related.relations]
        types = np.array(example["entities"])[:, 2]
        pairs = candidates(example, teacher.ontology)[0][:, :2]
        relations = relations[allowed_relations(teacher.ontology)[types[pairs], types[pairs[:, ::-1]]]]
        assert [s for s in relations if s >= teacher.settings.thresholds[0]] == pytest.approx(scores, abs=1e-3)
        pieces = np.array(example["input_ids"]), np.array(example["word_pieces"])
        assert tags == pytest.approx(np.exp(log_softmax(teacher.backend.encode(*pieces)[0])), abs=1e-6)


def test_raw_text_is_read_once(teacher: Extractor, articles: list[Article]) -> None:
    """… with the targets that the teachers' annotation gets from a second reading."""
    calls: list[bytes] = []

    class Counting:
        def encode(self, input_ids: Any, word_pieces: Any) -> Any:
            calls.append(input_ids.tobytes())
            return teacher.backend.encode(input_ids, word_pieces)

        def relate(self, *arrays: Any) -> Any:
            return teacher.backend.relate(*arrays)

    texts = sorted({a.text for a in articles})
    counting = Extractor(Counting(), teacher.encoder, teacher.settings)
    found = annotate(texts, counting)
    assert len(calls) == len(set(calls)) == len(texts)
    twice = soften(build_dataset(teacher.pipe(texts), teacher.encoder, teacher.settings)[0], teacher, 1.0)
    assert list(found) == list(twice)
    with pytest.raises(DataError, match="holds no text"):
        annotate(["\u200f"], teacher)


def test_certain_targets_cost_what_labels_do(toy_run: Path, teacher: Extractor, articles: list[Article]) -> None:
    """… in a batch with padding."""
    model = load_checkpoint(toy_run / "torch").eval()
    long = Article(id="long", text=articles[0].text * 3, entities=articles[0].entities)
    dataset, _ = build_dataset([*articles[:5], long], teacher.encoder, teacher.settings)
    collate = Collator(teacher.ontology, 1)
    with torch.no_grad():
        hard = model(**collate(list(dataset))).loss
        soft = collate(list(soften(dataset, teacher, 0.0)))
        other = collate(list(soften(dataset, teacher, 1.0)))
        assert float(model(**soft).loss) == pytest.approx(float(hard), rel=1e-5)
        assert float(model(**other).loss) != pytest.approx(float(hard), rel=1e-3)
    tags = soft["tag_targets"]
    assert tags.shape == (*soft["tags"].shape, len(teacher.ontology.tags))
    assert (tags.sum(-1) > 0).equal(soft["tags"] >= 0)


def untrained(toy_run: Path, folder: Path) -> Path:
    """A checkpoint of the toy run's sizes and tokenizer that has learned nothing."""
    set_seed(5)
    trained = load_checkpoint(toy_run / "torch")
    trained.init_weights()
    for parameter in trained.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    shutil.copytree(toy_run / "torch", folder)
    trained.save_pretrained(folder)
    return folder


def test_student_learns_from_raw_text_alone(
    configure_toy: Configure, toy_run: Path, toy: dict[str, Path], articles: list[Article], raw: Path, tmp_path: Path
) -> None:
    start = untrained(toy_run, tmp_path / "start")
    before = dev_scores(load_torch_extractor(start), articles)
    run = configure_toy(
        tmp_path / "run",
        f"start={start}",
        f"distillation.teachers=[{toy_run / 'onnx'}]",
        f"distillation.corpus=[{raw}]",
        "training.epochs=12",
        "training.patience=12",
        "training.encoder_learning_rate=3e-3",
        "training.head_learning_rate=3e-3",
    )
    nothing = Article(id="none", text="لا شيء يذكر هنا")
    _, _, facts, _ = fit(run, [nothing], articles)
    assert before.entity_f1 < 0.3
    assert facts["best"] > 0.8
    assert facts["windows"] == 1 + len({a.text for a in read_articles(toy["train"])})


def test_paragraphs_are_drawn_by_the_seed(
    teacher: Extractor, toy_run: Path, raw: Path, articles: list[Article]
) -> None:
    def chosen(seed: int, paragraphs: int) -> list[list[int]]:
        config = DistillationConfig(teachers=(toy_run / "onnx",), corpus=(raw,), paragraphs=paragraphs)
        dataset, unpredictable = distil(articles[:2], teacher.encoder, teacher.settings, config, seed)
        assert unpredictable.total_entities == sum(len(a.entities) for a in articles[:2])
        return [row["input_ids"] for row in dataset][2:]

    assert chosen(1, 7) == chosen(1, 7)
    assert chosen(1, 7) != chosen(2, 7)
    assert len(chosen(1, 7)) == 7


def test_raw_text_without_a_paragraph_about_it(
    teacher: Extractor, toy_run: Path, raw: Path, articles: list[Article]
) -> None:
    def run(**options: Any) -> None:
        config = DistillationConfig(teachers=(toy_run / "onnx",), **options)
        distil(articles, teacher.encoder, teacher.settings, config, 1)

    with pytest.raises(
        DataError, match=r"distillation\.corpus: no paragraph of .* or less holds enough words of distillation\.about"
    ):
        run(corpus=(raw,), about=("غواصة",), mentions=1)
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        run(corpus=(raw.with_name("gone.txt"),))


def test_raw_text_needs_teachers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("distillation: {corpus: [raw.txt]}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"distillation: .*corpus is raw text, which nobody annotates: give teachers"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [
        ("text", {"max_pieces": 200}, "text settings"),
        ("max_proclitic", 3, "max_proclitic"),
        ("ontology", None, "ontology"),
        ("tokenizer", None, "tokenizer"),
    ],
)
def test_teacher_of_another_kind(
    setting: str, value: Any, what: str, toy_run: Path, teacher: Extractor, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy_run / "onnx", other)
    if setting == "tokenizer":
        written = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
        written["model"]["vocab"][-1][1] -= 1.0
        (other / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    elif setting == "ontology":
        edit_settings(other, ontology=json.loads(teacher.ontology.model_dump_json()) | {"proclitics": "و"})
    else:
        edit_settings(other, **{setting: value})
    with pytest.raises(ConfigError, match=rf"distillation\.teachers: .*other has another {what} than this run"):
        load_teachers([toy_run / "onnx", other], teacher.encoder, teacher.settings)


def test_teacher_that_is_not_there(teacher: Extractor, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gone"):
        load_teachers([tmp_path / "gone"], teacher.encoder, teacher.settings)


# Starting from a trained model


def start_from(configure_toy: Configure, folder: Path, start: Path, *options: str) -> RasidModel:
    return create_model(configure_toy(folder, f"start={start}", *options))[0]


def test_start_is_the_trained_model(
    configure_toy: Configure, toy_run: Path, articles: list[Article], tmp_path: Path
) -> None:
    model, tokenizer = create_model(configure_toy(tmp_path, f"start={toy_run / 'torch'}"))
    trained = load_checkpoint(toy_run / "torch").state_dict()
    assert model.state_dict().keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    save_checkpoint(model, tokenizer, tmp_path / "again")
    again = load_torch_extractor(tmp_path / "again")
    assert [again(a.text).entities for a in articles] == [
        load_torch_extractor(toy_run / "torch")(a.text).entities for a in articles
    ]


@pytest.fixture(scope="module")
def deep(debug_run: Path, configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint with two layers, and two of its own for relations, no two alike."""
    folder = tmp_path_factory.mktemp("deep")
    options = (f"base={debug_run / 'base'}", "heads.relation_layers=2")
    model, tokenizer = create_model(configure(folder, *options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(model, tokenizer, folder / "torch")
    return folder / "torch"


@pytest.mark.parametrize("own", [1, 2])
def test_layers_that_are_kept(own: int, configure: Configure, deep: Path, tmp_path: Path) -> None:
    options = (
        (f"start={deep}", "layers=1", "heads.relation_layers=1")
        if own == 1
        else (f"start={deep}", "heads.relation_layers=2")
    )
    model, _ = create_model(configure(tmp_path, *options))
    trained = load_checkpoint(deep)
    layers = model.encoder.encoder.layer
    assert len(layers) == model.config.encoder["num_hidden_layers"] == model.encoder.config.num_hidden_layers == own
    pairs = zip(
        [*reversed(layers), *reversed(model.relation_head.layers)],
        [*list(reversed(trained.encoder.encoder.layer))[:own], *list(reversed(trained.relation_head.layers))[:own]],
        strict=True,
    )
    for mine, theirs in pairs:
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    save_checkpoint(model, create_model(configure(tmp_path, *options))[1], tmp_path / "saved")
    assert TextEncoder.load(tmp_path / "saved", model.config.model_settings().text)
    assert len(load_checkpoint(tmp_path / "saved").relation_head.layers) == own


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("max_proclitic=3", "was trained with another ontology, text or max_proclitic"),
        ("text.max_pieces=200", "was trained with another ontology, text or max_proclitic"),
        ("heads.relation_size=16", "has other sizes than this run's heads"),
        ("layers=3", "layers is 3, but the encoder has 2; lower it"),
        ("feed_forward=65", "feed_forward is 65, but the encoder has 64; lower it"),
    ],
)
def test_start_that_does_not_fit(option: str, problem: str, configure: Configure, deep: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        create_model(configure(tmp_path, f"start={deep}", "heads.relation_layers=2", option))


def test_start_with_too_few_relation_layers(configure_toy: Configure, toy_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch has 0 heads\.relation_layers, and the run 1"):
        create_model(configure_toy(tmp_path, f"start={toy_run / 'torch'}", "heads.relation_layers=1"))


def test_start_that_is_not_there(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gone"):
        create_model(configure(tmp_path, f"start={tmp_path / 'gone'}"))
