"""The command line as a user meets it: exit statuses, files, and messages without tracebacks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rasid.batch.workers import Workers
from rasid.cli.main import app
from rasid.inference import Extractor
from rasid.records import Article, check_article, read_articles
from rasid.settings import load_settings, shipped_model

SAMPLES = Path(__file__).parent.parent / "data" / "samples"
TEXTS = {"a.txt": "وصلت قسد إلى حلب\nثم غادرت", "sub/b.txt": "قصف الطيران محيط سرمين", "sub/deep/c.txt": "لا شيء"}
SCRIPT = [sys.executable, "-m", "rasid"]
TRAINING_PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "omegaconf",
    "yaml",
    "matplotlib",
    "jinja2",
    "onnx",
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of three good articles, and an empty working directory."""
    for name, text in TEXTS.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(text.encode())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "in"


def call(*args: object, input: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args], input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def names(folder: str = ".") -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


def records(text: str) -> list[Article]:
    return [Article.model_validate_json(line) for line in text.splitlines()]


def errors(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(stderr: str) -> list[dict[str, str]]:
    """The lines about articles that failed, where there is no error file."""
    return [json.loads(line) for line in stderr.splitlines() if line.startswith('{"path"')]


def test_a_folder_to_a_file(folder):
    result = call("predict", folder, "--out", "new/out.jsonl", "--threads", 1)
    assert result.exit_code == 0
    assert result.stdout == ""
    found = list(read_articles("new/out.jsonl", load_settings(shipped_model()).ontology))  # checks every record
    assert [(a.id, a.text) for a in found] == list(TEXTS.items())
    extractor = Extractor.load(threads=1)
    assert found == [extractor(text, id=name) for name, text in TEXTS.items()]
    assert names("new") == ["out.jsonl"]  # no errors, no error file
    assert "articles: 3 " in result.stderr and "results: new/out.jsonl" in result.stderr


def test_twice_the_same_to_standard_output(folder):
    first, second = call("predict", folder), call("predict", folder)
    assert first.exit_code == 0
    assert first.stdout == second.stdout
    assert [a.id for a in records(first.stdout)] == list(TEXTS)
    assert names() == []


def test_files_and_folders_together(folder):
    result = call("predict", folder / "sub" / "b.txt", folder / "sub" / "deep", folder / "a.txt")
    assert [a.id for a in records(result.stdout)] == [
        (folder / name).as_posix() for name in ("sub/b.txt", "sub/deep/c.txt", "a.txt")
    ]


def test_the_samples(tmp_path):
    ontology = load_settings(shipped_model()).ontology
    result = call("predict", SAMPLES, "--out", tmp_path / "out.jsonl")
    found = list(read_articles(tmp_path / "out.jsonl", ontology))
    assert result.exit_code == 0
    assert [a.id for a in found] == sorted(p.relative_to(SAMPLES).as_posix() for p in SAMPLES.rglob("*.txt"))
    assert all(a.text.encode() == (SAMPLES / a.id).read_bytes() for a in found)
    assert all(check_article(a, ontology) == [] for a in found)


BAD = {
    "bad/1-empty.txt": (b"", "empty"),
    "bad/2-blank.txt": (b"\xef\xbb\xbf \r\n", "empty"),
    "bad/3-binary.txt": (b"\x89PNG\r\n\x1a\n\x00\x00", "binary: holds a NUL byte at 8"),
    "bad/4-cut.txt": ("قسد".encode()[:-1], "not UTF-8: byte 0xd8 at 4"),
}


def test_bad_articles_cost_a_line_each_and_touch_no_other(folder):
    good = call("predict", folder, folder / "a.txt").stdout  # under the same ids: several inputs have whole paths
    for name, (data, _) in BAD.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    result = call("predict", folder, folder / "gone.txt", "--out", "out/out.jsonl")
    assert result.exit_code == 1
    assert Path("out/out.jsonl").read_text(encoding="utf-8") == good
    found = errors(Path("out/errors.jsonl"))
    assert [e["path"] for e in found] == [(folder / name).as_posix() for name in (*BAD, "gone.txt")]
    reasons = [reason for _, reason in BAD.values()] + ["cannot be read: No such file or directory"]
    assert all(reason in e["reason"] for e, reason in zip(found, reasons, strict=True))
    assert f"{len(reasons)} not read, see out/errors.jsonl" in result.stderr
    assert "articles: 3 " in result.stderr


@pytest.mark.parametrize("encoding", ["windows-1256", "iso-8859-6", "utf-16", "utf-16-le"])
def test_other_encodings_are_found_and_told(folder, encoding):
    text = "وصلت قسد إلى حلب، ثم غادرت نحو الرقة."
    Path("a.txt").write_bytes(text.encode(encoding))
    (article,) = records(call("predict", "a.txt").stdout)
    assert article.text.removeprefix("\ufeff") == text
    assert article.meta == {"encoding": "utf-16-le" if encoding == "utf-16" else encoding}
    assert article.entities == Extractor.load()(article.text).entities


def test_records_of_many_kinds_into_tables(folder):
    rows = [{"id": f"x{n}", "body": text, "date": "2024-05-01"} for n, text in enumerate(TEXTS.values())]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("a.csv").write_text("id,body\n" + "".join(f'"{r["id"]}","{r["body"]}"\n' for r in rows), encoding="utf-8")
    assert call("predict", "a.jsonl", "--out", "out.jsonl").exit_code == 0
    assert call("predict", "a.csv", "--out", "out.duckdb").exit_code == 0
    assert call("predict", "a.csv", "--out", "out.duckdb", "--append").exit_code == 0
    found = list(read_articles("out.jsonl"))
    assert [(a.id, a.text, a.meta) for a in found] == [(r["id"], r["body"], {"date": r["date"]}) for r in rows]
    import duckdb

    with duckdb.connect("out.duckdb") as base:
        units = base.sql("SELECT a.id, e.text FROM entities e JOIN articles a USING (article) WHERE type = 'MIL_UNIT'")
        assert units.fetchall().count(("x0", "قسد")) == 2
    assert sorted(names()) == ["a.csv", "a.jsonl", "out.duckdb", "out.jsonl"]


def test_output_inside_of_the_folder_that_is_read(folder):
    assert call("predict", folder, "--out", folder / "out.jsonl").exit_code == 0
    assert [a.id for a in read_articles(folder / "out.jsonl")] == list(TEXTS)
    result = call("predict", folder, "--out", folder / "out.jsonl")
    assert result.exit_code == 2 and "is itself one of the articles to read" in result.stderr
    assert len(list(read_articles(folder / "out.jsonl"))) == 3


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.duckdb"])
def test_results_stay_where_no_article_is_read(folder, name):
    assert call("predict", folder, "--out", name).exit_code == 0
    before = Path(name).read_bytes()
    (folder / "bad.txt").write_bytes(b"")
    for wrong in ("gone", folder / "bad.txt"):
        result = call("predict", wrong, "--out", name)
        assert result.exit_code == 1
        assert f"results: {name} has nothing new, since no article was read" in result.stderr
        assert Path(name).read_bytes() == before
        assert sorted(names()) == sorted(["errors.jsonl", name])


def test_files_of_other_formats_are_counted(folder):
    for name in ("a.pdf", "b.PDF", "sub/c.docx", "README"):
        (folder / name).write_bytes(b"x")
    result = call("predict", folder)
    assert result.exit_code == 0 and len(records(result.stdout)) == 3
    assert result.stderr.endswith("4 files of other formats left out: .pdf 2, without suffix 1, .docx 1\n")
    assert "left out" not in call("predict", folder, "--glob", "*.txt").stderr


def test_interrupted_by_the_user(folder, monkeypatch):
    whole = call("predict", folder, "--out", "whole.jsonl")
    assert whole.exit_code == 0
    stop = Extractor.__call__

    def stopping(self, text, **options):
        if "الطيران" in text:
            raise KeyboardInterrupt
        return stop(self, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "__call__", stopping)
        result = call("predict", folder, "--out", "out.jsonl", "--threads", 1)
    assert result.exit_code == 130
    assert "articles: 1 " in result.stderr and "interrupted; the same command goes on" in result.stderr
    assert not Path("out.jsonl").exists()
    again = call("predict", folder, "--out", "out.jsonl")
    assert again.exit_code == 0 and "going on after 1 articles" in again.stderr and "articles: 3 " in again.stderr
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert sorted(names()) == ["out.jsonl", "whole.jsonl"]


def write_many(folder: Path) -> None:
    """Enough articles for a process to be caught in the middle of them."""
    for n in range(60):
        (folder / f"{n:02}.txt").write_text(f"وصلت الكتيبة {n} إلى حلب.\n" * 20, encoding="utf-8")


def wait_until_written(process: subprocess.Popen, least: int) -> None:
    """Until a batch with the output `out.jsonl` has so many bytes of records, or has ended."""
    written = Path("out.jsonl.journal/articles.jsonl")
    while process.poll() is None and not (written.exists() and written.stat().st_size >= least):
        pass


def test_killed_and_repeated(folder):
    """… at moments that are told by what is written, not by a clock."""
    write_many(folder)
    assert call("predict", folder, "--out", "whole.jsonl").exit_code == 0
    command = [*SCRIPT, "predict", str(folder), "--out", "out.jsonl", "--threads", "1"]
    for least in (1, 20_000):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_until_written(process, least)
        process.kill()
        process.wait()
    assert call("predict", folder, "--out", "out.jsonl").exit_code == 0
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_processes_write_the_same(folder, monkeypatch):
    asked: list[tuple] = []
    begin = Workers.__init__
    monkeypatch.setattr(Workers, "__init__", lambda self, *args: asked.append(args) or begin(self, *args))
    (folder / "bad.txt").write_bytes(b"\x89PNG\x00\x00")
    for name, options in {"threads": (), "processes": ("--processes", 2)}.items():
        result = call("predict", folder, "--out", f"{name}/out.jsonl", *options)
        assert result.exit_code == 1 and "articles: 3 " in result.stderr
    for name in ("out.jsonl", "errors.jsonl"):
        assert Path("processes", name).read_bytes() == Path("threads", name).read_bytes()
    result = call("predict", folder, "--processes", 2)
    assert result.stdout_bytes == Path("threads/out.jsonl").read_bytes()
    assert asked == [(shipped_model(), 2, 600.0)] * 2
    refused = call("predict", folder, "--processes", 2, "--threads", 2)
    assert refused.exit_code == 2 and "--threads: each of several --processes has one" in refused.stderr


def test_interrupted_by_the_user_with_processes(folder):
    """Ctrl-C reaches all processes of a terminal at once; here as soon as something is written."""
    write_many(folder)
    assert call("predict", folder, "--out", "whole.jsonl").exit_code == 0
    command = [*SCRIPT, "predict", str(folder), "--out", "out.jsonl", "--processes", "2"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or a run in the background hands it down as ignored
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until_written(process, 1)
    os.killpg(process.pid, signal.SIGINT)
    _, told_by_it = process.communicate(timeout=60)
    assert process.returncode == 130, told_by_it
    assert "interrupted; the same command goes on" in told_by_it and "Traceback" not in told_by_it
    assert call("predict", folder, "--out", "out.jsonl", "--processes", 2).exit_code == 0
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_missing_path_alone(folder):
    result = call("predict", "gone.txt")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [e["path"] for e in told(result.stderr)] == ["gone.txt"]
    assert names() == []  # nothing was asked to be written, so nothing is


def test_a_byte_order_mark_and_line_ends_are_text(folder):
    text = "\ufeffوصلت قسد\r\nإلى حلب\r\n"
    (folder / "a.txt").write_bytes(text.encode())
    result = call("predict", folder / "a.txt")
    (article,) = records(result.stdout)
    assert result.exit_code == 0
    assert article.text == text
    assert check_article(article) == []


def test_the_error_file_of_an_earlier_run_goes_away(folder):
    (folder / "bad.txt").write_bytes(b"")
    assert call("predict", folder, "--errors", "e.jsonl").exit_code == 1
    assert len(errors(Path("e.jsonl"))) == 1
    (folder / "bad.txt").unlink()
    assert call("predict", folder, "--errors", "e.jsonl").exit_code == 0
    assert names() == []


def test_an_error_file_that_is_a_device_stays(folder):
    pipe = Path("device")
    pipe.symlink_to("/dev/null")
    assert call("predict", folder, "--errors", pipe).exit_code == 0
    assert pipe.is_symlink() and Path("/dev/null").exists()


@pytest.mark.parametrize("more", [("--errors", "/dev/stderr"), ()])
def test_standard_output_by_name_is_added_to(folder, more):
    (folder / "bad.txt").write_bytes(b"")
    for name in ("out", "log"):
        Path(name).write_text("old\n", encoding="utf-8")
    with Path("out").open("ab") as out, Path("log").open("ab") as log:
        command = [*SCRIPT, "predict", folder, "--out", "/dev/stdout", *more]
        assert subprocess.run(command, stdout=out, stderr=log, check=False).returncode == 1
    old, *lines = Path("out").read_text(encoding="utf-8").splitlines()
    assert old == "old" and "\n".join(lines) + "\n" == call("predict", folder).stdout
    old, error, *summary = Path("log").read_text(encoding="utf-8").splitlines()
    assert old == "old" and json.loads(error)["id"] == "bad.txt"
    assert "articles: 3" in "".join(summary)
    assert sorted(names()) == ["log", "out"]


def test_an_error_file_that_is_a_device_is_written_into(folder):
    (folder / "bad.txt").write_bytes(b"")
    assert call("predict", folder, "--out", "out.jsonl", "--errors", "/dev/null").exit_code == 1
    assert Path("/dev/null").is_char_device()
    with Path("log").open("wb") as log:  # not for appending: what is written there must not be written over
        command = [*SCRIPT, "predict", folder, "--out", "again.jsonl", "--errors", "/dev/stderr"]
        assert subprocess.run(command, stderr=log, check=False).returncode == 1
    log = Path("log").read_text(encoding="utf-8")
    assert [json.loads(line)["id"] for line in log.splitlines() if line.startswith("{")] == ["bad.txt"]
    assert "articles: 3" in log
    assert Path("again.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    assert sorted(names()) == ["again.jsonl", "log", "out.jsonl"]


@pytest.mark.parametrize(
    ("args", "place"),
    [
        (["predict", "IN"], "standard output: cannot be written: "),
        (["predict", "IN", "--out", "/dev/full"], "/dev/full: cannot be written: "),
        (["predict", "IN/bad.txt", "--errors", "/dev/full"], "/dev/full: cannot be written: "),
        (["data", "check", "GOLD"], ""),
    ],
)
def test_a_full_disk_is_told(folder, args, place):
    (folder / "bad.txt").write_bytes(b"")
    Path("gold.jsonl").write_text('{"id": "a", "text": "x"}\n', encoding="utf-8")
    command = [*SCRIPT, *(a.replace("IN", str(folder)).replace("GOLD", "gold.jsonl") for a in args)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error {place}No space left on device; ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("there", [True, False])
def test_links_to_output_files_keep_leading_to_them(folder, there):
    (folder / "bad.txt").write_bytes(b"")
    elsewhere = Path("elsewhere").absolute()
    elsewhere.mkdir()
    for name in ("r.jsonl", "e.jsonl"):
        if there:
            (elsewhere / name).write_text("old\n")
        Path(name).symlink_to(elsewhere / name)
    assert call("predict", folder, "--out", "r.jsonl", "--errors", "e.jsonl").exit_code == 1
    assert Path("r.jsonl").is_symlink() and Path("e.jsonl").is_symlink()
    assert sorted(p.name for p in elsewhere.iterdir()) == ["e.jsonl", "r.jsonl"]
    assert len(records((elsewhere / "r.jsonl").read_text())) > 0
    assert len(errors(elsewhere / "e.jsonl")) == 1


def test_standard_input(folder):
    text = "وصلت قسد\r\nإلى حلب"
    result = call("predict", "-", input=text.encode())
    (article,) = records(result.stdout)
    assert result.exit_code == 0
    assert (article.id, article.text) == ("-", text)
    assert article == Extractor.load()(text, id="-")


def test_a_new_error_file_among_the_articles_is_none_of_them(folder):
    result = call("predict", folder, "--errors", folder / "errors.jsonl")
    assert [a.id for a in records(result.stdout)] == list(TEXTS)
    assert result.exit_code == 0 and not (folder / "errors.jsonl").exists()


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"\xff", "not UTF-8"), (b"\x89PNG\x00\x00", "binary")])
def test_bad_standard_input(folder, data, reason):
    result = call("predict", "-", input=data)
    assert (result.exit_code, result.stdout) == (1, "")
    (error,) = told(result.stderr)
    assert error["path"] == "-" and reason in error["reason"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict"], "Missing argument"),
        (["predict", "IN", "--threads", "0"], "--threads"),
        (["predict", "IN", "--colour"], "No such option"),
        (["predicts", "IN"], "No such command"),
        (["predict", "-", "IN"], "- (standard input) goes alone"),
        (["predict", "."], "no file of a known format in this folder or below"),
        (["predict", "IN", "--model", "nowhere"], "nowhere: no such model folder"),
        (["predict", "IN", "--model", "."], "no config.json in this folder"),
        (["predict", "IN", "--out", "."], ".: is a folder; give a file whose name ends in"),
        (["predict", "IN", "--out", "x.jsonl", "--errors", "x.jsonl"], "both the results and the errors"),
        (["predict", "IN", "--out", "IN/a.txt"], "unknown suffix .txt"),
        (["predict", "IN/a.txt", "--errors", "IN/a.txt"], "is itself one of the articles to read"),
        (["predict", "IN", "--out", "x.txt"], "unknown suffix .txt; give a name that ends in one of .jsonl"),
        (["predict", "IN", "--input-format", "pdf"], "pdf: unknown; known are txt, html"),
        (["predict", "IN", "--errors", "IN/sub/../a.txt"], "is itself one of the articles to read"),
        (["evaluate", "nowhere", "gold.jsonl"], "nowhere: no such model folder"),
        (["evaluate", "MODEL", "gone.jsonl"], "gone.jsonl: cannot be read"),
        (["train", "gone.yaml"], "gone.yaml"),
    ],
)
def test_misuse(folder, args, message):
    places = {"IN": str(folder), "MODEL": str(shipped_model())}
    result = call(*(places.get(a, a.replace("IN/", f"{folder}/")) for a in args))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert (folder / "a.txt").read_bytes() == TEXTS["a.txt"].encode()
    assert names() == []


