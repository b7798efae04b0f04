"""The cluster engine: the rows of the local one, each once, also when a machine dies; and what it refuses."""

import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rasid.batch import parts
from rasid.batch.outputs import check_output
from rasid.batch.parts import (
    Receipt,
    check_complete,
    cut,
    deal,
    join_parts,
    place_files,
    plan_files,
    staging,
    staging_of,
    write_part,
)
from rasid.batch.prediction import Summary
from rasid.batch.tables import parquet_rows
from rasid.cli.main import app
from rasid.cli.predict import _sources
from rasid.errors import ConfigError, RasidError
from rasid.inference import Extractor
from rasid.reading.documents import Document, ReadOptions
from rasid.reading.sources import Source, find_sources
from rasid.records import Article
from rasid.settings import shipped_model

DEADLINE = 120.0  # seconds, on a busy machine
STORE = 100_000_000  # bytes
SENTENCE = "وصل رتل عسكري لقوات التحالف الدولي إلى قاعدة الشدادي قادمًا من معبر الوليد"

SHORT = "قصف الطيران محيط سرمين"


def call(*args: object, input: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args], input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


def told(result: Result) -> list[str]:
    """The summary, without the time and the place."""
    lines = result.stderr.replace("out/results", "local").replace("out/errors", "errors").splitlines()
    return [line.partition(" in ")[0] if line.startswith("articles: ") else line for line in lines]


@pytest.fixture(autouse=True)
def calm(monkeypatch) -> None:
    """Ray lets all other programs go first, and gives a node half a minute to start: too little on a busy machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "600")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Articles of several forms, some of them broken and some under one id; and an empty working directory."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [json.dumps({"id": f"x{n % 4}", "body": f"{SENTENCE} {n}", "date": "2024-05-01"}) for n in range(6)]
    lines[2] = "{broken"
    (folder / "dump.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "a.txt").write_text(f"{SENTENCE}\n{SENTENCE}", encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "page.html").write_text(f"<html><body><p>{SENTENCE * 5}</p></body></html>", encoding="utf-8")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_the_rows_of_the_local_engine(folder):
    """… with a relative path, on a cluster that is started for the run and stopped with it."""
    import ray

    Path("out/results.parquet").mkdir(parents=True)
    Path("out/results.parquet/articles-00007.parquet").write_bytes(b"of an earlier run")
    local = call("predict", "../in", "--out", "local.parquet")
    result = call("predict", "../in", "--engine", "ray", "--out", "out/results.parquet", "--fresh")
    assert result.exit_code == local.exit_code == 1
    assert rows(Path("out/results.parquet")) == rows(Path("local.parquet"))
    assert Path("out/errors.jsonl").read_bytes() == Path("errors.jsonl").read_bytes()
    assert len(rows(Path("local.parquet"))) == 7 and len(Path("errors.jsonl").read_bytes().splitlines()) == 2
    assert pq.read_schema(Path("out/results.parquet/articles-00000.parquet")) == pq.read_schema("local.parquet")
    assert sorted(p.name for p in Path("out").iterdir()) == ["errors.jsonl", "results.parquet"]
    assert told(result) == told(local)  # and no word of Ray
    assert not ray.is_initialized()


@pytest.fixture
def cluster() -> Iterator[object]:
    """Two machines of one processor each, the first of which is ours."""
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
    try:
        cluster.add_node(**machine)
        yield cluster
    finally:
        cluster.shutdown()


def wait_for(condition: Callable[[], bool]) -> None:
    """Ask Ray until it says so."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline


