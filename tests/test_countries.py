"""Leaving countries out. Most tests replace training by a script that only writes what a run leaves."""

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rasid.cli.main import app
from rasid.errors import ConfigError, DataError
from rasid.records import Article, read_articles, write_articles
from rasid.scoring.metrics import Score
from rasid.studies import ablation, countries
from rasid.studies.countries import Scores, leave_out, score
from rasid.studies.country_splits import CONTROL, ELSEWHERE, country_of, draw_fold, group_countries, split_countries

ROOT = Path(__file__).parents[1]
TRAIN = {"SY": 20, "YE": 10, "ML": 3, "TD": 3, "XX": 2}
DEV = {"SY": 2, "YE": 1, "ML": 1, "XX": 1}
GROUPS = ["SY", "YE", "rest of Africa"]  # of at least 6 articles

# Stands in for `rasid train CONFIG`. As in a true run, there are checkpoints as long as anything else is not whole.
FAKE_TRAINING = r"""
import pathlib, sys, yaml
config = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
folder = pathlib.Path(config["output"])
with (folder.parents[1] / "order.txt").open("a") as order:
    order.write(f"{folder.parent.name}\n")
if folder.parent.name == config["name"]:
    sys.exit("error folder: a | b")
for name in ("checkpoints", "onnx", "torch"):
    (folder / name).mkdir(parents=True, exist_ok=True)
(folder / "run.yaml").write_bytes(pathlib.Path(sys.argv[1]).read_bytes())
(folder / "onnx" / "metrics.json").write_text("{}")
(folder / "checkpoints").rmdir()
"""


def article(number: int, country: str | None) -> Article:
    return Article(id=f"a{number}", text=f"خبر {number}", meta={"country": country} if country else {})


def world(counts: dict[str, int], first: int = 0) -> list[Article]:
    names = [country for country, n in counts.items() for _ in range(n)]
    return [article(first + number, country) for number, country in enumerate(names)]


