"""The command line. It owns the output and the log handlers; every command is a thin call of the library."""

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from rasid.cli import base as base_cli
from rasid.cli import data as data_cli
from rasid.cli import predict as predict_cli
from rasid.errors import ConfigError, RasidError

USAGE_ERROR = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Of a disk that takes no more, which may come up wherever something is written."""


class _Group(typer.core.TyperGroup):
    """Shows an error that the user can mend as its message alone."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (RasidError, OSError) as error:
            told = str(error)
            if isinstance(error, OSError):
                if error.errno not in DISK_ERRORS:
                    raise
                where = f"{error.filename}: " if error.filename else ""
                told = f"{where}{error.strerror}; make room there or choose another place"
            stderr.print(f"[bold red]error[/] {escape(told)}", soft_wrap=True, highlight=False)
            raise typer.Exit(USAGE_ERROR) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Military units, places, equipment, quantities, dates and their relations out of Arabic conflict news.",
)
app.add_typer(data_cli.app, name="data")
app.add_typer(base_cli.app, name="base")
stderr = Console(stderr=True)


@app.callback()
def _main(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False) -> None:
    handler = RichHandler(console=stderr, show_path=False)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler])


app.command()(predict_cli.predict)


@app.command()
def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/pretrain.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as corpus=[news.txt.xz].")] = None,
) -> None:
    """Pre-train a base further on raw text, by masked words."""
    with _training_extra():
        from rasid.config import PretrainConfig, read_config
        from rasid.training.pretraining import pretrain as run
    logging.getLogger("rasid").setLevel(logging.INFO)
    base = run(read_config(config, PretrainConfig, overrides or ()))
    stderr.print(f"[bold]{base}[/]: train with base={base}", soft_wrap=True, highlight=False)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/compact.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as training.epochs=3.")] = None,
) -> None:
    """Train, evaluate and export a model, all from one config."""
    with _training_extra():
        from rasid.config import load_config
        from rasid.training.run import run
    logging.getLogger("rasid").setLevel(logging.INFO)
    result = run(load_config(config, overrides or ()))
    stderr.print(
        f"[bold]{result.model}[/]: " + ", ".join(f"{k} {v:.3f}" for k, v in result.dev.items()), soft_wrap=True
    )


@app.command()
def ablate(
    config: Annotated[Path, typer.Option("--config", "-c", help="Run config that the rows differ from.")],
    files: Annotated[list[Path] | None, typer.Argument(help="YAML files of differences, a row each.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for all rows, such as training.epochs=3; repeatable.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every row.")] = "13,17,23",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the processors.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder of the runs and the table.")] = Path("runs/ablations"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the torch checkpoints of finished runs.")] = False,
) -> None:
    """Train a config as it is and with some changes, one by one, into a table. Exit status 1 if a run failed."""
    with _training_extra():
        from rasid.studies.ablation import ablate as run
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {seeds}: expected whole numbers and commas, such as 13,17,23") from error
    logging.getLogger("rasid").setLevel(logging.INFO)
    study = run(config, files or (), overrides or (), seeds=numbers, jobs=jobs, output=output, keep=keep)
    typer.echo(study.table.read_text(encoding="utf-8"), nl=False)
    stderr.print(f"table: {study.table}", soft_wrap=True, highlight=False)
    if study.failed:
        stderr.print(f"[red]{len(study.failed)} of {len(study.runs)} runs failed[/]", highlight=False)
        raise typer.Exit(1)


@app.command()
def countries(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/compact.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as training.epochs=3.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the processors.")] = 1,
    least: Annotated[int, typer.Option(min=1, help="Fewest articles of a group; smaller countries are joined.")] = 40,
    output: Annotated[Path, typer.Option(help="Folder of the runs and the table.")] = Path("runs/countries"),
) -> None:
    """Train without the articles about one country, score on them alone, and so on. Exit status 1 if a run failed."""
    with _training_extra():
        from rasid.studies.countries import leave_out
    logging.getLogger("rasid").setLevel(logging.INFO)
    study = leave_out(config, overrides or (), jobs=jobs, output=output, least=least)
    typer.echo(study.table.read_text(encoding="utf-8"), nl=False)
    stderr.print(f"table: {study.table}", soft_wrap=True, highlight=False)
    if study.failed:
        stderr.print(f"[red]{len(study.failed)} of {len(study.folds)} runs failed[/]", highlight=False)
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder, exported or torch, or the name of a shipped one.")],
    data: Annotated[Path, typer.Argument(help="Annotated articles, JSONL.")],
    report: Annotated[Path | None, typer.Option(help="Folder for the full report.")] = None,
    ontology: Annotated[Path | None, typer.Option(help="YAML file; the model's own by default.")] = None,
) -> None:
    """Score a model on annotated articles."""
    from rasid.records import read_articles
    from rasid.schema import Ontology
    from rasid.scoring.evaluation import evaluate as run
    from rasid.settings import ENCODER_FILE, find_model, read_config

    model = find_model(model)
    read_config(model)
    if (model / ENCODER_FILE).is_file():
        from rasid.inference import Extractor

        extractor = Extractor.load(model)
    else:
        with _training_extra():
            from rasid.modeling.checkpoint import load_torch_extractor
        extractor = load_torch_extractor(model)
    types = Ontology.load(ontology) if ontology else extractor.ontology
    result = run(extractor, read_articles(data, types), types)
    typer.echo(result.summary())
    if report:
        result.save(report)
        stderr.print(f"report: {report}", soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Torch checkpoint folder.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    dev: Annotated[Path, typer.Option(help="Annotated articles of the parity gate, JSONL.")] = Path("data/dev.jsonl"),
    max_drop: Annotated[float, typer.Option(help="Most points of F1 that quantisation may cost.")] = 0.5,
) -> None:
    """Export a torch checkpoint to int8 ONNX, if it keeps its accuracy."""
    with _training_extra():
        from rasid.modeling.export import export as run
    from rasid.records import read_articles

    facts = run(checkpoint, folder, list(read_articles(dev)), max_drop=max_drop)
    stderr.print(
        f"{folder}: {facts['bytes'] / 1e6:.1f} MB, dev {facts['int8']} (float32: {facts['fp32']})", soft_wrap=True
    )


@contextmanager
def _training_extra() -> Iterator[None]:
    """Turns a missing package of the `train` extra into an error that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this command needs the training extra ({error.name} is missing): pip install 'rasid[train]'"
        ) from error


def train_script() -> None:
    """Entry of `train/train.py`: `rasid train` with the program's own arguments."""
    app(["train", *sys.argv[1:]])