def test_a_machine_dies_on_the_way(tmp_path, cluster):
    import ray

    from rasid.batch.cluster import predict_on_cluster

    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        lines = [json.dumps({"text": SHORT, "id": f"x{n}", "from": f"{name}{n}"}) for n in range(1024)]
        lines[700] = "{" + "broken" * 200_000  # large enough for a share of its own
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out, errors = tmp_path / "out" / "results.parquet", tmp_path / "out" / "errors.jsonl"
    (doomed,) = cluster.worker_nodes
    seen: list[int] = []
    left: list[int] = []

    def kill_once(done: int, total: int, documents: int) -> None:
        seen.append(documents)
        if len(seen) == 1:
            wait_for(lambda: not ray.available_resources().get("CPU"))  # so each machine has an extractor
            cluster.remove_node(doomed, allow_graceful=False)
            wait_for(lambda: [n["Alive"] for n in ray.nodes() if n["NodeID"] == doomed.node_id] == [False])
            left.append(12 - len(list((staging_of(out) / "parts").iterdir())))

    summary = predict_on_cluster(
        shipped_model(), find_sources([folder]), ReadOptions(), out, errors, address=cluster.address, report=kill_once
    )
    assert left[0] > 0, "all was done before the machine died"
    assert len(seen) == 12 and seen[-1] == 3 * 1024
    assert (summary.articles, summary.failed) == (3 * 1023, 3)
    found = rows(out)
    alike = [f"x{n}" for n in range(1024) if n != 700]
    assert [r["id"] for r in found] == [*alike, *(f"{id}#2" for id in alike), *(f"{id}#3" for id in alike)]
    assert [json.loads(r["meta"])["from"] for r in found] == [f"{f}{n}" for f in "abc" for n in range(1024) if n != 700]
    article = Extractor.load(threads=1)(SHORT)
    expected = parquet_rows([article]).to_pylist()[0]
    assert article.entities and all(r == {**expected, "id": r["id"], "meta": r["meta"]} for r in found)
    entries = [json.loads(line) for line in errors.read_text(encoding="utf-8").splitlines()]
    assert [(e["path"], e["id"]) for e in entries] == [(f"{folder}/{n}.jsonl:701", f"{n}.jsonl#701") for n in "abc"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["errors.jsonl", "results.parquet"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-", "--out", "a.parquet"], "other machines have no part in - (standard input)"),
        (["IN"], "--engine ray: writes a folder of Parquet files; name it"),
        (["IN", "--out", "a.jsonl"], "--engine ray: writes a folder of Parquet files; name it"),
        (["IN", "--out", "a.parquet", "--append"], "cannot --append; give another --out"),
        (["IN", "--out", "a.parquet", "--threads", "2"], "leave out --threads and --processes"),
        (["IN", "--out", "a.parquet", "--processes", "2"], "leave out --threads and --processes"),
        (["IN", "--out", "a.parquet", "--errors", "a.parquet/e.jsonl"], "a.parquet/e.jsonl: is in a.parquet, which is"),
        (
            ["IN", "--out", "a.parquet", "--errors", "mine.parquet"],
            "mine.parquet: is a folder; give the path of a file",
        ),
        (["old.parquet", "--out", "old.parquet", "--fresh"], "old.parquet: is itself to be read"),
        (
            ["mine.parquet/notes.txt", "--out", "mine.parquet", "--fresh"],
            "mine.parquet/notes.txt: is itself to be read",
        ),
        (["IN", "--out", "old.parquet"], "old.parquet: is there already; replace it with --fresh"),
        (["IN", "--out", "mine.parquet", "--fresh"], "mine.parquet: holds more than Parquet files, such as notes.txt"),
        (["IN", "--out", "a.parquet", "--model", "nowhere"], "nowhere: no such model folder"),
        (["IN", "--out", "a.parquet", "--address", "nonsense"], "nonsense: expected HOST:PORT"),
        (["IN", "--out", "a.parquet", "--address", "ray://127.0.0.1:1"], "ray://127.0.0.1:1: expected HOST:PORT"),
        (["IN", "--out", "a.parquet", "--address", "127.0.0.1:1"], "no Ray cluster can be reached there"),
    ],
)
def test_what_is_refused_before_anything_starts(folder, monkeypatch, args, message):
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("has started"))
    Path("old.parquet").write_bytes(b"old")
    Path("mine.parquet").mkdir()
    Path("mine.parquet/notes.txt").write_bytes(b"notes")
    result = call("predict", "--engine", "ray", *(str(folder) if a == "IN" else a for a in args))
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert Path("old.parquet").read_bytes() == b"old" and Path("mine.parquet/notes.txt").read_bytes() == b"notes"
    assert sorted(p.name for p in Path().iterdir()) == ["mine.parquet", "old.parquet"]


def test_an_address_that_is_a_web_page(folder):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        Thread(target=answer, daemon=True).start()
        result = call("predict", folder, "--engine", "ray", "--out", "a.parquet", "--address", f"127.0.0.1:{port}")
    assert result.exit_code == 2 and "a web page, such as Ray's dashboard" in result.stderr


def test_an_address_without_a_cluster(folder):
    result = call("predict", folder, "--out", "a.jsonl", "--address", "127.0.0.1:1")
    assert result.exit_code == 2 and "--address: is for a cluster; give --engine ray too" in result.stderr