def gold(entities: list[tuple[str, str, int, int, str]], relation: tuple[str, str, str] | None = None) -> str:
    record = {
        "id": "a",
        "text": "قسد في حلب",
        "entities": [dict(zip(("id", "type", "start", "end", "text"), e, strict=True)) for e in entities],
        "relations": [dict(zip(("type", "head", "tail"), relation, strict=True))] if relation else [],
    }
    return json.dumps(record, ensure_ascii=False)


UNIT = ("T1", "MIL_UNIT", 0, 3, "قسد")
BAD_RECORDS = [
    (gold([("T1", "UNITT", 0, 3, "قسد")]), "unknown type UNITT; the ontology has MIL_UNIT, LOCATION"),
    (gold([UNIT, ("T2", "LOCATION", 2, 6, "د في")]), "entities T1 [0, 3) and T2 [2, 6) overlap; spans are flat"),
    (gold([("T1", "MIL_UNIT", 0, 33, "قسد")]), "entity T1 [0, 33) «قسد»: outside of the text, which has 10 characters"),
    (gold([UNIT], ("HAS", "T1", "T9")), "relation HAS T1 → T9: no entity T9 in the article"),
    (gold([UNIT], ("HASS", "T1", "T1")), "unknown type; the ontology has MOVES_FROM"),
]


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS)
def test_bad_records(tmp_path, record, message):
    path = tmp_path / "gold.jsonl"
    path.write_text(f"{gold([UNIT])}\n{record}\n".replace('"a"', '"b"', 1), encoding="utf-8")
    for command, status in ((["data", "check", path], 1), (["evaluate", shipped_model(), path], 2)):
        result = call(*command)
        assert result.exit_code == status
        assert f"{path}:2: " in result.stderr and message in result.stderr


