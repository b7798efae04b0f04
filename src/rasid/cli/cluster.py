"""`rasid predict --engine ray`: what a cluster cannot do, and how far it is with what it can."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from rasid.batch.prediction import Summary
from rasid.batch.progress import INTERRUPTED, print_interrupted, print_resumed, progress_bar
from rasid.batch.staging import Staging, staging_of
from rasid.errors import ConfigError
from rasid.reading.documents import ReadOptions
from rasid.reading.sources import STANDARD_INPUT, Source


def check_request(inputs: list[Path], out: Path | None, errors: Path | None, *, append: bool, parallel: bool) -> None:
    """See before anything starts that a cluster can do what is asked.

    Raises:
        ConfigError: if it cannot, or Ray is missing.
    """
    if STANDARD_INPUT in inputs:
        raise ConfigError("--engine ray: other machines have no part in - (standard input); give files or folders")
    if out is None or out.suffix.lower() != ".parquet":
        raise ConfigError("--engine ray: writes a folder of Parquet files; name it, such as --out results.parquet")
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{path}: is itself to be read; give another --out than {out}")
    if errors is not None and out.resolve() in errors.resolve().parents:
        raise ConfigError(f"{errors}: is in {out}, which is for the results alone; give --errors another place")
    if append:
        raise ConfigError("--engine ray: cannot --append; give another --out and read both")
    if parallel:
        raise ConfigError("--engine ray: has a process for each processor; leave out --threads and --processes")
    try:
        import rasid.batch.cluster  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"--engine ray: needs {error.name}: pip install 'rasid[ray]'") from error


def run(
    model: Path,
    sources: Iterable[Source],
    options: ReadOptions,
    out: Path,
    errors: Path,
    max_seconds: float,
    *,
    what: dict[str, Any],
    fresh: bool,
    address: str | None,
) -> Summary:
    """Do a batch on a cluster, or what is left of it, and show how far it is; see `predict_on_cluster`."""
    from rasid.batch.cluster import predict_on_cluster

    with progress_bar() as progress:
        task = progress.add_task("files", total=None, articles="0")

        def report(staging: Staging) -> None:
            done = staging.summary.articles + staging.summary.failed
            if staging.resumed and progress.tasks[task].total is None:
                print_resumed(done, staging.folder)
            progress.update(task, completed=staging.sources_done, total=staging.sources, articles=f"{done:,}")

        try:
            return predict_on_cluster(
                model,
                sources,
                options,
                out,
                errors,
                max_seconds,
                what=what,
                fresh=fresh,
                address=address,
                report=report,
            )
        except KeyboardInterrupt:
            progress.stop()
            folder = staging_of(out)
            print_interrupted(folder if folder.exists() else None, fresh=fresh)
            raise typer.Exit(INTERRUPTED) from None