def test_ray_is_missing(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "rasid.batch.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = call("predict", folder, "--engine", "ray", "--out", "a.parquet")
    assert result.exit_code == 2 and "needs ray: pip install 'rasid[ray]'" in result.stderr


def test_interrupted_by_the_user(folder, monkeypatch):
    import rasid.batch.cluster

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rasid.batch.cluster, "predict_on_cluster", interrupted)
    result = call("predict", folder, "--engine", "ray", "--out", "a.parquet")
    assert result.exit_code == 130 and "interrupted; nothing was written" in result.stderr


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (ConfigError("out: cannot be written by b\nConfigure `ray.data`."), ConfigError, "out: cannot be written by b"),
        (MemoryError("too much"), RasidError, "the cluster gave up: too much"),
    ],
)
def test_what_goes_wrong_on_a_machine_is_told_in_a_line(cause, kind, message):
    from ray.exceptions import RayTaskError

    from rasid.batch.ray_session import failures_told

    with pytest.raises(RasidError) as error, failures_told():
        raise RayTaskError("read", "Traceback", cause).as_instanceof_cause()
    assert type(error.value) is kind and str(error.value) == message


def article(id: str) -> Article:
    return Article(id=id, text=f"نص {id}")


def receipt(share: int, number: int, ids: str, folder: Path, *, last: bool = False, **errors: str) -> Receipt:
    """Of a part whose file has one record for each letter."""
    file, size = write_part([article(id) for id in ids], folder) if ids else ("", 0)
    told = {int(place[1:]): {"path": "p", "id": id, "reason": "r"} for place, id in errors.items()}
    return Receipt(
        share=share, number=number, last=last, documents=len(ids) + len(told), errors=told, file=file, size=size
    )


def test_sources_are_dealt_by_size_and_number(tmp_path):
    sizes = [10, 2_000_000, *[1] * 300]
    sources = [Source(tmp_path / f"{n}.txt", str(n)) for n in range(len(sizes))]
    for source, size in zip(sources, sizes, strict=True):
        source.path.write_bytes(b"x" * size)
    sources.append(Source(tmp_path / "gone.txt", "gone"))
    shares = list(deal(sources))
    assert [len(share) for share in shares] == [2, 256, 45]
    assert [source for share in shares for source in share] == sources


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([1], [1]), ([1] * 256, [256]), ([1] * 257, [256, 1]), ([1, 2_000_000, 1, 1], [2, 2]), ([2_000_000] * 2, [1, 1])],
)
def test_documents_are_cut_into_parts(lengths, expected):
    documents = [Document("p", str(n), "x" * length) for n, length in enumerate(lengths)]
    found = list(cut(iter(documents)))
    assert [len(part) for part, _ in found] == expected
    assert [document for part, _ in found for document in part] == documents
    assert [last for _, last in found] == [False] * (len(expected) - 1) + [True]


COMPLETE = [(0, 0, False), (0, 1, True), (1, 0, True)]


@pytest.mark.parametrize(
    "places",
    [
        [],
        COMPLETE[1:],
        COMPLETE[:-1],
        [COMPLETE[0], COMPLETE[2]],
        [*COMPLETE[:2], *COMPLETE[1:]],
        [*COMPLETE[:2], (0, 2, True), COMPLETE[2]],
        [*COMPLETE, (2, 0, True)],
    ],
)
def test_a_part_that_is_missing_or_there_twice_is_found(places):
    def receipts(places: list[tuple[int, int, bool]]) -> list[Receipt]:
        return [Receipt(share=s, number=n, last=last, documents=1, errors={}) for s, n, last in places]

    check_complete(receipts(COMPLETE), 2)
    with pytest.raises(RasidError, match="of 2 is not there once"):
        check_complete(receipts(places), 2)


def test_parts_become_files_in_order_with_unique_ids(tmp_path, monkeypatch):
    """… whatever a machine that died has left."""
    monkeypatch.setattr(parts, "_FILE_BYTES", 1)
    with staging(tmp_path / "out.parquet") as folder:
        first = receipt(0, 0, "ab", folder, _1="a")
        receipt(0, 0, "ab", folder)  # done twice; this one was not handed in
        receipts = [first, receipt(0, 1, "", folder, last=True, _0="c"), receipt(1, 0, "ca", folder, last=True)]
        with (tmp_path / "errors.jsonl").open("w") as errors:
            joints = list(plan_files(receipts, folder, errors))
        for number, joint in enumerate(joints):
            join_parts(joint, folder, number)
            join_parts(joint, folder, number)  # as when the machine that did it dies before it tells
        found = sorted((folder / "joined").iterdir())
        assert [p.name for p in found] == ["articles-00000.parquet", "articles-00001.parquet"]
        assert [[r["id"] for r in rows(p)] for p in found] == [["a", "b"], ["c#2", "a#3"]]
        assert [r["text"] for r in rows(found[1])] == ["نص c", "نص a"]
    assert [json.loads(line)["id"] for line in (tmp_path / "errors.jsonl").read_text().splitlines()] == ["a#2", "c"]
    assert [p.name for p in tmp_path.iterdir()] == ["errors.jsonl"]