def fake_score(model: Path, articles: Sequence[Article]) -> Scores:
    """What is right of ten guesses an article: 8 where others of its country were in training, else 6."""
    trained = list(read_articles(model.parents[1] / "train.jsonl"))
    assert not {a.id for a in trained} & {a.id for a in articles}
    known = {country_of(a) for a in trained}
    right = sum(8 if country_of(a) in known else 6 for a in articles)
    wrong = 10 * len(articles) - right
    f1 = right / (10 * len(articles))
    scores = {"entities": Score(f1, f1, f1, right, wrong, wrong, (0.5, 0.9))}
    return scores | {name: Score(0, 0, 0.0, 0, wrong, 1) for name in ("relations", "gold-entity relations")}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "TRAIN", (sys.executable, "-c", FAKE_TRAINING))
    monkeypatch.setattr(ablation, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(countries, "score", fake_score)


@pytest.fixture
def base(tmp_path: Path, toy: dict[str, Path]) -> Path:
    write_articles(world(TRAIN), tmp_path / "news.jsonl")
    write_articles(world(DEV, first=1000), tmp_path / "dev.jsonl")
    path = tmp_path / "base.yaml"
    data = f"data: {{train: [{tmp_path}/news.jsonl], dev: {tmp_path}/dev.jsonl}}"
    path.write_text(f"name: any\nbase: random\nontology: {toy['ontology']}\n{data}\n", encoding="utf-8")
    return path


def table_of(output: Path) -> dict[str, list[str]]:
    """Cells by the first of their line."""
    lines = [line for line in (output / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    return {line[0]: line[1:] for line in cells}


def order_of(output: Path) -> list[str]:
    return (output / "order.txt").read_text().splitlines()


# Groups and splits


@pytest.mark.parametrize(
    ("counts", "least", "groups"),
    [
        ({"SY": 5, "YE": 4}, 4, {"SY": "SY", "YE": "YE"}),
        ({"SY": 5, "YE": 3, "IR": 1, "ML": 3}, 4, {"SY": "SY"} | dict.fromkeys(("YE", "IR"), "rest of Western Asia")),
        ({"SY": 5, "ML": 3, "TN": 1, "FR": 1}, 4, {"SY": "SY", "ML": ELSEWHERE, "TN": ELSEWHERE, "FR": ELSEWHERE}),
        ({"ML": 2, "TD": 2, "FR": 3}, 4, {"ML": "rest of Africa", "TD": "rest of Africa"}),
        ({"ML": 1, "FR": 1}, 4, {}),
    ],
)  # fmt: skip
def test_groups(counts: dict[str, int], least: int, groups: dict[str, str]) -> None:
    assert group_countries(counts, least) == groups


@given(
    train=st.lists(st.sampled_from(["SY", "SY", "SY", "YE", "YE", "ML", "TD", "PK", "FR"]), min_size=8, max_size=60),
    dev=st.lists(st.sampled_from(["SY", "YE", "ML", "FR"]), max_size=6),
    least=st.integers(1, 12),
)
def test_splits(train: list[str], dev: list[str], least: int) -> None:
    """No model sees what it is scored on, all see equally many articles, and only the control sees the country."""
    corpus = [article(number, country) for number, country in enumerate(train)]
    choosing = [article(number, country) for number, country in enumerate(dev, start=1000)]
    groups = group_countries(Counter(train + dev), least)
    parts = [{groups.get(country) for country in part} for part in (train, dev)]
    if not groups or any(len(part) < 2 and None not in part for part in parts):
        with pytest.raises(DataError):
            split_countries(corpus, choosing, least)
        return
    control, *splits = split_countries(corpus, choosing, least)
    assert control.name == CONTROL
    assert {split.name for split in splits} == set(groups.values())
    assert len({len(split.train) for split in (control, *splits)}) == 1
    everything = {a.id: a for a in (*corpus, *choosing)}
    for split in (control, *splits):
        parts = [{a.id for a in part} for part in (split.train, split.dev, split.test)]
        assert sum(map(len, parts[::2])) == len(parts[0] | parts[2])
        assert parts[0] <= {a.id for a in corpus} and parts[1] <= {a.id for a in choosing}
    for split in splits:
        own = {name for name, a in everything.items() if groups.get(country_of(a)) == split.name}
        assert {a.id for a in split.test} == own
        assert own.isdisjoint(a.id for a in (*split.train, *split.dev))
        assert {a.id for a in split.compared} == own & {a.id for a in control.test}
    strata = Counter(groups.get(country) for country in train)
    for group, n in strata.items():  # half an article of rounding, and a share of that of all groups
        drawn = sum(groups.get(country_of(a)) == group for a in control.test)
        share = n / len(corpus)
        assert abs(drawn - share * len(control.test)) <= (1 + share * len(strata)) / 2 + 1e-9


def test_the_control_knows_others_of_each_country() -> None:
    control, *splits = split_countries(world(TRAIN), world(DEV, first=1000), 6)
    assert [split.name for split in splits] == GROUPS
    assert (len(control.train), len(control.test), len(control.dev)) == (18, 20, 5)
    assert [len(split.train) for split in splits] == [18] * 3
    assert [len(split.test) for split in splits] == [22, 11, 7]
    assert [len(split.dev) for split in splits] == [3, 4, 4]
    assert {country_of(a) for a in control.train} == set(TRAIN)
    assert all(0 < len(split.compared) < len(split.test) for split in splits)
    assert splits[2].countries == {"ML": 4, "TD": 3}


def test_a_fold_does_not_depend_on_the_order_of_the_corpus() -> None:
    articles = world({"SY": 30, "YE": 10})
    fold = draw_fold(articles, [country_of(a) for a in articles], 12)
    again = draw_fold(articles[::-1], [country_of(a) for a in articles[::-1]], 12)
    assert fold == again
    assert Counter(map(country_of, fold)) == {"SY": 9, "YE": 3}
    assert Counter(map(country_of, fold[:4])) == {"SY": 3, "YE": 1}
    assert [a.id for a in fold] != sorted(a.id for a in fold)


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ([article(1, "SY"), article(2, None)], [article(3, "YE")], "article a2: no meta.country, so nobody can say"),
        ([article(1, "SY")], [article(3, None)], "article a3: no meta.country"),
        (world({"SY": 3, "YE": 1}), world({"SY": 1}, 9), "no group of countries has 6 articles (SY 4, YE 1); set"),
        (world({"SY": 9}), world({"YE": 1}, 99), "without SY nothing is left to train on or to choose by"),
        (world({"SY": 9, "YE": 7}), world({"YE": 2}, 99), "without YE nothing is left"),
    ],
)  # fmt: skip
def test_corpora_that_cannot_be_split(train: list[Article], dev: list[Article], message: str) -> None:
    with pytest.raises(DataError) as error:
        split_countries(train, dev, 6)
    assert str(error.value).startswith(message)


# Runs


def test_a_table_of_finished_runs(base: Path, tmp_path: Path, fake: None) -> None:
    out = tmp_path / "out"
    study = leave_out(base, output=out, least=6)
    assert study.failed == []
    assert order_of(out) == ["control", "SY", "YE", "rest-of-Africa"]
    table = table_of(out)
    assert list(table) == ["left out", "---", *GROUPS, "all groups", "a random fold (control)"]
    assert table["left out"][:5] == ["articles", "entity F1", "relation F1", "gold-entity relation F1", "compared on"]
    compared = [len(fold.split.compared) for fold in study.folds[1:]]
    nothing = "+0.0 (0.0 / 0.0)"
    for group, articles, both in zip(GROUPS, ("22", "11", "7"), compared, strict=True):
        cells = [articles, "60.0 (50.0–90.0)", "0.0", "0.0", str(both), "-20.0 (60.0 / 80.0)", nothing, nothing]
        assert table[group] == cells
    assert (
        table["all groups"] == ["40", "60.0", "0.0", "0.0", str(sum(compared)), "-20.0 (60.0 / 80.0)"] + [nothing] * 2
    )
    assert table["a random fold (control)"] == ["20", "80.0 (50.0–90.0)", "0.0", "0.0", *["—"] * 4]
    text = (out / "table.md").read_text(encoding="utf-8")
    assert text.startswith("Every model is trained on 18 articles and scored on those that were left out")
    assert text.endswith("\n- SY: SY 22\n- YE: YE 11\n- rest of Africa: ML 4, TD 3\n")
    assert not list(out.rglob("torch"))


def test_all_numbers_are_kept(base: Path, tmp_path: Path, fake: None) -> None:
    out = tmp_path / "out"
    study = leave_out(base, ["seed=5"], output=out, least=6)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (results["base"], results["overrides"], results["least"]) == (str(base), ["seed=5"], 6)
    control, _, yemen, _ = results["runs"]
    assert (control["left_out"], control["compared"]) == ("control", {"without": {}, "control": {}})
    both = len(study.folds[2].split.compared)
    assert yemen["articles"] == {"train": 18, "dev": 4, "test": 11, "compared": both}
    assert yemen["countries"] == {"YE": 11}
    assert yemen["scores"]["entities"]["tp"] == 66
    assert yemen["compared"]["without"]["entities"]["tp"] == 6 * both
    assert yemen["compared"]["control"]["entities"]["tp"] == 8 * both
    config = (out / "YE" / "run" / "run.yaml").read_text(encoding="utf-8")
    assert "seed: 5" in config
    for name, n in {"train": 18, "dev": 4, "test": 11}.items():
        assert f"{out}/YE/{name}.jsonl" in config
        assert len(list(read_articles(out / "YE" / f"{name}.jsonl"))) == n


def test_finished_runs_are_not_run_again(base: Path, tmp_path: Path, fake: None) -> None:
    out = tmp_path / "out"
    leave_out(base, output=out, least=6)
    before = (out / "table.md").read_bytes()
    (out / "table.md").unlink()
    (out / "YE" / "run" / "checkpoints").mkdir()
    leave_out(base, ["export.max_drop=2"], output=out, least=6)
    assert order_of(out) == ["control", "SY", "YE", "rest-of-Africa", "YE"]
    assert (out / "table.md").read_bytes() == before


def test_a_failed_run_is_one_line_of_the_table(base: Path, tmp_path: Path, fake: None) -> None:
    out = tmp_path / "out"
    study = leave_out(base, ["name=YE"], output=out, least=6)
    assert [fold.row for fold in study.failed] == ["YE"]
    lines = [line for line in (out / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("| YE ")]
    assert lines == [f"| YE | 11 |{' — |' * 7}", f"| YE | failed: folder: a ¦ b |{' — |' * 7}"]
    assert table_of(out)["2 of 3 groups"][:2] == ["29", "60.0"]
    assert (out / "YE" / "run.log").read_text() == "error folder: a | b\n"


def test_without_a_control_nothing_is_compared(base: Path, tmp_path: Path, fake: None) -> None:
    out = tmp_path / "out"
    leave_out(base, ["name=control"], output=out, least=6)
    table = table_of(out)
    assert table["SY"] == ["22", "60.0 (50.0–90.0)", "0.0", "0.0", *["—"] * 4]
    assert table["all groups"][4:] == ["—"] * 4
    assert table["control"] == ["failed: folder: a ¦ b", *["—"] * 7]


def test_the_table_can_be_read_on_the_way(
    base: Path, tmp_path: Path, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen, scored = tmp_path / "out", [], []
    update = countries.Study.update

    def spy(study: countries.Study) -> None:
        update(study)
        seen.append(list(table_of(out))[5])

    def count(model: Path, articles: Sequence[Article]) -> Scores:
        scored.append((model, len(articles)))
        return fake_score(model, articles)

    monkeypatch.setattr(countries.Study, "update", spy)
    monkeypatch.setattr(countries, "score", count)
    leave_out(base, output=out, least=6)
    assert seen == ["0 of 3 groups", "0 of 3 groups", "1 of 3 groups", "2 of 3 groups", "all groups"]
    assert len(scored) == len(set(scored)) == 10  # the control alone, and three numbers for each group


# What is refused before anything runs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output=x"], "override output: is set for each run; use --output"),
        (["data.test=x"], "override data.test: is set for each run"),
        (["start=x"], "base.yaml: start may have been trained on what is to be left out; take it out"),
        (["distillation.teachers=[x]"], "base.yaml: distillation.teachers may have been trained on what"),
        (["training.epoch=3"], "base.yaml: unknown key training.epoch; did you mean epochs?"),
    ],
)
def test_wrong_configs(overrides: list[str], message: str, base: Path, tmp_path: Path, fake: None) -> None:
    with pytest.raises(ConfigError) as error:
        leave_out(base, overrides, output=tmp_path / "out", least=6)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_runs(base: Path, tmp_path: Path, fake: None) -> None:
    out = tmp_path / "out"
    leave_out(base, output=out, least=6)
    with pytest.raises(ConfigError, match=r"SY/run/run\.yaml: belongs to a run of another config \(seed was 13, is 14"):
        leave_out(base, ["seed=14"], output=out, least=6)
    kept = (out / "SY" / "train.jsonl").read_bytes()
    with pytest.raises(
        ConfigError, match=r"control/train\.jsonl: belongs to another corpus or --least; remove .*control"
    ):
        leave_out(base, output=out, least=30)
    write_articles(world(TRAIN | {"YE": 9}), tmp_path / "news.jsonl")
    with pytest.raises(ConfigError, match=r"SY/train\.jsonl: belongs to another corpus"):
        leave_out(base, output=out, least=6)
    assert (out / "SY" / "train.jsonl").read_bytes() == kept
    assert len(order_of(out)) == 4


def test_an_output_that_is_a_file(base: Path, fake: None) -> None:
    with pytest.raises(ConfigError, match=r"output .*base\.yaml: cannot be written"):
        leave_out(base, output=base, least=6)


def test_the_shipped_corpus_has_groups() -> None:
    corpora = [list(read_articles(ROOT / "data" / f"{name}.jsonl")) for name in ("train", "dev")]
    control, *splits = split_countries(*corpora, 40)
    assert {"SY", "YE", "IQ", "SD"} <= {split.name for split in splits}
    assert all(len(split.test) >= 40 and split.compared for split in splits)
    assert sum(len(split.test) for split in splits) == sum(map(len, corpora))
    assert len(control.train) > 1000


# The real thing


def test_command_line(base: Path, tmp_path: Path, fake: None) -> None:
    out = tmp_path / "out"
    args = ["countries", str(base), "--output", str(out), "--least", "6", "--jobs", "2"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "table.md").read_text(encoding="utf-8")
    assert f"table: {out / 'table.md'}" in result.stderr
    failing = CliRunner().invoke(app, [*args, "name=YE", "--output", f"{out}2"])
    assert failing.exit_code == 1
    assert "1 of 4 runs failed" in failing.stderr


def test_two_runs_end_to_end(toy: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)

    def placed(split: str, names: str) -> list[Article]:
        articles = itertools.islice(read_articles(toy[split]), 24)
        return [a.model_copy(update={"meta": {"country": names[n % len(names)]}}) for n, a in enumerate(articles)]

    corpora = {"train": placed("train", "AABC"), "dev": placed("dev", "AAB")}
    for name, articles in corpora.items():
        write_articles(articles, tmp_path / f"{name}.jsonl")
    data = [f"data.train=[{tmp_path}/train.jsonl]", f"data.dev={tmp_path}/dev.jsonl", f"ontology={toy['ontology']}"]
    out = tmp_path / "out"
    study = leave_out(ROOT / "configs" / "debug.yaml", data, jobs=2, output=out, least=22)
    assert study.failed == []
    control, fold = study.folds
    own = [a for part in corpora.values() for a in part if a.meta["country"] == "A"]
    assert list(read_articles(out / "A" / "test.jsonl")) == own
    metrics: dict[str, Any] = json.loads((fold.model / "metrics.json").read_text(encoding="utf-8"))
    scores = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"][1]["scores"]
    assert metrics["splits"]["test"]["articles"] == len(own)
    assert scores["entities"] == metrics["splits"]["test"]["entities"]["exact"]["micro"]
    assert scores["relations"] == metrics["splits"]["test"]["relations"]["strict"]["micro"]
    assert scores["gold-entity relations"] == metrics["splits"]["test"]["relations"]["gold entities"]["micro"]
    assert metrics["training"]["articles"] == len(control.split.train) == 12
    assert fold.control == score(control.model, fold.split.compared)
    assert list(table_of(out))[2:] == ["A", "all groups", "a random fold (control)"]
