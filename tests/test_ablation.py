"""Ablations. Most tests replace training by a script that only writes what a run leaves."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rasid.cli.main import app
from rasid.config import load_config
from rasid.errors import ConfigError, DataError
from rasid.inference import Extractor
from rasid.settings import shipped_model
from rasid.studies import ablation
from rasid.studies.ablation import RESULTS_FILE, ablate, pieces_per_second, render_table
from rasid.studies.ablation_plan import plan, read_ablation

ROOT = Path(__file__).parents[1]
ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
Configure = Callable[..., Any]

# Stands in for `rasid train CONFIG`: one more epoch is one more point; seed 99 fails, threads are in its log. As in a
# true run, there are checkpoints as long as anything else is not whole.
FAKE_TRAINING = r"""
import json, os, pathlib, sys, yaml
config = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
folder = pathlib.Path(config["output"])
print("threads", os.environ["OMP_NUM_THREADS"])
with (folder.parents[1] / "order.txt").open("a") as order:
    order.write(f"{folder.parent.name} {config['seed']}\n")
if config["seed"] == 99:
    sys.exit("1 %\r2 %\nerror folder: a | b\n\n")
f1 = config["training"]["epochs"] / 100 + config["seed"] / 1000
dev = {
    "entities": {"exact": {"micro": {"f1": f1}}},
    "relations": {"strict": {"micro": {"f1": f1 / 2}}, "gold entities": {"micro": {"f1": f1 * 2}}},
}
training = {"seconds": 90, "epochs": [], "export": {"bytes": 35_000_000}}
for name in ("checkpoints", "onnx", "torch"):
    (folder / name).mkdir(parents=True, exist_ok=True)
