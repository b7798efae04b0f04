"""The model card, generated from a run's config and scores so that it cannot disagree with them."""

from typing import Any

import jinja2

from rasid.config import RunConfig
from rasid.scoring.evaluation import Evaluation
from rasid.scoring.metrics import Score


def render_card(config: RunConfig, results: dict[str, Evaluation], facts: dict[str, Any], train_articles: int) -> str:
    """The card in Markdown, with the metadata header of model hubs.

    Args:
        config: The resolved run config.
        results: Scores of the exported model per split.
        facts: What training and export report.
        train_articles: Number of articles trained on.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rasid"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["score"] = format_score
    return environment.get_template("card.md").render(
        config=config,
        results=results,
        facts=facts,
        train_articles=train_articles,
        ontology=next(iter(results.values())).ontology,
    )


def format_score(score: Score) -> str:
    """F1 in points of 100 with its 95 % interval, such as `84.2 (82.0–86.1)`."""
    low_high = f" ({100 * score.interval[0]:.1f}–{100 * score.interval[1]:.1f})" if score.interval else ""
    return f"{100 * score.f1:.1f}{low_high}"
