"""How far a batch is and what it came to, on standard error."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rasid.batch.prediction import Summary

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
stderr = Console(stderr=True)


def progress_bar() -> Progress:
    """Files that are done, with the number of articles beside them."""
    columns = (
        TextColumn("{task.fields[articles]} articles"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, transient=True)


def print_resumed(articles: int, folder: Path) -> None:
    """How many articles are done already, and where."""
    stderr.print(f"going on after {articles:,} articles, from {folder}", soft_wrap=True, highlight=False)


def print_interrupted(folder: Path | None, *, fresh: bool) -> None:
    """After Ctrl-C.

    Args:
        folder: Where what is done is kept; None if nothing is.
        fresh: Whether the command says to start over.
    """
    command = "the same command without --fresh" if fresh else "the same command"
    rest = f"{command} goes on from {folder}" if folder else "nothing was written"
    stderr.print(f"interrupted; {rest}", soft_wrap=True, highlight=False)


def print_summary(summary: Summary, out: Path | None, errors: Path | None) -> None:
    """Counts, speed and where the results are; `out` is None where they are nowhere yet, or on standard output."""
    rate = summary.articles / summary.seconds if summary.seconds else 0.0
    stderr.print(
        f"articles: {summary.articles:,} in {summary.seconds:.1f} s ({rate:,.1f} per second)",
        highlight=False,
    )
    stderr.print(f"{summary.entities.total():,} entities: {_line(summary.entities)}", soft_wrap=True, highlight=False)
    stderr.print(
        f"{summary.relations.total():,} relations: {_line(summary.relations)}", soft_wrap=True, highlight=False
    )
    if out:
        told = "" if summary.articles else " has nothing new, since no article was read"
        stderr.print(f"results: {out}{told}", soft_wrap=True, highlight=False)
    if summary.failed:
        stderr.print(f"[red]{summary.failed:,} not read[/], see {errors or 'above'}", soft_wrap=True, highlight=False)


def print_skipped(skipped: dict[str, int]) -> None:
    """How many files of folders are of no format that is read, by suffix."""
    if skipped:
        named = {suffix or "without suffix": n for suffix, n in skipped.items()}
        stderr.print(
            f"{sum(skipped.values()):,} files of other formats left out: {_line(named)}",
            soft_wrap=True,
            highlight=False,
        )


def _line(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