(folder / "run.yaml").write_bytes(pathlib.Path(sys.argv[1]).read_bytes())
(folder / "onnx" / "metrics.json").write_text(json.dumps({"splits": {"dev": dev}, "training": training}))
(folder / "checkpoints").rmdir()
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Replaces training and the measurement of speed; holds the models that were to be measured."""
    measured: dict[str, Path] = {}

    def measure(models: Mapping[str, Path], texts: Sequence[str]) -> dict[str, float]:
        measured.update(models)
        return dict.fromkeys(models, 6000.0 + len(texts))

    monkeypatch.setattr(ablation, "TRAIN", (sys.executable, "-c", FAKE_TRAINING))
    monkeypatch.setattr(ablation, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(ablation, "pieces_per_second", measure)
    return measured


@pytest.fixture
def base(tmp_path: Path, toy: dict[str, Path]) -> Path:
    """A run config; 10 epochs."""
    text = f"base: random\nontology: {toy['ontology']}\ndata: {{train: [{toy['train']}], dev: {toy['dev']}}}\n"
    return write(tmp_path / "base.yaml", text)


@pytest.fixture
def longer(tmp_path: Path) -> Path:
    return write(tmp_path / "longer.yaml", "# 16 epochs.\n# More.\ntraining:\n  epochs: 16\n")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def cells(table: str) -> list[list[str]]:
    return [line.strip("|\n").replace("\\|", "¦").split("|") for line in table.splitlines()]


def table_of(output: Path) -> dict[str, list[str]]:
    """Cells by the first of their line."""
    lines = [[cell.strip() for cell in line] for line in cells((output / "table.md").read_text(encoding="utf-8"))]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


def results_of(output: Path) -> dict[str, Any]:
    return json.loads((output / RESULTS_FILE).read_text(encoding="utf-8"))


def order_of(output: Path) -> list[str]:
    return (output / "order.txt").read_text().splitlines()


# Configs


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
@pytest.mark.parametrize("config", ["ablation", "compact"])
def test_every_shipped_ablation_differs_from_what_it_is_for(path: Path, config: str, tmp_path: Path) -> None:
    rows, runs = plan(ROOT / "configs" / f"{config}.yaml", [path], [], [13], tmp_path)
    assert rows[1].description
    assert [run.row for run in runs] == ["baseline", path.stem]


def test_there_are_shipped_ablations() -> None:
    assert {"longer", "no-dropout"} <= {path.stem for path in ABLATIONS}


def test_resolved_configs(base: Path, longer: Path, tmp_path: Path) -> None:
    heads = write(tmp_path / "heads.yaml", "heads: {dropout: 0.3}\ntext.normalization: [digits]\nname: 'no # = {x}'\n")
    overrides = ["training.epochs=3", "heads.relation_size=64"]
    rows, runs = plan(base, [longer, heads], overrides, [1, 2], tmp_path / "out")
    assert [(row.name, row.description) for row in rows] == [
        ("baseline", str(base)),
        ("longer", "16 epochs."),
        ("heads", ""),
    ]
    assert [(run.row, run.config.seed) for run in runs] == [(row.name, seed) for seed in (1, 2) for row in rows]
    plain, long, other = (run.config for run in runs[:3])
    own = [*overrides, "seed=1", "data.test=null"]
    assert plain == load_config(base, [*own, f"output={tmp_path}/out/baseline/seed-1"])
    assert long == load_config(base, [*own, f"output={tmp_path}/out/longer/seed-1", "training.epochs=16"])
    assert (other.heads.dropout, other.heads.relation_size) == (0.3, 64)
    assert other.text.normalization == ("digits",)
    assert other.name == "no # = {x}"
    assert other.training.epochs == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "row.yaml: unknown key training.epoch; did you mean epochs?"),
        ("bass: random", "row.yaml: unknown key bass; did you mean base?"),
        ("training.epoch: 3", "row.yaml: unknown key training.epoch; did you mean epochs?"),
        ("training: {epochs: 0}", "row.yaml: training.epochs: Input should be greater than 0"),
        ("training: 3", "row.yaml: training: "),
        ("heads: {context_heads: 3}", "row.yaml: heads: "),
        ("seed: 3", "row.yaml: seed must not differ between rows; take it out of the file"),
        ("output: there", "row.yaml: output must not differ"),
        ("data: {dev: x.jsonl}", "row.yaml: data.dev must not differ"),
        ("data: {test: x.jsonl}", "row.yaml: data.test must not differ"),
        ("- a", "row.yaml: expected a mapping of what differs"),
        ("a: [", "row.yaml: cannot be read as YAML"),
        ("", "row.yaml: changes nothing of "),
        ("# only words", "row.yaml: changes nothing of "),
        ("training: {epochs: 10}", "row.yaml: changes nothing of "),
    ],
)
def test_a_wrong_ablation_is_found_before_anything_runs(
    text: str, message: str, base: Path, longer: Path, tmp_path: Path, fake: object
) -> None:
    row = write(tmp_path / "row.yaml", text)
    with pytest.raises(ConfigError) as error:
        ablate(base, [longer, row], output=tmp_path / "out")
    assert message in str(error.value)
    assert str(error.value).startswith(str(row.parent))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "seeds", "message"),
    [
        (["training.epoch=3"], [1], "base.yaml: unknown key training.epoch; did you mean epochs?"),
        (["epochs"], [1], "override 'epochs': expected key=value"),
        (["seed=3"], [1], "override seed: is set for each run; use --output or --seeds"),
        (["data.test=x"], [1], "override data.test: is set for each run"),
        ([], [], "expected different whole numbers"),
        ([], [1, 2, 1], "seeds 1, 2, 1: expected different whole numbers, such as 13,17,23"),
    ],
)
def test_wrong_overrides_and_seeds(
    overrides: list[str], seeds: list[int], message: str, base: Path, longer: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        ablate(base, [longer], overrides, seeds=seeds, output=tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_names_of_rows_are_unique(base: Path, longer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two rows would be called longer; give one of the files another name"):
        plan(base, [longer, longer], [], [1], tmp_path)
    taken = write(tmp_path / "baseline.yaml", "training: {epochs: 3}")
    with pytest.raises(ConfigError, match="two rows would be called baseline"):
        plan(base, [taken], [], [1], tmp_path)


def test_a_missing_ablation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such ablation"):
        read_ablation(tmp_path / "gone.yaml")


def test_dev_and_output_are_tried_before_anything_runs(base: Path, longer: Path, tmp_path: Path, fake: object) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        ablate(base, [longer], ["data.dev=gone.jsonl"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"output .*longer\.yaml: cannot be written"):
        ablate(base, [longer], output=longer)


# Runs


def test_a_table_of_finished_runs(base: Path, longer: Path, tmp_path: Path, fake: dict[str, Path]) -> None:
    out = tmp_path / "out"
    study = ablate(base, [longer], seeds=[10, 30], output=out)
    assert study.failed == []
    assert order_of(out) == ["baseline 10", "longer 10", "baseline 30", "longer 30"]
    table = table_of(out)
    assert list(table) == ["row", "---", "baseline", "longer"]
    assert table["row"][1:3] == ["entity F1 (n = 2)", "Δ"]
    costs = ["1.5", "6,018", "35.0"]
    # 10 epochs and seeds 10 and 30: 11 and 13 points
    assert table["baseline"] == [str(base), "12.0 ± 1.4", "—", "6.0 ± 0.7", "—", "24.0 ± 2.8", "—", *costs]
    assert table["longer"] == ["16 epochs.", "18.0 ± 1.4", "+6.0", "9.0 ± 0.7", "+3.0", "36.0 ± 2.8", "+12.0", *costs]
    assert fake == {row: out / row / "seed-10" / "onnx" for row in ("baseline", "longer")}
    results = results_of(out)
    assert (results["base"], results["overrides"], results["seeds"]) == (str(base), [], [10, 30])
    assert results["rows"][1]["differences"] == {"training.epochs": 16}
    assert [(r["row"], r["seed"]) for r in results["runs"]] == [tuple_of(line) for line in order_of(out)]
    assert results["runs"][1]["dev"]["relations"]["f1"] == pytest.approx(0.085)
    assert not list(out.rglob("torch"))


def tuple_of(line: str) -> tuple[str, int]:
    row, seed = line.split()
    return row, int(seed)


def test_finished_runs_are_not_run_again(base: Path, longer: Path, tmp_path: Path, fake: object) -> None:
    out = tmp_path / "out"
    ablate(base, [], seeds=[1], output=out, keep=True)
    assert (out / "baseline" / "seed-1" / "torch").is_dir()
    ablate(base, [longer], ["export.max_drop=2"], seeds=[1, 2], output=out)
    assert order_of(out) == ["baseline 1", "longer 1", "baseline 2", "longer 2"]
    assert not list(out.rglob("torch"))
    before = (out / "table.md").read_bytes()
    ablate(base, [longer], seeds=[1, 2], output=out)
    assert len(order_of(out)) == 4
    assert (out / "table.md").read_bytes() == before


@pytest.mark.parametrize("interrupted", ["training", "tidying"])
def test_an_unfinished_run_is_gone_on_with(interrupted: str, base: Path, tmp_path: Path, fake: object) -> None:
    out = tmp_path / "out"
    ablate(base, [], seeds=[1], output=out)
    folder = out / "baseline" / "seed-1"
    (folder / "checkpoints").mkdir()
    if interrupted == "training":
        (folder / "onnx" / "metrics.json").unlink()
    ablate(base, [], seeds=[1], output=out)
    assert order_of(out) == ["baseline 1", "baseline 1"]
    assert list(table_of(out))[2:] == ["baseline"]


def test_a_folder_of_another_config(base: Path, longer: Path, tmp_path: Path, fake: object) -> None:
    out = tmp_path / "out"
    ablate(base, [longer], seeds=[1, 2], output=out)
    write(longer, "training: {epochs: 18}")
    with pytest.raises(ConfigError) as error:
        ablate(base, [longer], seeds=[1, 2], output=out)
    assert str(error.value).splitlines() == [
        f"{folder / 'run.yaml'}: belongs to a run of another config (training.epochs was 16.0, is 18.0); "
        f"remove {folder}, or give another output"
        for folder in (out / "longer" / "seed-1", out / "longer" / "seed-2")
    ]
    write(out / "longer" / "seed-1" / "run.yaml", "old_key: 1\n")
    with pytest.raises(ConfigError, match=r"seed-1/run\.yaml: belongs to another version \(.*unknown key old_key"):
        ablate(base, [longer], seeds=[1], output=out)
    assert len(order_of(out)) == 4


def test_a_failed_run_is_one_line_of_the_table(base: Path, longer: Path, tmp_path: Path, fake: object) -> None:
    out = tmp_path / "out"
    study = ablate(base, [longer], seeds=[10, 99], output=out)
    assert [(run.row, run.config.seed) for run in study.failed] == [("baseline", 99), ("longer", 99)]
    table = table_of(out)
    assert list(table)[2:] == ["baseline (1 of 2)", "baseline, seed 99", "longer (1 of 2)", "longer, seed 99"]
    assert table["longer, seed 99"] == ["failed: folder: a ¦ b", *["—"] * 9]
    assert table["longer (1 of 2)"][1:3] == ["17.0 ± —", "+6.0"]
    failed = results_of(out)["runs"][-1]
    assert failed["error"] == "folder: a | b"
    assert "dev" not in failed
    log = (out / "longer" / "seed-99.log").read_text()
    assert log.startswith("threads ")


def test_nothing_but_failures(base: Path, tmp_path: Path, fake: dict[str, Path]) -> None:
    ablate(base, [], seeds=[99], output=tmp_path / "out")
    assert table_of(tmp_path / "out")["baseline (0 of 1)"][1:] == ["—"] * 9
    assert fake == {}


def test_a_killed_run(base: Path, tmp_path: Path, fake: object, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr(ablation, "TRAIN", (sys.executable, "-c", script))
    study = ablate(base, [], seeds=[1], output=tmp_path / "out")
    assert study.failed[0].error == "killed by signal 9: nothing in its log"


def test_the_table_can_be_read_on_the_way(
    base: Path, longer: Path, tmp_path: Path, fake: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, names = tmp_path / "out", []
    save = ablation.Study.save

    def spy(study: ablation.Study) -> None:
        save(study)
        names.append(list(table_of(out))[2:])

    monkeypatch.setattr(ablation.Study, "save", spy)
    ablate(base, [longer], seeds=[1], output=out)
    none, half, all_ = ["baseline (0 of 1)", "longer (0 of 1)"], ["baseline", "longer (0 of 1)"], ["baseline", "longer"]
    assert [n for i, n in enumerate(names) if n not in names[:i]] == [none, half, all_]


@pytest.mark.parametrize(("jobs", "threads"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_runs_at_once_share_the_processors(
    jobs: int, threads: int, base: Path, tmp_path: Path, fake: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run waits until as many have begun as are to run at once, and leaves time for one too many to begin."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    events = tmp_path / "events.txt"
    script = f"""
