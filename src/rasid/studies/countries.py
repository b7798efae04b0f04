"""Leave one country out: how well a model reads news about countries that it was never trained on.

For each group of countries (`meta.country`), one model is trained without any article about them and scored on those
articles alone. Its score by itself says little, since the news of one country is harder than that of another. So there
is one model more, the control, trained without a random fold that has an equal share of every group. The articles of a
group that are in the fold were kept from both, and on them both are compared. All models are trained on equally many
articles, so that the two differ in nothing but whether others of the group's articles were among them, and in chance:
each is one run, and a difference of a point says nothing.

What an article is about is not all that it names: others may mention a country that was left out. The dev corpus,
without the group's articles, chooses epoch and thresholds as in any run; the test corpus is not read.

Each run is `rasid train` in a process of its own, in `OUTPUT/GROUP/run`, with its corpora beside it. A finished one is
not run again, so that the same command makes up for an interruption.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rasid.config import DataConfig, RunConfig, load_config
from rasid.errors import ConfigError
from rasid.inference import Extractor
from rasid.records import Article
from rasid.schema import Ontology
from rasid.scoring.calibration import pooled_f1
from rasid.scoring.evaluation import evaluate
from rasid.scoring.metrics import Score
from rasid.studies.ablation import NOTHING, RESULTS_FILE, SCORES, TABLE_FILE, train
from rasid.studies.ablation_plan import Run, foreign_run
from rasid.studies.country_splits import Split, split_countries
from rasid.training.card import format_score
from rasid.training.run import TORCH_FOLDER, read_corpora

logger = logging.getLogger(__name__)

OWN_KEYS = ("output", "data.test")  # set for each run
Scores = dict[str, Score]  # by the names of `SCORES`


@dataclass
class Fold(Run):
    """A split and its run, with what has been scored so far.

    Attributes:
        scores: On all articles that are left out.
        without: On `split.compared`.
        control: The control's, on `split.compared`.
    """

    split: Split = field(kw_only=True)
    scores: Scores = field(default_factory=dict)
    without: Scores = field(default_factory=dict)
    control: Scores = field(default_factory=dict)

    @property
    def corpora(self) -> dict[Path, bytes]:
        """The content of the files that its run reads."""
        parts = {"train": self.split.train, "dev": self.split.dev, "test": self.split.test}
        return {
            self.folder.with_name(f"{name}.jsonl"): "".join(f"{a.to_json()}\n" for a in part).encode()
            for name, part in parts.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """What is in the table about it, and more."""
        return {
            "left_out": self.split.name,
            "countries": self.split.countries,
            "folder": str(self.folder),
            "error": self.error,
            "articles": {name: len(getattr(self.split, name)) for name in ("train", "dev", "test", "compared")},
            "scores": self.scores,
            "compared": {"without": self.without, "control": self.control},
        }


@dataclass
class Study:
    """A table and the runs behind it.

    Attributes:
        folds: The control, then the groups from the largest on.
        facts: What all have in common, for the record.
    """

    output: Path
    folds: Sequence[Fold]
    facts: Mapping[str, Any]

    @property
    def table(self) -> Path:
        """The Markdown file."""
        return self.output / TABLE_FILE

    @property
    def failed(self) -> list[Fold]:
        """The folds whose runs ended in an error."""
        return [fold for fold in self.folds if fold.error]

    def update(self) -> None:
        """Score what is finished and not scored yet; write the table, and all of its numbers as JSON."""
        control = self.folds[0]
        for fold in [fold for fold in self.folds if fold.finished]:
            shutil.rmtree(fold.folder / TORCH_FOLDER, ignore_errors=True)
            fold.scores = fold.scores or score(fold.model, fold.split.test)
            if control.finished and fold.split.compared:
                fold.without = fold.without or score(fold.model, fold.split.compared)
                fold.control = fold.control or score(control.model, fold.split.compared)
        results = {**self.facts, "runs": [fold.to_dict() for fold in self.folds]}
        text = json.dumps(results, ensure_ascii=False, indent=1, default=vars)
        (self.output / RESULTS_FILE).write_text(f"{text}\n", encoding="utf-8")
        self.table.write_text(render_table(self.folds), encoding="utf-8")


def leave_out(
    base: Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int = 1,
    output: Path = Path("runs/countries"),
    least: int = 40,
) -> Study:
    """Run what is not finished yet. The table is written anew after every run.

    Args:
        base: Run config.
        overrides: `key=value` for it.
        jobs: Runs at once, each with its share of the processors.
        output: Folder of all runs and of the table.
        least: Fewest articles of a group; see `group_countries`.

    Raises:
        ConfigError: for a wrong config, or a folder that holds a run of another one; before anything is run.
        DataError: for corpora that cannot be read or split.
    """
    config = _load(base, overrides)
    ontology = Ontology.load(config.ontology)
    corpora = read_corpora(config.data.train, ontology), read_corpora([config.data.dev], ontology)
    folds = [_fold(split, config, output) for split in split_countries(*corpora, least)]
    if foreign := [problem for fold in folds if (problem := foreign_run(fold) or _foreign_corpora(fold))]:
        raise ConfigError("\n".join(foreign))
    for fold in folds[1:]:
        logger.info("%s", _describe(fold))
    try:
        for fold in folds:
            fold.folder.parent.mkdir(parents=True, exist_ok=True)
            for path, content in fold.corpora.items():
                path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"output {output}: cannot be written: {error.strerror}; give another folder") from error
    study = Study(output, folds, {"base": str(base), "overrides": list(overrides), "least": least})
    study.update()
    train([fold for fold in folds if not fold.finished], jobs, lambda _: study.update())
    return study


def _load(base: Path, overrides: Sequence[str]) -> RunConfig:
    """The config, if the models that it starts from have not learned of countries by annotation."""
    if own := [key for key in (o.partition("=")[0].strip() for o in overrides) if key in OWN_KEYS]:
        raise ConfigError(f"override {own[0]}: is set for each run; use --output (no test set is read)")
    config = load_config(base, overrides)
    for key, trained in {"start": config.start, "distillation.teachers": config.distillation.teachers}.items():
        if trained:
            raise ConfigError(f"{base}: {key} may have been trained on what is to be left out; take it out")
    return config


def _fold(split: Split, config: RunConfig, output: Path) -> Fold:
    folder = output / split.name.replace(" ", "-")
    data = DataConfig(train=(folder / "train.jsonl",), dev=folder / "dev.jsonl", test=folder / "test.jsonl")
    return Fold(split.name, config.model_copy(update={"output": folder / "run", "data": data}), split=split)


def _foreign_corpora(fold: Fold) -> str | None:
    """What to do about a folder with other articles than those of the fold; None if it has no others."""
    for path, content in fold.corpora.items():
        if path.is_file() and path.read_bytes() != content:
            return f"{path}: belongs to another corpus or --least; remove {path.parent}, or give another output"
    return None


def score(model: Path, articles: Sequence[Article]) -> Scores:
    """Micro scores of an exported model."""
    extractor = Extractor.load(model)
    result = evaluate(extractor, articles, extractor.ontology)
    tables = {"entities": result.entities}
    if result.relations:
        tables |= {"relations": result.relations["strict"], "gold-entity relations": result.relations["gold entities"]}
    return {name: table.micro for name, table in tables.items()}


def render_table(folds: Sequence[Fold]) -> str:
    """The table in Markdown, F1 in points of 100, with what the groups are.

    Args:
        folds: The control first.
    """
    control, *groups = folds
    finished = [fold for fold in groups if fold.scores]
    name = "all groups" if len(finished) == len(groups) else f"{len(finished)} of {len(groups)} groups"
    pooled = [f"{sum(len(fold.split.test) for fold in finished):,}"]
    for key in SCORES:
        scores = [fold.scores[key] for fold in finished if key in fold.scores]
        pooled.append(f"{100 * pooled_f1(scores):.1f}" if scores else NOTHING)

    heads = ["left out", "articles", *SCORES.values(), "compared on", *(f"Δ {title}" for title in SCORES.values())]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for fold in groups:
        lines.append([fold.row, *_own_scores(fold), *_comparison([fold])])
    lines.append([name, *pooled, *_comparison(finished)])
    lines.append(["a random fold (control)", *_own_scores(control), *_comparison([])])
    lines += [[fold.row, f"failed: {fold.error}", *[NOTHING] * (len(heads) - 2)] for fold in folds if fold.error]
    table = "".join(f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |\n" for cells in lines)
    members = "".join(f"- {_describe(fold)}\n" for fold in groups)
    return (
        f"Every model is trained on {len(control.split.train):,} articles and scored on those that were left out, with "
        "95 % intervals. Δ: the model without any of the group's articles minus the control, which was trained on "
        f"others of them, on articles that neither was trained on (without / control).\n\n{table}\n{members}"
    )


def _own_scores(fold: Fold) -> list[str]:
    scores = (format_score(fold.scores[key]) if key in fold.scores else NOTHING for key in SCORES)
    return [f"{len(fold.split.test):,}", *scores]


def _comparison(folds: Sequence[Fold]) -> list[str]:
    """How many articles of some groups are compared, and what all scores on them together are."""
    compared = [fold for fold in folds if fold.control]
    cells = [f"{sum(len(fold.split.compared) for fold in compared):,}" if compared else NOTHING]
    for key in SCORES:
        both = [fold for fold in compared if key in fold.control]
        without = 100 * pooled_f1(fold.without[key] for fold in both)
        control = 100 * pooled_f1(fold.control[key] for fold in both)
        change = round(without - control, 1) + 0.0  # -0.0 becomes 0.0
        cells.append(f"{change:+.1f} ({without:.1f} / {control:.1f})" if both else NOTHING)
    return cells


def _describe(fold: Fold) -> str:
    """The countries of a group, with their articles."""
    return f"{fold.row}: {', '.join(f'{country} {n}' for country, n in fold.split.countries.items())}"
