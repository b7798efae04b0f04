"""A whole run out of one config: train, export, evaluate what was exported, and describe it."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rasid.card import render_card
from rasid.config import RunConfig
from rasid.errors import DataError
from rasid.evaluation import Evaluation, evaluate
from rasid.export import export
from rasid.inference import Extractor
from rasid.records import Article, read_articles
from rasid.schema import Ontology
from rasid.training import fit, save_checkpoint

logger = logging.getLogger(__name__)

TORCH_FOLDER, ONNX_FOLDER, REPORT_FOLDER = "torch", "onnx", "report"
CONFIG_FILE, METRICS_FILE, CARD_FILE = "run.yaml", "metrics.json", "README.md"
REPORTED_VERSIONS = ("rasid", "torch", "transformers", "tokenizers", "onnxruntime")


@dataclass(frozen=True)
class Result:
    """Where the exported model is, and its strict F1 on dev (`entity_f1`, `relation_f1`), each in [0, 1]."""

    model: Path
    dev: dict[str, float]


def run(config: RunConfig) -> Result:
    """Do everything that a config says; an interrupted run goes on where it stopped.

    The output folder then holds `torch/` (a `transformers` checkpoint), `onnx/` (what `Extractor.load` reads), both with
    resolved config, metrics and model card, `report/` (one folder per split) and `checkpoints/` of the training.

    Raises:
        RasidError: for bad data, a bad config, an unreachable base, or a model that quantisation would ruin.
    """
    ontology = Ontology.load(config.ontology)
    train = read_corpora(config.data.train, ontology)
    splits = {"dev": read_corpora([config.data.dev], ontology)}
    if config.data.test:
        splits["test"] = read_corpora([config.data.test], ontology)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")

    model, tokenizer, facts = fit(config, train, splits["dev"])
    torch_folder, onnx_folder = config.output / TORCH_FOLDER, config.output / ONNX_FOLDER
    if PartialState().is_main_process:
        save_checkpoint(model, tokenizer, torch_folder)
        facts["export"] = export(torch_folder, onnx_folder, splits["dev"], max_drop=config.export.max_drop)
        extractor = Extractor.load(onnx_folder)
        results: dict[str, Evaluation] = {}
        for name, articles in splits.items():
            logger.info("evaluating the exported model on %s, %d articles", name, len(articles))
            results[name] = evaluate(extractor, articles, ontology)
            results[name].save(config.output / REPORT_FOLDER / name)
        describe(config, [torch_folder, onnx_folder], train, results, facts)
    return Result(onnx_folder, facts.get("export", {}).get("int8", {}))


def read_corpora(paths: Sequence[Path], ontology: Ontology) -> list[Article]:
    """Articles of several JSONL files, ids unique among them all.

    Raises:
        DataError: for a bad record, an id used in two files, or no article at all.
    """
    articles: list[Article] = []
    seen: dict[str, Path] = {}
    for path in paths:
        for article in read_articles(path, ontology):
            if article.id in seen:
                raise DataError(
                    f"{path}: id {article.id} is in {seen[article.id]} too; ids must be unique across files"
                )
            seen[article.id] = path
            articles.append(article)
    if not articles:
        raise DataError(f"{', '.join(map(str, paths))}: no articles; give a JSONL corpus with at least one")
    return articles


def describe(
    config: RunConfig,
    folders: Sequence[Path],
    train: Sequence[Article],
    results: dict[str, Evaluation],
    facts: dict[str, Any],
) -> None:
    """Put resolved config, metrics and model card beside the weights."""
    metrics = {
        "splits": {name: result.to_dict() for name, result in results.items()},
        "training": facts | {"articles": len(train)},
        "versions": {name: version(name) for name in REPORTED_VERSIONS},
    }
    card = render_card(config, results, facts, len(train))
    for folder in folders:
        (folder / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
        (folder / METRICS_FILE).write_text(json.dumps(metrics, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
