"""What a table of ablations needs to be run: its rows, and the resolved config of each under every seed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rasid.config import RunConfig, load_config
from rasid.errors import ConfigError
from rasid.training.run import CONFIG_FILE, METRICS_FILE, ONNX_FOLDER
from rasid.training.trainer import CHECKPOINTS

BASELINE = "baseline"
OWN_KEYS = ("output", "seed", "data.test")  # set for each run
COMMON_KEYS = (*OWN_KEYS, "data.dev")  # the same for all rows, or their scores could not be compared
HARMLESS_KEYS = ("export.max_drop",)  # change nothing of a run but whether it ends in an error


@dataclass(frozen=True)
class Ablation:
    """A row: what differs from the base config, by dotted key."""

    name: str
    description: str
    differences: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """One row under one seed.

    Attributes:
        error: What went wrong, if it failed.
    """

    row: str
    config: RunConfig
    error: str | None = None

    @property
    def folder(self) -> Path:
        """Its output."""
        return self.config.output

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.folder / ONNX_FOLDER

    @property
    def finished(self) -> bool:
        """Whether its model is exported and scored; checkpoints are the last thing that a run removes."""
        return (self.model / METRICS_FILE).is_file() and not (self.folder / CHECKPOINTS).is_dir()

    def to_dict(self) -> dict[str, Any]:
        """Where it is, and if it is finished its dev scores (micro, F1 in [0, 1]) and what it cost."""
        facts = {"row": self.row, "seed": self.config.seed, "folder": str(self.folder), "error": self.error}
        if not self.finished:
            return facts
        metrics = json.loads((self.model / METRICS_FILE).read_text(encoding="utf-8"))
        dev, training = metrics["splits"]["dev"], metrics["training"]
        tables = {"entities": dev["entities"]["exact"]}
        if dev["relations"]:
            tables |= {
                "relations": dev["relations"]["strict"],
                "gold-entity relations": dev["relations"]["gold entities"],
            }
        return facts | {
            "dev": {name: table["micro"] for name, table in tables.items()},
            "seconds": training["seconds"],  # none for a run that was interrupted
            "bytes": training["export"]["bytes"],
            "epochs": training["epochs"],
        }


def plan(
    base: Path, files: Sequence[Path], overrides: Sequence[str], seeds: Sequence[int], output: Path
) -> tuple[list[Ablation], list[Run]]:
    """Resolve and check the config of every run; nothing is written.

    Returns:
        The rows, the baseline first, and the runs: the first seed of every row, then the next, so that rows can be
        compared early.

    Raises:
        ConfigError: for a wrong config, a row that is there twice or changes nothing, or a folder of `output` that
            holds a run of another config.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {', '.join(map(str, seeds))}: expected different whole numbers, such as 13,17,23")
    if own := [key for key in (o.partition("=")[0].strip() for o in overrides) if key in OWN_KEYS]:
        raise ConfigError(f"override {own[0]}: is set for each run; use --output or --seeds (no test set is read)")
    rows = [Ablation(BASELINE, str(base)), *map(read_ablation, files)]
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two rows would be called {twice[0]}; give one of the files another name")

    def resolve(row: Ablation, source: Path, seed: int) -> Run:
        own = {"output": str(output / row.name / f"seed-{seed}"), "seed": seed, "data.test": None}
        try:
            return Run(row.name, load_config(base, [*overrides, *_dotlist(row.differences), *_dotlist(own)]))
        except ConfigError as error:  # the base alone comes first, so that this is the ablation's fault
            lines = (line.removeprefix(f"{base}: ") for line in str(error).splitlines())
            raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from error

    runs: list[Run] = []
    for seed in seeds:
        baseline, *others = (resolve(row, source, seed) for row, source in zip(rows, (base, *files), strict=True))
        for run, file in zip(others, files, strict=True):
            if run.config.model_copy(update={"output": baseline.folder}) == baseline.config:
                raise ConfigError(f"{file}: changes nothing of {base}; leave it out, or give it other values")
        runs += [baseline, *others]
    if foreign := [problem for run in runs if (problem := foreign_run(run))]:
        raise ConfigError("\n".join(foreign))
    return rows, runs


def read_ablation(path: Path) -> Ablation:
    """Read a file of differences.

    Raises:
        ConfigError: if it is missing, broken, or sets what must be the same for all rows.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loaded = OmegaConf.create(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such ablation; those of this project are in configs/ablations/") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{path}: expected a mapping of what differs, such as training: {{epochs: 16}}")
    differences = dict(_flatten(OmegaConf.to_container(loaded)))
    if common := [key for key in differences if key in COMMON_KEYS]:
        raise ConfigError(f"{path}: {common[0]} must not differ between rows; take it out of the file")
    first = text.partition("\n")[0]
    return Ablation(path.stem, first.lstrip("#").strip() if first.startswith("#") else "", differences)


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dotlist(values: Mapping[str, Any]) -> list[str]:
    """Overrides for `load_config`, which reads values as YAML; JSON is that, whatever a text holds."""
    return [f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in values.items()]


def foreign_run(run: Run) -> str | None:
    """What to do about a folder that holds a run of another config; None if it does not."""
    record = run.folder / CONFIG_FILE
    if not record.is_file():
        return None
    todo = f"remove {run.folder}, or give another output"
    try:
        before, now = (dict(_flatten(c.model_dump(mode="json"))) for c in (load_config(record), run.config))
    except ConfigError as error:
        return f"{record}: belongs to another version ({error}); {todo}"
    changes = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in now | before
        if before.get(key) != now.get(key) and key not in HARMLESS_KEYS
    ]
    return f"{record}: belongs to a run of another config ({'; '.join(changes)}); {todo}" if changes else None
