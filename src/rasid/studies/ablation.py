"""Ablations: the same run with one thing changed at a time, over several seeds, in one table.

An ablation is a YAML file with nothing but what differs from a base config; its name is that of the row, and a comment
on its first line is the row's description. The base alone is the row `baseline`. Each run is `rasid train` in a process
of its own, with its output in `OUTPUT/ROW/seed-N`, its log beside it, and no test corpus: ablations are chosen by dev.

A finished run is not run again, so that rows and seeds can be added, and an interruption made up for, by the same
command. Only configs are compared: after a change of the code or of a corpus, give another output folder.
"""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rasid.errors import ConfigError, RasidError
from rasid.inference import Extractor
from rasid.parallel import processors
from rasid.records import read_articles
from rasid.schema import Ontology
from rasid.studies.ablation_plan import BASELINE, Ablation, Run, plan
from rasid.training.run import TORCH_FOLDER

logger = logging.getLogger(__name__)

TABLE_FILE, RESULTS_FILE = "table.md", "results.json"
TRAIN = (sys.executable, "-m", "rasid", "train")
POLL_SECONDS = 0.05
NOTHING = "—"
SCORES = {"entities": "entity F1", "relations": "relation F1", "gold-entity relations": "gold-entity relation F1"}


@dataclass
class Study:
    """A table and the runs behind it.

    Attributes:
        rows: The baseline first.
        runs: Of every row and seed, finished or not.
        facts: What all have in common, for the record.
        speeds: Pieces per second by row, once measured.
    """

    output: Path
    rows: Sequence[Ablation]
    runs: Sequence[Run]
    facts: Mapping[str, Any]
    speeds: Mapping[str, float] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        """The Markdown file."""
        return self.output / TABLE_FILE

    @property
    def failed(self) -> list[Run]:
        """The runs that ended in an error."""
        return [run for run in self.runs if run.error]

    def save(self) -> None:
        """Write the table, and everything in it run by run as JSON, as far as the runs are finished."""
        runs = [run.to_dict() for run in self.runs]
        rows = [vars(row) | {"pieces_per_second": self.speeds.get(row.name)} for row in self.rows]
        results = json.dumps({**self.facts, "rows": rows, "runs": runs}, ensure_ascii=False, indent=1, default=str)
        (self.output / RESULTS_FILE).write_text(results + "\n", encoding="utf-8")
        self.table.write_text(render_table(rows, runs), encoding="utf-8")


