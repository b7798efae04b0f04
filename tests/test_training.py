import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback

from rasid.config import TrainingConfig
from rasid.errors import ConfigError, DataError
from rasid.inference import Extractor
from rasid.modeling.checkpoint import load_torch_extractor
from rasid.modeling.model import RasidModel
from rasid.records import Article, read_articles
from rasid.schema import Ontology
from rasid.scoring.calibration import DevScores, dev_scores
from rasid.scoring.metrics import score_entities, score_relations
from rasid.settings import ModelSettings
from rasid.training import trainer as training
from rasid.training.run import run
from rasid.training.trainer import RasidTrainer, fit, learning_rate, training_arguments, uses_bfloat16

ROOT = Path(__file__).parents[1]
Configure = Callable[..., Any]
Weights = dict[str, torch.Tensor]


def weights(model: RasidModel) -> Weights:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def articles(toy: dict[str, Path]) -> dict[str, list[Article]]:
    return {split: list(read_articles(toy[split])) for split in ("train", "dev")}


@pytest.fixture
def two_epochs(configure_toy: Configure, tmp_path: Path) -> Callable[..., Any]:
    """`two_epochs(name, *overrides)`: a config of two epochs whose output is a folder of that name."""
    return lambda name, *more: configure_toy(tmp_path / name, "training.epochs=2", *more)


