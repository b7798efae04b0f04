"""A whole run out of one config: train, export, evaluate what was exported, and describe it."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rasid.config import ExportConfig, RunConfig, load_config
from rasid.errors import ConfigError, DataError
from rasid.inference import Extractor
from rasid.modeling.export import export
from rasid.records import Article, read_articles
from rasid.schema import Ontology
from rasid.scoring.evaluation import Evaluation, evaluate
from rasid.training.card import render_card
from rasid.training.trainer import CHECKPOINTS, fit, save_checkpoint

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

    The output folder then holds `torch/` (a `transformers` checkpoint), `onnx/` (what `Extractor.load` reads), both
    with resolved config, metrics and model card, and `report/` (one folder per split). The training's `checkpoints/`
    are removed at the end, so that the same config starts anew, with what its corpora hold then.

    Raises:
        RasidError: for bad data, a bad config, an unreachable base, or a model that quantisation would ruin.
    """
    ontology = Ontology.load(config.ontology)
    train = read_corpora(config.data.train, ontology)
    splits = {"dev": read_corpora([config.data.dev], ontology)}
    if config.data.test:
        splits["test"] = read_corpora([config.data.test], ontology)
    _check_disjoint(train, splits)
    _claim_output(config)

    model, tokenizer, facts, scores = fit(config, train, splits["dev"])
    PartialState().wait_for_everyone()
    torch_folder, onnx_folder = config.output / TORCH_FOLDER, config.output / ONNX_FOLDER
    if PartialState().is_main_process:
        save_checkpoint(model, tokenizer, torch_folder)
        facts["export"] = export(
            torch_folder, onnx_folder, splits["dev"], before=scores, max_drop=config.export.max_drop
        )
        extractor = Extractor.load(onnx_folder)
        results: dict[str, Evaluation] = {}
        for name, articles in splits.items():
            logger.info("evaluating the exported model on %s, %d articles", name, len(articles))
            results[name] = evaluate(extractor, articles, ontology)
            results[name].save(config.output / REPORT_FOLDER / name)
        describe(config, [torch_folder, onnx_folder], train, results, facts)
        shutil.rmtree(config.output / CHECKPOINTS)
    return Result(onnx_folder, facts.get("export", {}).get("int8", {}))


def _check_disjoint(train: Sequence[Article], splits: dict[str, list[Article]]) -> None:
    """Refuse to judge a model on articles that it is trained on."""
    known = {article.id for article in train}
    for name, articles in splits.items():
        if shared := [article.id for article in articles if article.id in known]:
            raise ConfigError(
                f"data.{name} shares {len(shared)} articles with data.train, {shared[0]} among them; "
                "scores on them would mean nothing: take them out of one of the two"
            )


def _claim_output(config: RunConfig) -> None:
    """Make the output folder and put the config there, unless it holds what another config left unfinished.

    What does not change the training may differ, so that a model that the export refused need not be trained again.
    """
    record = config.output / CONFIG_FILE
    unfinished = (config.output / CHECKPOINTS).is_dir() and record.is_file()
    if unfinished and _training_part(load_config(record)) != _training_part(config):
        raise ConfigError(
            f"{config.output}: holds an unfinished run of another config ({record}); go on with that one, "
            "remove the folder, or give another output"
        )
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        record.write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"output={config.output}: cannot be written: {error.strerror}; give another folder"
        ) from error


def _training_part(config: RunConfig) -> RunConfig:
    """The config with everything blanked that leaves the training as it is."""
    data = config.data.model_copy(update={"test": None})
    return config.model_copy(update={"name": "", "output": Path(), "export": ExportConfig(), "data": data})


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