def test_a_misspelt_config_key(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {epoch: 3}\n", encoding="utf-8")
    result = call("train", path)
    assert result.exit_code == 2
    assert f"{path}: unknown key training.epoch; did you mean epochs?" in result.stderr


@pytest.mark.parametrize("command", [["predict", SAMPLES, "--model"], ["evaluate"]])
def test_a_checkpoint_of_another_architecture(tmp_path, command):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    result = call(*command, tmp_path, *(["gold.jsonl"] if command == ["evaluate"] else []))
    assert result.exit_code == 2
    assert "another architecture: model_type is 'bert', expected 'rasid'" in result.stderr


def test_an_article_of_one_long_word(folder):
    text = "ق" * 20_000
    (folder / "a.txt").write_text(text, encoding="utf-8")
    result = call("predict", folder / "a.txt")
    (found,) = records(result.stdout)
    assert (result.exit_code, found.text) == (0, text)
    assert check_article(found) == []
    assert "articles: 1 " in result.stderr


def test_help_names_every_command():
    result = call("--help")
    assert result.exit_code == 0
    assert all(
        name in result.stdout
        for name in ("predict", "pretrain", "train", "ablate", "evaluate", "export", "data", "base")
    )


def test_the_script_as_a_process(folder):
    """A true process, in which what `predict` loads can be seen too."""
    (folder / "bad.txt").write_bytes(b"")
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([m for m in {TRAINING_PACKAGES} if m in sys.modules], file=sys.stderr))\n"
        "from rasid.cli.main import app\n"
        "app()"
    )
    done = subprocess.run([sys.executable, "-c", code, "predict", folder], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout.decode() == call("predict", folder).stdout
    assert done.stderr.decode().splitlines()[-1] == "[]"
    assert len(told(done.stderr.decode())) == 1


def test_output_is_utf_8_whatever_the_locale(folder):
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*SCRIPT, "predict", "-"], input="قسد".encode(), capture_output=True, env=env, check=False)
    assert done.returncode == 0
    assert records(done.stdout.decode("utf-8"))[0].text == "قسد"


def test_the_base_install_says_what_training_needs(folder):
    """Without the packages of the extra, what needs them says so, and predicting still works."""
    commands = (
        ["pretrain", "any.yaml"],
        ["train", "any.yaml"],
        ["ablate", "--config", "any.yaml"],
        ["export", "checkpoint", "folder"],
        ["base", "compact"],
        ["data", "check", "any.jsonl", "--ontology", "any.yaml"],
        ["predict", str(folder)],
    )
    code = (
        "import json, sys\n"
        f"sys.modules.update(dict.fromkeys({TRAINING_PACKAGES}))\n"
        "from typer.testing import CliRunner\n"
        "from rasid.cli.main import app\n"
        f"results = [CliRunner().invoke(app, args) for args in {commands}]\n"
        "print(json.dumps([[r.exit_code, r.stderr, repr(r.exception)] for r in results]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *without, predicted = json.loads(done.stdout)
    for (status, message, _), command in zip(without, commands, strict=False):
        assert status == 2, command
        assert "needs the training extra" in message and "pip install 'rasid[train]'" in message, command
    assert predicted[0] == 0, predicted