def test_one_seed_gives_one_model(two_epochs: Configure, articles: dict[str, list[Article]]) -> None:
    first, again, other = (
        fit(two_epochs(name, f"seed={seed}"), **articles) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert equal(weights(first[0]), weights(again[0]))
    assert first[2]["epochs"] == again[2]["epochs"]
    assert not equal(weights(first[0]), weights(other[0]))
    assert not first[0].training


def interrupt(patch: pytest.MonkeyPatch) -> None:
    """Stop the program at the start of the second epoch."""

    def on_epoch_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch >= 1:
            raise KeyboardInterrupt

    patch.setattr(EarlyStoppingCallback, "on_epoch_begin", on_epoch_begin)


def test_interrupted_run_goes_on_where_it_stopped(
    two_epochs: Configure, articles: dict[str, list[Article]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(two_epochs("whole"), **articles)
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(KeyboardInterrupt):
            fit(two_epochs("parts"), **articles)
    steps: list[int] = []
    step = RasidTrainer.training_step
    monkeypatch.setattr(RasidTrainer, "training_step", lambda *args, **kw: steps.append(1) or step(*args, **kw))
    parts = fit(two_epochs("parts"), **articles)
    assert len(steps) == 6  # of 12: the second epoch alone
    assert equal(weights(whole[0]), weights(parts[0]))
    assert whole[2]["epochs"] == parts[2]["epochs"]
    assert [e["epoch"] for e in parts[2]["epochs"]] == [1.0, 2.0]


def test_the_best_epoch_may_be_one_before_an_interruption(
    two_epochs: Configure, articles: dict[str, list[Article]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.9, 0.5, 0.9]  # of the first epoch, of the second, and of the first again
    seen: list[Weights] = []

    def scripted(extractor: Extractor, *_: Any) -> DevScores:
        seen.append(weights(extractor.backend.model))
        score = scores[len(seen) - 1]
        return DevScores(score, score, len(seen) / 10, {})

    monkeypatch.setattr(training, "dev_scores", scripted)
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(KeyboardInterrupt):
            fit(two_epochs("parts"), **articles)
    model, _, facts, outcome = fit(two_epochs("parts"), **articles)
    assert len(seen) == 3
    assert equal(seen[2], seen[0])
    assert equal(weights(model), seen[0])
    assert facts["best"] == outcome.entity_f1 == 0.9
    assert model.config.model_settings().relation_threshold == outcome.threshold == 0.3


def test_run_refuses_what_another_config_left(
    two_epochs: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(KeyboardInterrupt):
            run(two_epochs("run"))
    assert (tmp_path / "run" / "checkpoints").is_dir()
    for change in ("seed=99", "training.epochs=3", "heads.dropout=0"):
        with pytest.raises(ConfigError, match="holds an unfinished run of another config"):
            run(two_epochs("run", change))
    # What does not touch the training may change; the rest then goes through.
    run(two_epochs("run", "name=other", "export.max_drop=99"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    run(two_epochs("run", "seed=99"))


def test_early_stopping_keeps_the_best(
    configure_toy: Configure, articles: dict[str, list[Article]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.2, 0.7, 0.9, 0.5, 0.8, 1.0]
    thresholds = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    seen: list[Weights] = []

    def scripted(extractor: Extractor, *_: Any) -> DevScores:
        model = extractor.backend.model
        assert not model.training
        epoch = len(seen)
        seen.append(weights(model))
        return DevScores(scores[epoch], scores[epoch], thresholds[epoch], {"GOES": 0.25})

    monkeypatch.setattr(training, "dev_scores", scripted)
    config = configure_toy(tmp_path, "training.epochs=6", "training.patience=2")
    model, _, facts, outcome = fit(config, **articles)
    assert len(seen) == 5  # two after the best one
    assert outcome.f1 == {"entity_f1": 0.9, "relation_f1": 0.9}
    assert [e["mean_f1"] for e in facts["epochs"]] == scores[:5]
    assert equal(weights(model), seen[2])
    assert not equal(weights(model), seen[4])
    assert model.config.model_settings().relation_threshold == thresholds[2]
    assert model.config.model_settings().relation_thresholds == {"GOES": 0.25}
    left = list((tmp_path / "checkpoints").iterdir())
    assert len(left) <= 2  # the best one and the last


def test_toy_ontology_is_learned(toy_run: Path, toy: dict[str, Path], articles: dict[str, list[Article]]) -> None:
    ontology = Ontology.load(toy["ontology"])
    for extractor in (load_torch_extractor(toy_run / "torch"), Extractor.load(toy_run / "onnx")):
        assert extractor.ontology == ontology
        pairs = [(gold, extractor(gold.text, id=gold.id)) for gold in articles["dev"]]
        assert {e.type for _, found in pairs for e in found.entities} == {"UNIT", "PLACE"}
        assert {r.type for _, found in pairs for r in found.relations} == {"GOES"}
        assert score_entities(pairs, ontology, samples=0).micro.f1 > 0.9
        assert score_relations(pairs, ontology, samples=0).micro.f1 > 0.9
    joined = [e for gold in articles["dev"] for e in gold.entities if gold.text[e.start - 1] in ontology.proclitics]
    assert len(joined) > 5  # so the score holds for proclitics too


def test_dev_scores_are_those_of_the_model_with_its_threshold(
    toy_run: Path, articles: dict[str, list[Article]]
) -> None:
    extractor = load_torch_extractor(toy_run / "torch")
    scores = dev_scores(extractor, articles["dev"])
    extractor.settings = scores.calibrate(extractor.settings)
    pairs = [(gold, extractor(gold.text, id=gold.id)) for gold in articles["dev"]]
    assert scores.entity_f1 == score_entities(pairs, extractor.ontology, samples=0).micro.f1
    assert scores.relation_f1 == score_relations(pairs, extractor.ontology, samples=0).micro.f1
    assert scores.mean_f1 == (scores.entity_f1 + scores.relation_f1) / 2


class GuessingBackend:
    """Marks every second word as a place, and guesses relations; the same text always gets the same guesses."""

    def __init__(self, tags: int, relations: int):
        self.tags, self.relations, self.calls = tags, relations, 0

    def encode(self, input_ids: np.ndarray, word_pieces: np.ndarray) -> tuple[np.ndarray, ...]:
        self.calls += 1
        words = np.arange(len(word_pieces))
        tags = 9 * np.eye(self.tags, dtype=np.float32)[np.where(words % 2, 1, 0)]
        return tags, np.zeros((len(words), 3), np.float32), input_ids[word_pieces, None].astype(np.float32)

    def relate(self, states: np.ndarray, word_tags: np.ndarray, entities: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        self.calls += 1
        random = np.random.default_rng(int(states.sum()))
        return random.normal(size=(len(pairs), 2, self.relations)).astype(np.float32)


def test_threshold_is_chosen_by_what_the_extractor_gives_under_it(
    toy_run: Path, articles: dict[str, list[Article]]
) -> None:
    """With groups of mentions, a higher threshold is more than a selection of the relations under a lower one."""
    rule = {"head": ["A"], "tail": ["A"], "symmetric": True, "transitive": True}
    ontology = Ontology.model_validate({"entity_types": ["A"], "relation_types": {"SAME": rule}})
    encoder = load_torch_extractor(toy_run / "torch").encoder
    backend = GuessingBackend(len(ontology.tags), 1)
    extractor = Extractor(backend, encoder, ModelSettings(ontology=ontology, text=encoder.settings))
    texts = [f"{a.text} {b.text} {c.text}" for a, b, c in itertools.combinations(articles["dev"][:6], 3)]
    extractor.settings = extractor.settings.model_copy(update={"relation_threshold": 0.6})
    gold = [extractor(text) for text in texts]
    asked, backend.calls = backend.calls, 0
    scores = dev_scores(extractor, gold)
    assert backend.calls == asked  # the network runs once, whatever the number of thresholds
    assert scores == DevScores(entity_f1=1.0, relation_f1=1.0, threshold=0.6, thresholds={})


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_two_learning_rates_and_decay_for_matrices_only(
    layer_decay: float,
    configure_toy: Configure,
    articles: dict[str, list[Article]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizers: list[tuple[torch.optim.Optimizer, RasidModel]] = []
    create = RasidTrainer.create_optimizer

    def spy(self: RasidTrainer, *args: Any) -> torch.optim.Optimizer:
        optimizers.append((create(self, *args), self.model))
        return optimizers[-1][0]

    monkeypatch.setattr(RasidTrainer, "create_optimizer", spy)
    rates = ("training.encoder_learning_rate=1e-4", "training.head_learning_rate=7e-4", "training.weight_decay=0.2")
    layers = (f"training.layer_decay={layer_decay}", "heads.relation_layers=1")
    fit(configure_toy(tmp_path, *rates, *layers), **articles)
    optimizer, model = optimizers[0]
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == dict(model.named_parameters()).keys()
    peak = {
        "encoder.encoder.layer.1.": 1e-4,
        "encoder.encoder.layer.0.": 1e-4 * layer_decay,
        "encoder.embeddings.": 1e-4 * layer_decay**2,
        "relation_head.layers.0.": 1e-4,  # copies of the encoder's last layer
    }
    for name, group in groups.items():
        (expected,) = [rate for start, rate in peak.items() if name.startswith(start)] or [7e-4]
        assert group["initial_lr"] == expected, name
        assert group["weight_decay"] == (0.2 if dict(model.named_parameters())[name].ndim > 1 else 0), name


@pytest.mark.parametrize(
    ("name", "layers", "power"),
    [
        ("encoder.encoder.layer.11.attention.self.query.weight", 12, 0),
        ("encoder.encoder.layer.10.output.LayerNorm.bias", 12, 1),
        ("encoder.encoder.layer.0.attention.self.query.weight", 12, 11),
        ("encoder.embeddings.word_embeddings.weight", 12, 12),
        ("encoder.embeddings.LayerNorm.weight", 12, 12),
        ("encoder.transformer.layer.4.ffn.lin1.weight", 6, 1),  # DistilBERT
        ("encoder.layers.20.attn.Wqkv.weight", 22, 1),  # ModernBERT
    ],
)
def test_learning_rate_falls_from_layer_to_layer(name: str, layers: int, power: int) -> None:
    training = TrainingConfig(encoder_learning_rate=1e-4, head_learning_rate=1e-3, layer_decay=0.9)
    assert learning_rate(name, training, layers) == pytest.approx(1e-4 * 0.9**power)
    assert learning_rate("relation_head.layers.0.attention.self.query.weight", training, layers) == 1e-4
    assert learning_rate("relation_head.out.weight", training, layers) == 1e-3
    assert learning_rate("tag_head.bias", training, layers) == 1e-3


@pytest.fixture
def averaged(
    configure_toy: Configure, articles: dict[str, list[Article]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`averaged(scores, *overrides)`: the outcome of a run that is told these scores, and the weights that had them."""

    def make(scores: list[float], *overrides: str) -> Any:
        seen: list[Weights] = []

        def scripted(extractor: Extractor, *_: Any) -> DevScores:
            model = extractor.backend.model
            assert not model.training
            seen.append(weights(model))
            score = scores[len(seen) - 1]
            return DevScores(score, score, round(score / 2, 2), {"GOES": score})

        monkeypatch.setattr(training, "dev_scores", scripted)
        model, _, facts, _ = fit(configure_toy(tmp_path / "run", "training.patience=9", *overrides), **articles)
        assert len(seen) == len(scores)
        return model, facts, seen

    return make


def close(a: Weights, b: Weights) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-7) for name in a)


def mean(several: list[Weights]) -> Weights:
    return {name: sum(one[name] for one in several) / len(several) for name in several[0]}


@pytest.mark.parametrize("epochs", [2, 3])
def test_mean_of_the_last_epochs_if_it_is_better(epochs: int, averaged: Callable[..., Any]) -> None:
    """Scores of three epochs and of the mean."""
    scores = [0.2, 0.5, 0.6, 0.7]
    model, facts, seen = averaged(scores, "training.epochs=3", f"training.average={epochs}")
    assert close(seen[3], mean(seen[3 - epochs : 3]))
    assert not close(seen[3], seen[2])
    assert equal(weights(model), seen[3])
    assert facts["best"] == 0.7
    assert model.config.model_settings().thresholds == (0.7,)
    assert model.config.model_settings().relation_threshold == 0.35
    assert [e["mean_f1"] for e in facts["epochs"]] == scores[:3]


@pytest.mark.parametrize("score", [0.6, 0.5])
def test_mean_that_is_no_better_is_not_taken(score: float, averaged: Callable[..., Any]) -> None:
    model, facts, seen = averaged([0.2, 0.5, 0.6, score], "training.epochs=3", "training.average=2")
    assert close(seen[3], mean(seen[1:3]))
    assert equal(weights(model), seen[2])
    assert facts["best"] == 0.6
    assert model.config.model_settings().thresholds == (0.6,)
    assert model.config.model_settings().relation_threshold == 0.3


def test_without_averaging_no_mean_is_tried(averaged: Callable[..., Any]) -> None:
    model, _, seen = averaged([0.5, 0.6], "training.epochs=2")
    assert equal(weights(model), seen[1])


def test_bfloat16_where_nothing_computes_in_it(configure_toy: Configure, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training, "_computes_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match=r"precision=bf16: neither .* use auto or fp32"):
        training_arguments(configure_toy(tmp_path, "training.precision=bf16"))
    assert training_arguments(configure_toy(tmp_path, "training.precision=auto")).bf16 is False
    monkeypatch.setattr(training, "_computes_bfloat16", lambda: True)
    assert training_arguments(configure_toy(tmp_path, "training.precision=auto")).bf16 is True
    assert training_arguments(configure_toy(tmp_path, "training.precision=fp32")).bf16 is False


@pytest.mark.parametrize("able", [True, False])
def test_what_trains_in_bfloat16(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_computes_bfloat16", lambda: able)
    assert uses_bfloat16("auto") is able
    assert uses_bfloat16("fp32") is False
    if able:
        assert uses_bfloat16("bf16") is True
    else:
        with pytest.raises(ConfigError):
            uses_bfloat16("bf16")


def test_empty_training_corpus(configure_toy: Configure, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"empty\.jsonl: no articles; give a JSONL corpus with at least one"):
        run(configure_toy(tmp_path / "run", f"data.train=[{tmp_path / 'empty.jsonl'}]"))
    assert not (tmp_path / "run").exists()


def test_one_article_without_any_entity(configure_toy: Configure, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"id": "a", "text": "لا شيء يذكر هنا اليوم"}\n', encoding="utf-8")
    result = run(configure_toy(tmp_path / "run", f"data.train=[{tmp_path / 'one.jsonl'}]"))
    assert Extractor.load(result.model).ontology.entity_types == ("UNIT", "PLACE")


def test_script_runs_under_accelerate(toy: dict[str, Path], tmp_path: Path) -> None:
    overrides = [
        f"output={tmp_path / 'run'}",
        f"ontology={toy['ontology']}",
        f"data.train=[{toy['train']}]",
        f"data.dev={toy['dev']}",
        "data.test=null",
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    result = subprocess.run(
        [*launch, "train/train.py", "configs/debug.yaml", *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "entity_f1" in result.stderr
    assert Extractor.load(tmp_path / "run" / "onnx")("وصل اللواء الأول إلى حلب").text
