import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from rasid.bases.base import describe_base
from rasid.config import DistillationConfig, RunConfig, load_config
from rasid.errors import ConfigError, DataError
from rasid.inference import Extractor
from rasid.records import read_articles
from rasid.schema import Ontology
from rasid.scoring.evaluation import Evaluation, evaluate
from rasid.scoring.metrics import Score
from rasid.training.card import format_score, render_card
from rasid.training.run import read_corpora, run

Configure = Callable[..., Any]
DESCRIPTION = {"run.yaml", "metrics.json", "README.md"}
REPORT = {"metrics.json", "entities.txt", "confusion.png", "reliability.png", "errors.html", "report.md"}
TORCH = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
ONNX = {"config.json", "tokenizer.json", "encoder.onnx", "relations.onnx"}
BASE = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def below(folder: str, names: set[str]) -> set[str]:
    return {f"{folder}/{name}" for name in names}


@pytest.fixture(scope="module")
def metrics(debug_run: Path) -> dict[str, Any]:
    return json.loads((debug_run / "onnx" / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def card(debug_run: Path) -> str:
    return (debug_run / "onnx" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(debug_run: Path, corpora: dict[str, Path]) -> dict[str, Evaluation]:
    """What `rasid evaluate` says about the exported model."""
    extractor = Extractor.load(debug_run / "onnx")
    return {s: evaluate(extractor, read_articles(corpora[s]), extractor.ontology) for s in ("dev", "test")}


def test_a_run_leaves_exactly_these_files(debug_run: Path) -> None:
    expected = {"run.yaml"} | below("base", BASE) | below("torch", TORCH | DESCRIPTION)
    expected |= below("onnx", ONNX | DESCRIPTION) | below("report/dev", REPORT) | below("report/test", REPORT)
    assert files(debug_run) == expected


def test_a_run_without_a_test_corpus(toy_run: Path) -> None:
    assert {p.name for p in (toy_run / "report").iterdir()} == {"dev"}
    metrics = json.loads((toy_run / "torch" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["splits"]) == {"dev"}
    card = (toy_run / "onnx" / "README.md").read_text(encoding="utf-8")
    assert "By type: dev" in card
    assert "By type: test" not in card
    assert "None" not in card


def test_both_models_are_described_alike(debug_run: Path) -> None:
    for name in DESCRIPTION:
        assert (debug_run / "torch" / name).read_bytes() == (debug_run / "onnx" / name).read_bytes()
    configs = [json.loads((debug_run / form / "config.json").read_text(encoding="utf-8")) for form in ("torch", "onnx")]
    for config in configs:  # each has the thresholds that suit it
        del config["settings"]["relation_threshold"], config["settings"]["relation_thresholds"]
    assert configs[0] == configs[1]


def test_resolved_config_repeats_the_run(debug_run: Path, configure: Configure, tmp_path: Path) -> None:
    config = load_config(debug_run / "torch" / "run.yaml")
    assert config == configure(debug_run)
    assert (debug_run / "run.yaml").read_bytes() == (debug_run / "torch" / "run.yaml").read_bytes()
    run(load_config(debug_run / "run.yaml", [f"output={tmp_path}"]))
    same = (
        below("torch", TORCH) | below("onnx", ONNX - {"encoder.onnx", "relations.onnx"}) | below("report/dev", REPORT)
    )
    for name in sorted(same):
        assert (tmp_path / name).read_bytes() == (debug_run / name).read_bytes(), name


def test_metrics_are_those_of_the_exported_model(metrics: dict[str, Any], results: dict[str, Evaluation]) -> None:
    expected = json.loads(json.dumps({name: result.to_dict() for name, result in results.items()}))
    assert metrics["splits"] == expected
    strict = results["dev"].relations["strict"].micro.f1
    assert metrics["training"]["export"]["int8"] == {
        "entity_f1": results["dev"].entities.micro.f1,
        "relation_f1": strict,
    }


def test_metrics_tell_of_the_training(metrics: dict[str, Any], debug_run: Path, corpora: dict[str, Path]) -> None:
    training = metrics["training"]
    assert set(training) == {
        "epochs",
        "best",
        "base",
        "seconds",
        "windows",
        "unpredictable",
        "export",
        "articles",
    }
    assert training["base"] == "`random`"
    assert training["articles"] == 24
    assert training["windows"] >= 24
    assert [e["epoch"] for e in training["epochs"]] == [1.0]
    assert training["best"] == training["epochs"][0]["mean_f1"]
    entities = sum(len(a.entities) for a in read_articles(corpora["train"]))
    assert training["unpredictable"]["total_entities"] == entities > 400
    size = sum((debug_run / "onnx" / name).stat().st_size for name in ONNX)
    assert training["export"]["bytes"] == size
    assert metrics["versions"] == {name: version(name) for name in metrics["versions"]}
    assert {"rasid", "torch", "transformers", "onnxruntime"} <= set(metrics["versions"])


def test_report_has_the_same_metrics(metrics: dict[str, Any], debug_run: Path) -> None:
    for split in ("dev", "test"):
        report = json.loads((debug_run / "report" / split / "metrics.json").read_text(encoding="utf-8"))
        assert report == metrics["splits"][split]


# The card


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, as a renderer sees them: blocks of lines that begin with a bar."""
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    return [[[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()] for block in blocks]


def test_card_has_whole_tables(card: str, results: dict[str, Evaluation]) -> None:
    found = tables(card)
    assert len(found) == 3
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}
        assert set(table[1]) == {"---"}
        assert all(set(row) != {"---"} for row in table[2:])
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        before, after = card.split(block)
        assert before.endswith("\n\n"), "a table needs a blank line before it"
        assert after.startswith("\n")
    summary, dev, _ = found
    assert summary[0] == ["", "dev", "test"]
    assert [row[0] for row in summary[2:]] == [
        "articles",
        "entities",
        "entity boundaries",
        "relations, boundaries",
        "relations, strict",
        "relations, gold entities",
    ]
    ontology = results["dev"].ontology
    assert [row[0] for row in dev[2:]] == [*ontology.entity_types, *ontology.relation_names]


def test_card_agrees_with_the_scores(card: str, results: dict[str, Evaluation], metrics: dict[str, Any]) -> None:
    summary, *by_type = tables(card)
    rows = {row[0]: row[1:] for row in summary[2:]}
    assert rows["articles"] == ["6", "4"]
    for name, result in results.items():
        column = list(results).index(name)
        assert rows["entities"][column] == format_score(result.entities.micro)
        assert rows["entity boundaries"][column] == format_score(result.boundaries.micro)
        for kind, table in result.relations.items():
            assert rows[f"relations, {kind}"][column] == format_score(table.micro)
        for kind, *cells in by_type[column][2:]:
            score = {**result.entities.per_type, **result.relations["strict"].per_type}[kind]
            assert cells == [
                format_score(score),
                f"{100 * score.precision:.1f}",
                f"{100 * score.recall:.1f}",
                str(score.tp + score.fn),
            ]
        for kind, items in result.reliability.items():
            assert items.describe(kind) in next(line for line in card.splitlines() if line.startswith(f"- {name}: "))
    assert f"{metrics['training']['windows']} windows" in card
    assert "24 articles" in card


def test_card_has_the_header_of_model_hubs(card: str) -> None:
    import yaml

    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    header = yaml.safe_load(head)
    assert header["language"] == "ar"
    assert header["license"] == "apache-2.0"
    assert "relation-extraction" in header["tags"]
    assert body.lstrip().startswith("# rasid-debug\n")
    assert "## Intended use" in body
    assert "**Out of scope**" in body
    assert "\n\n\n" not in body
    assert "{{" not in body and "{%" not in body


def test_card_of_another_name_and_base(results: dict[str, Evaluation], metrics: dict[str, Any]) -> None:
    facts = metrics["training"] | {"base": describe_base("owner/model")}
    text = render_card(RunConfig(name="mine", base="owner/model"), results, facts, 1)
    assert "# mine\n" in text
    assert "- **Base**: `owner/model`.\n" in text
    assert "e5" not in text


def test_card_tells_what_was_trained_on_from(results: dict[str, Evaluation], metrics: dict[str, Any]) -> None:
    card = render_card(RunConfig(start=Path("rasid-compact")), results, metrics["training"], 1)
    (line,) = re.findall(r"^- \*\*Base\*\*: .*", card, re.MULTILINE)
    assert line.endswith(", trained on from rasid-compact, whose card tells what it had learned from.")
    assert "trained on from" not in render_card(RunConfig(), results, metrics["training"], 1)


def test_card_tells_of_the_teachers(results: dict[str, Evaluation], metrics: dict[str, Any]) -> None:
    told = DistillationConfig(teachers=(Path("runs/a"), Path("runs/b")), corpus=(Path("raw.txt"),), paragraphs=3600)
    config = RunConfig(start=Path("runs/a/torch"), distillation=told)
    card = render_card(config, results, metrics["training"], 1)
    (line,) = re.findall(r"^- \*\*Distilled\*\*(?:.|\n  )*", card, re.MULTILINE)
    for words in (
        "2 models (runs/a, runs/b)",
        "3,600 paragraphs of raw news",
        "(raw.txt)",
        "it starts from runs/a/torch.",
    ):
        assert words in line
    assert "**Distilled**" not in render_card(RunConfig(), results, metrics["training"], 1)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(1, 1, 0.8416, 1, 0, 0, (0.82, 0.8609)), "84.2 (82.0–86.1)"),
        (Score(1, 1, 0.5, 1, 0, 0), "50.0"),
        (Score(0, 0, 0.0, 0, 0, 0, (0.0, 0.0)), "0.0 (0.0–0.0)"),
    ],
)
def test_format_score(score: Score, text: str) -> None:
    assert format_score(score) == text


# What a run refuses before it trains


def test_corpora_are_joined(corpora: dict[str, Path]) -> None:
    ontology = Ontology.load(Path(__file__).parents[1] / "data" / "ontology.yaml")
    assert len(read_corpora([corpora["train"], corpora["dev"]], ontology)) == 30
    with pytest.raises(DataError, match=r"train\.jsonl: id .* is in .*train\.jsonl too; ids must be unique"):
        read_corpora([corpora["train"], corpora["train"]], ontology)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data.train=[none.jsonl]", DataError, r"none\.jsonl: cannot be read"),
        ("data.dev=none.jsonl", DataError, r"none\.jsonl: cannot be read"),
        ("data.test=none.jsonl", DataError, r"none\.jsonl: cannot be read"),
        ("ontology=none.yaml", ConfigError, r"none\.yaml: no such ontology file"),
    ],
)
def test_missing_files(override: str, error: type, message: str, configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        run(configure(tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_no_article_is_trained_on_and_scored(configure: Configure, corpora: dict[str, Path], tmp_path: Path) -> None:
    both = f"data.train=[{corpora['train']},{corpora['dev']}]"
    with pytest.raises(ConfigError, match=r"data\.dev shares 6 articles with data\.train, "):
        run(configure(tmp_path / "run", both))
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match=r"output=.*run: cannot be written: File exists; give another folder"):
        run(configure(tmp_path / "run"))


def test_corpus_must_fit_the_ontology(configure: Configure, toy: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: entity .*unknown type"):
        run(configure(tmp_path / "run", f"ontology={toy['ontology']}"))