def ablate(
    base: Path,
    files: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] = (13, 17, 23),
    jobs: int = 1,
    output: Path = Path("runs/ablations"),
    keep: bool = False,
) -> Study:
    """Run what is not finished yet, then measure the speed of all rows. The table is written anew after every run.

    Args:
        base: Run config that the ablations differ from.
        files: Ablations, in the order of the table.
        overrides: `key=value` for the base, and so for all rows; what an ablation says goes before them.
        seeds: Seeds of every row.
        jobs: Runs at once, each with its share of the processors.
        output: Folder of all runs and of the table.
        keep: Whether to keep the torch checkpoints of finished runs.

    Raises:
        ConfigError: for a wrong config, or a folder that holds a run of another one; before anything is run.
        DataError: if dev cannot be read.
    """
    rows, runs = plan(base, files, overrides, seeds, output)
    study = Study(output, rows, runs, {"base": str(base), "overrides": list(overrides), "seeds": list(seeds)})
    baseline = runs[0].config
    texts = [article.text for article in read_articles(baseline.data.dev, Ontology.load(baseline.ontology))]
    try:
        for row in rows:
            (output / row.name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output {output}: cannot be written: {error.strerror}; give another folder") from error

    def tidy(run: Run) -> None:
        if run.finished and not keep:
            shutil.rmtree(run.folder / TORCH_FOLDER, ignore_errors=True)
        study.save()

    for run in runs:
        tidy(run)
    train([run for run in runs if not run.finished], jobs, tidy)
    models = {run.row: run.model for run in reversed(runs) if run.finished}  # of each row's first seed
    study.speeds = pieces_per_second(models, texts)
    study.save()
    return study


def train(runs: Sequence[Run], jobs: int, after: Callable[[Run], None]) -> None:
    """Do runs, `jobs` at once, each in a process with its share of the processors, and call `after` after each."""
    threads = max(1, processors() // jobs)
    waiting, active = deque(runs), dict[subprocess.Popen[bytes], Run]()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.popleft()
                logger.info("run %d of %d: %s", len(runs) - len(waiting), len(runs), run.folder)
                active[_start(run, threads)] = run
            time.sleep(POLL_SECONDS)
            for process in [p for p in active if p.poll() is not None]:
                run = active.pop(process)
                if not run.finished:
                    run.error = _last_line(run.log, process.returncode)
                    logger.error("%s failed: %s; its log is %s", run.folder, run.error, run.log)
                after(run)
    finally:  # what is interrupted here goes on from its last checkpoint
        for process in active:
            process.terminate()
        for process in active:
            process.wait()


def _start(run: Run, threads: int) -> subprocess.Popen[bytes]:
    config = run.folder.with_name(f"{run.folder.name}.yaml")
    config.write_text(run.config.to_yaml(), encoding="utf-8")
    with run.log.open("wb") as log:
        return subprocess.Popen(
            [*TRAIN, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TYPER_STANDARD_TRACEBACK": "1"},
        )


def _last_line(log: Path, status: int) -> str:
    """What a log ends with; a progress bar's lines end with carriage returns."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "nothing in its log")
    return f"killed by signal {-status}: {last}" if status < 0 else last.removeprefix("error ")


def pieces_per_second(models: Mapping[str, Path], texts: Sequence[str], rounds: int = 3) -> dict[str, float]:
    """Speed of exported models on one thread, whole path, the best of some rounds after a warm-up.

    The models take turns, so that a change of the machine's speed hits all. One that cannot be loaded is left out.
    """
    extractors: dict[str, Extractor] = {}
    for name, folder in models.items():
        try:
            extractors[name] = Extractor.load(folder, threads=1)
        except RasidError as error:
            logger.error("the speed of %s is not measured: %s", name, error)
    best = dict.fromkeys(extractors, math.inf)
    for turn in range(rounds + 1):
        for name, extractor in extractors.items():
            began = time.perf_counter()
            for _ in extractor.pipe(texts):
                pass
            if turn:
                best[name] = min(best[name], time.perf_counter() - began)
    return {
        name: sum(len(w.input_ids) for text in texts for w in extractor.encoder.encode(text).windows) / best[name]
        for name, extractor in extractors.items()
    }


def render_table(rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown, scores in points of 100: a line for each row, and below it one for each failed run.

    Args:
        rows: With `name`, `description` and `pieces_per_second`.
        runs: What `Run.to_dict` gives, of every row and seed.
    """
    seeds = len({run["seed"] for run in runs})
    head = ["row", "description"]
    for title in SCORES.values():
        head += [f"{title} (n = {seeds})", "Δ"]
    head += ["minutes", "pieces/s", "MB"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    baseline = [run for run in runs if run["row"] == BASELINE]
    for row in rows:
        own = [run for run in runs if run["row"] == row["name"]]
        lines.append(_row(row, own, baseline))
        lines += [
            [f"{row['name']}, seed {run['seed']}", f"failed: {run['error']}"] + [NOTHING] * (len(head) - 2)
            for run in own
            if run["error"]
        ]
    return "".join(f"| {' | '.join(map(_escape, cells))} |\n" for cells in lines)


def _row(row: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> list[str]:
    finished = [run for run in runs if "dev" in run]
    cells = [row["name"] if finished == runs else f"{row['name']} ({len(finished)} of {len(runs)})", row["description"]]
    for score in SCORES:
        values, reference = _points(finished, score), _points(baseline, score)
        spread = f"{stdev(values):.1f}" if len(values) > 1 else NOTHING
        compared = values and reference and row["name"] != BASELINE
        cells.append(f"{mean(values):.1f} ± {spread}" if values else NOTHING)
        cells.append(f"{round(mean(values) - mean(reference), 1) + 0.0:+.1f}" if compared else NOTHING)
    minutes = [run["seconds"] / 60 for run in finished if run["seconds"] is not None]
    cells.append(f"{mean(minutes):.1f}" if minutes else NOTHING)
    cells.append(f"{row['pieces_per_second']:,.0f}" if row["pieces_per_second"] else NOTHING)
    cells.append(f"{mean(run['bytes'] for run in finished) / 1e6:.1f}" if finished else NOTHING)
    return cells


def _points(runs: Sequence[Mapping[str, Any]], score: str) -> list[float]:
    """F1 in points of 100 of finished runs; none where the ontology has no relations."""
    return [100 * run["dev"][score]["f1"] for run in runs if score in run.get("dev", {})]


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