def test_a_file_that_is_not_what_its_receipt_says(tmp_path):
    with staging(tmp_path / "out.parquet") as folder, (tmp_path / "errors.jsonl").open("w") as errors:
        wrong = receipt(0, 0, "ab", folder, last=True).model_copy(update={"documents": 3})
        with pytest.raises(RasidError, match="2 records, not what was written"):
            list(plan_files([wrong], folder, errors))


def test_two_runs_do_not_share_an_output(tmp_path):
    out = tmp_path / "out.parquet"
    with staging(out) as folder:
        write_part([article("a")], folder)
        with pytest.raises(ConfigError, match="another process writes this"), staging(out):
            pass
        assert len(list((folder / "parts").iterdir())) == 1
    staging_of(out).mkdir()
    (staging_of(out) / "parts").mkdir()
    (staging_of(out) / "parts" / "left.parquet").write_bytes(b"by a run that was killed")
    with staging(out) as folder:
        assert list((folder / "parts").iterdir()) == []


def test_results_are_no_articles(folder):
    """Neither the folder that is replaced nor what a killed run left beside it is read."""
    out = folder / "out.parquet"
    for place in (out / "articles-00000.parquet", staging_of(out) / "parts" / "x.parquet"):
        place.parent.mkdir(parents=True)
        place.write_bytes(b"rows")
    assert [s.id for s in _sources([folder], None, out, None)] == ["a.txt", "dump.jsonl", "empty.txt", "page.html"]


def test_a_summary_of_several_parts():
    one, other = (Summary(2, 10, 1, 9.0, Counter(A=1), Counter(R=2)), Summary(1, 5, 0, 1.0, Counter(A=2, B=1)))
    one.merge(other)
    assert one == Summary(3, 15, 1, 9.0, Counter(A=3, B=1), Counter(R=2))


# What Ray is not needed for


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Iterator[tuple[Path, Path]]:
    """A staging folder with a finished file, and the output folder."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "results.parquet"
    with staging(out) as folder:
        (folder / "joined" / "articles-00000.parquet").write_bytes(b"new")
        yield folder, out


def test_an_output_of_this_machine_leaves_a_running_cluster_alone(finished):
    folder, out = finished
    check_output(out, "parquet")
    place_files(folder, out, fresh=False)
    assert (out / "articles-00000.parquet").read_bytes() == b"new"


def test_results_that_came_in_between_are_not_replaced(finished):
    folder, out = finished
    out.mkdir()
    (out / "articles-00000.parquet").write_bytes(b"of another")
    with pytest.raises(ConfigError, match="is there already") as caught:
        place_files(folder, out, fresh=False)
    assert (out / "articles-00000.parquet").read_bytes() == b"of another"
    (kept,) = out.parent.glob("results.parquet.*")
    assert str(kept) in str(caught.value) and (kept / "articles-00000.parquet").read_bytes() == b"new"


def test_a_failure_in_the_middle_puts_the_old_results_back(finished, monkeypatch):
    folder, out = finished
    out.mkdir()
    (out / "articles-00000.parquet").write_bytes(b"old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "joined" and target == out:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ConfigError, match="Input/output error"):
        place_files(folder, out, fresh=True)
    assert (out / "articles-00000.parquet").read_bytes() == b"old"
    (kept,) = out.parent.glob("results.parquet.*")
    assert (kept / "articles-00000.parquet").read_bytes() == b"new"


def test_a_cluster_that_gets_nothing_done_fails_in_words():
    from ray.data.exceptions import ExecutionTimeoutError

    from rasid.batch.ray_session import failures_told

    with pytest.raises(RasidError, match="the cluster gave up: nothing was done"), failures_told():
        raise ExecutionTimeoutError("nothing was done\nfor long")


def test_a_machine_with_another_release(tmp_path):
    from rasid.batch.cluster import _Worker

    with pytest.raises(ConfigError, match=r"has rasid .* and not 0\.0\.0; install the same on all"):
        _Worker(None, "0.0.0", tmp_path, None)