import pathlib, sys, time
events = pathlib.Path({str(events)!r})
def tell(event):
    with events.open("a") as file: file.write(event)
tell("(")
end = time.time() + 5
while events.read_text().count("(") < {min(jobs, 3)} and time.time() < end: time.sleep(0.01)
time.sleep(0.05)
tell(")")
"""
    monkeypatch.setattr(ablation, "TRAIN", (sys.executable, "-c", script + FAKE_TRAINING))
    ablate(base, [], seeds=[1, 2, 3], jobs=jobs, output=tmp_path / "out")
    happened = events.read_text()
    assert max(happened[:n].count("(") - happened[:n].count(")") for n in range(7)) == min(jobs, 3)
    logs = [(tmp_path / "out" / "baseline" / f"seed-{seed}.log").read_text() for seed in (1, 2, 3)]
    assert logs == [f"threads {threads}\n"] * 3


def test_an_interruption_ends_the_runs(
    base: Path, tmp_path: Path, fake: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start = ablation._start
    monkeypatch.setattr(ablation, "_start", lambda *args: started.append(start(*args)) or started[-1])
    monkeypatch.setattr(ablation, "TRAIN", (sys.executable, "-c", "import time; time.sleep(60)"))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ablate(base, [], seeds=[1, 2], jobs=2, output=tmp_path / "out")
    assert [process.returncode for process in started] == [-15, -15]


# The table


def test_a_difference_that_rounds_to_nothing_has_one_sign() -> None:
    rows = [{"name": name, "description": "", "pieces_per_second": None} for name in ("baseline", "row")]
    runs = [
        {"row": row, "seed": 1, "error": None, "dev": {"entities": {"f1": f1}}, "seconds": 60, "bytes": 1e6}
        for row, f1 in (("baseline", 0.5001), ("row", 0.4999))
    ]
    assert [cell.strip() for cell in cells(render_table(rows, runs))[-1][2:4]] == ["50.0 ± —", "+0.0"]


def test_table_without_relations_and_without_times() -> None:
    row = {"name": "baseline", "description": "", "pieces_per_second": None}
    run = {"row": "baseline", "seed": 1, "error": None, "dev": {"entities": {"f1": 0.5}}, "seconds": None, "bytes": 1e6}
    head, rule, line = cells(render_table([row], [run]))
    assert {len(head), len(rule), len(line)} == {11}
    assert [cell.strip() for cell in line[2:]] == ["50.0 ± —", *["—"] * 7, "1.0"]


# The real thing


def test_speed_is_in_pieces(tmp_path: Path) -> None:
    text = "وصلت قسد إلى حلب"
    models = {"shipped": shipped_model(), "broken": tmp_path}
    (speed,) = pieces_per_second(models, [text] * 3, rounds=1).values()
    pieces = sum(len(w.input_ids) for w in Extractor.load(shipped_model()).encoder.encode(text).windows)
    assert pieces / 10 < speed < pieces * 10_000  # 10 s and 0.1 ms for a text


def test_command_line(base: Path, longer: Path, tmp_path: Path, fake: object) -> None:
    out = tmp_path / "out"
    args = ["ablate", longer, "--config", base, "--set", "training.epochs=12", "--output", out, "--seeds"]
    result = CliRunner().invoke(app, [*map(str, args), "10, 30"])
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "table.md").read_text(encoding="utf-8")
    assert "+4.0" in result.stdout
    assert f"table: {out / 'table.md'}" in result.stderr
    failing = CliRunner().invoke(app, [*map(str, args), "10,99"])
    assert failing.exit_code == 1
    assert "2 of 4 runs failed" in failing.stderr
    misused = CliRunner().invoke(app, [*map(str, args), "10;99"])
    assert misused.exit_code == 2
    assert "--seeds 10;99: expected whole numbers and commas" in misused.stderr


def test_two_rows_end_to_end(corpora: dict[str, Path], toy: dict[str, Path], tmp_path: Path) -> None:
    """One row trains, exports and is scored; the other fails when its corpus is read."""
    data = [f"data.train=[{toy['train']}]", f"data.dev={toy['dev']}", f"ontology={toy['ontology']}"]
    row = write(tmp_path / "news.yaml", f"data: {{train: [{corpora['train']}]}}\n")
    out = tmp_path / "out"
    study = ablate(ROOT / "configs" / "debug.yaml", [row], data, seeds=[13], jobs=2, output=out)
    (failed,) = study.failed
    assert failed.row == "news"
    assert re.match(r".*train\.jsonl:1: .*unknown type", failed.error or "")
    table = table_of(out)
    assert list(table)[2:] == ["baseline", "news (0 of 1)", "news, seed 13"]
    assert all(cell != "—" for cell in (table["baseline"][1], *table["baseline"][7:]))
    assert {path.name for path in (out / "baseline" / "seed-13").iterdir()} == {"run.yaml", "base", "onnx", "report"}
    assert {path.name for path in (out / "baseline" / "seed-13" / "report").iterdir()} == {"dev"}
    run = results_of(out)["runs"][0]
    metrics = json.loads((out / "baseline" / "seed-13" / "onnx" / "metrics.json").read_text(encoding="utf-8"))
    assert run["dev"]["entities"] == metrics["splits"]["dev"]["entities"]["exact"]["micro"]
    assert run["dev"]["gold-entity relations"] == metrics["splits"]["dev"]["relations"]["gold entities"]["micro"]
    assert load_config(out / "baseline" / "seed-13" / "run.yaml").data.test is None
