"""The cluster engine: the rows of the local one, each once, also when a machine dies; and what it refuses."""

import json
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rasid.batch import parts
from rasid.batch.outputs import check_output
from rasid.batch.parts import Receipt, check_complete, clear_parts, cut, deal, is_joined, join_parts, write_part
from rasid.batch.prediction import Summary
from rasid.batch.staging import Staging, staging_of
from rasid.batch.tables import parquet_rows
from rasid.cli.main import app
from rasid.cli.predict import _sources
from rasid.errors import ConfigError, DataError, RasidError
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

    def kill_once(staging: Staging) -> None:
        seen.append(staging.summary.articles + staging.summary.failed)
        if len(seen) == 2:  # the first part is done
            wait_for(lambda: not ray.available_resources().get("CPU"))  # so each machine has an extractor
            cluster.remove_node(doomed, allow_graceful=False)
            wait_for(lambda: [n["Alive"] for n in ray.nodes() if n["NodeID"] == doomed.node_id] == [False])
            left.append(12 - len(list((staging_of(out) / "parts").iterdir())))

    summary = predict_on_cluster(
        shipped_model(),
        find_sources([folder]),
        ReadOptions(),
        out,
        errors,
        what={},
        address=cluster.address,
        report=kill_once,
    )
    assert left[0] > 0, "all was done before the machine died"
    assert len(seen) == 1 + 12 and seen[-1] == 3 * 1024
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


def test_the_command_dies_on_the_way(tmp_path, cluster):
    """… without a chance to tidy up; the same command reads what is left, and no more."""
    (tmp_path / "in").mkdir()
    for name in "abcdef":
        lines = [json.dumps({"text": f"{SENTENCE} {name}", "id": f"x{n}"}) for n in range(30)]
        lines[20] = "{" + "broken" * 200_000  # large enough for a share of its own
        (tmp_path / "in" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "rasid", "predict", "in", "--out", "out.parquet"]
    command += ["--engine", "ray", "--address", cluster.address]
    receipts = staging_of(tmp_path / "out.parquet") / "receipts.jsonl"
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: first.poll() is not None or (receipts.exists() and receipts.read_bytes().count(b"\n") > 0))
    first.kill()
    first.wait()
    done = len(receipts.read_text().splitlines())
    assert 0 < done < 6, "all was done before it died"
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1 and f"going on after {30 * done:,} articles, from " in again.stderr
    assert "articles: 174 in " in again.stderr and "6 not read, see errors.jsonl" in again.stderr
    with chdir(tmp_path):
        call("predict", "in", "--out", "local/a.parquet")
    assert rows(tmp_path / "out.parquet") == rows(tmp_path / "local/a.parquet")
    assert (tmp_path / "errors.jsonl").read_bytes() == (tmp_path / "local/errors.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors.jsonl", "in", "local", "out.parquet"]


def test_another_error_file_is_another_batch(folder, monkeypatch):
    """… since it could be one of the articles that are listed already."""
    import rasid.batch.cluster

    seen: list[dict[str, object]] = []
    monkeypatch.setattr(
        rasid.batch.cluster, "predict_on_cluster", lambda *_, what, **__: seen.append(what) or Summary()
    )
    for errors in ("e.jsonl", "f.jsonl"):
        assert call("predict", folder, "--engine", "ray", "--out", "a.parquet", "--errors", errors).exit_code == 0
    assert {name for name in seen[0] if seen[0][name] != seen[1][name]} == {"errors"}


def test_parts_that_are_done_are_not_read_again(tmp_path):
    from rasid.batch.cluster import _read_share

    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"نص {n}"}) + "\n" for n in range(600)), encoding="utf-8")
    row = {"share": 7, "done": [1], "sources": pickle.dumps([Source(Path("a.jsonl"), "a.jsonl")])}
    found = list(_read_share(row, ReadOptions(), tmp_path))
    assert [(part["share"], part["number"], part["last"]) for part in found] == [(7, 0, False), (7, 2, True)]
    assert [document.text for document in pickle.loads(found[1]["documents"])] == [f"نص {n}" for n in range(512, 600)]


@pytest.mark.parametrize(
    ("fresh", "kept", "message"),
    [
        ([], False, "interrupted; nothing was written"),
        ([], True, "interrupted; the same command goes on from "),
        (["--fresh"], True, "interrupted; the same command without --fresh goes on from "),
    ],
)
def test_interrupted_by_the_user(folder, monkeypatch, fresh, kept, message):
    import rasid.batch.cluster

    def interrupted(*_: object, **__: object) -> None:
        if kept:
            staging_of(Path("a.parquet")).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(rasid.batch.cluster, "predict_on_cluster", interrupted)
    result = call("predict", folder, "--engine", "ray", "--out", "a.parquet", *fresh)
    assert result.exit_code == 130 and message in result.stderr


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
        share=share,
        number=number,
        last=last,
        documents=len(ids) + len(told),
        errors=told,
        summary=Summary(articles=len(ids), failed=len(told)).to_dict(),
        file=file,
        size=size,
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
        [*COMPLETE, COMPLETE[-1]],
        [*COMPLETE, (1, 1, False), (1, 2, True)],
    ],
)
def test_a_part_that_is_missing_or_there_twice_is_found(places):
    def receipts(places: list[tuple[int, int, bool]]) -> list[Receipt]:
        return [Receipt(share=s, number=n, last=last, documents=1, errors={}) for s, n, last in places]

    check_complete(receipts(COMPLETE), 2)
    with pytest.raises(RasidError, match="of 2 is not there once"):
        check_complete(receipts(places), 2)


def stage(out: Path, shares: int = 1, *, fresh: bool = False, **what: str) -> Staging:
    """The staging folder of a batch of some large files."""
    sources = [Source(out.parent / f"{n}.jsonl", f"{n}.jsonl", "no file") for n in range(256 * shares)]
    return Staging(out, what, sources, fresh=fresh)


def join(staging: Staging) -> list[list[str]]:
    """Join everything; the ids of each file."""
    for number, plan in enumerate(staging.plan()):
        join_parts(plan, staging.folder, number)
        join_parts(plan, staging.folder, number)  # as when the machine that did it dies before it tells
    return [[str(r["id"]) for r in rows(p)] for p in sorted((staging.folder / "joined").iterdir())]


def test_parts_become_files_in_order_with_unique_ids(tmp_path, monkeypatch):
    """… whatever a machine that died has left."""
    monkeypatch.setattr(parts, "_FILE_BYTES", 1)
    with stage(tmp_path / "out.parquet", 2) as staging:
        first = receipt(0, 0, "ab", staging.folder, _1="a")
        receipt(0, 0, "ab", staging.folder)  # done twice; this one was not handed in
        staging.add(receipt(1, 0, "ca", staging.folder, last=True))
        staging.add(receipt(0, 1, "", staging.folder, last=True, _0="c"))
        staging.add(first)
        assert join(staging) == [["a", "b"], ["c#2", "a#3"]]
        staging.place(tmp_path / "errors.jsonl")
    found = sorted((tmp_path / "out.parquet").iterdir())
    assert [p.name for p in found] == ["articles-00000.parquet", "articles-00001.parquet"]
    assert [r["text"] for r in rows(found[1])] == ["نص c", "نص a"]
    assert [json.loads(line)["id"] for line in (tmp_path / "errors.jsonl").read_text().splitlines()] == ["a#2", "c"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors.jsonl", "out.parquet"]


def test_a_file_that_is_not_what_its_receipt_says(tmp_path):
    """… is read again, and nothing else."""
    out, other = tmp_path / "out.parquet", "was written by another machine and cannot be read here"
    with pytest.raises(RasidError, match="2 records, not what was written"), stage(out) as staging:
        staging.add(receipt(0, 0, "ab", staging.folder))
        staging.add(receipt(0, 1, "ab", staging.folder, last=True).model_copy(update={"documents": 3}))
        staging.plan()
    with pytest.raises(RasidError, match=other), stage(out) as staging:
        assert [done for _, _, done in staging.left()] == [{0}]
        staging.add(bad := receipt(0, 1, "ab", staging.folder, last=True))
        (staging.folder / "parts" / bad.file).write_bytes(b"x" * bad.size)
        staging.plan()
    with stage(out) as staging:
        assert [done for _, _, done in staging.left()] == [{0}]


def test_two_runs_do_not_share_an_output(tmp_path):
    with stage(tmp_path / "out.parquet") as staging:
        write_part([article("a")], staging.folder)
        for fresh in (False, True):
            with pytest.raises(ConfigError, match="another process writes this"):
                stage(tmp_path / "out.parquet", fresh=fresh)
        assert len(list((staging.folder / "parts").iterdir())) == 1


def failing_sources(place: Path) -> Iterator[Source]:
    yield Source(place, "a")
    raise DataError("not this one")


class Killed(BaseException):
    """The end of a process that has no chance to tidy up."""


@contextmanager
def killed(staging: Staging) -> Iterator[Staging]:
    """A batch whose process is killed at the end of the block."""
    yield staging
    staging.close()  # as the system does


def counted(summary: Summary) -> dict[str, object]:
    return {**summary.to_dict(), "seconds": 0.0}


def test_what_is_left_after_the_command_has_died(tmp_path):
    out = tmp_path / "out.parquet"
    some = Summary(2, 10, 1, 0.0, Counter(UNIT=3), Counter(AT=1))
    all_but_lost = Summary(4, 10, 1, 0.0, Counter(UNIT=3), Counter(AT=1))
    with killed(stage(out, 3)) as staging:
        assert [(share, done) for share, _, done in staging.left()] == [(0, set()), (1, set()), (2, set())]
        staging.add(receipt(1, 0, "ab", staging.folder, _2="c").model_copy(update={"summary": some.to_dict()}))
        staging.add(receipt(1, 2, "d", staging.folder, last=True))
        staging.add(receipt(2, 0, "e", staging.folder, last=True))
        lost = receipt(0, 0, "f", staging.folder, last=True)
        seconds = staging.summary.seconds
        staging.add(lost)
    (staging.folder / "parts" / lost.file).unlink()  # as of a machine that has a disk of its own
    with (staging.folder / "receipts.jsonl").open("a") as receipts:
        receipts.write("\0\0\n" + '{"share": 1, "numb')  # as a power cut may leave it
    for _ in range(2):
        with killed(stage(out, 1)) as staging:  # what is there now does not matter
            assert staging.resumed
            left = list(staging.left())
            assert [(share, done) for share, _, done in left] == [(0, set()), (1, {0, 2})]
            assert [s.id for s in left[1][1]] == [f"{n}.jsonl" for n in range(256, 512)]
            assert left[0][1][0] == Source(tmp_path / "0.jsonl", "0.jsonl", "no file")
            assert counted(staging.summary) == counted(all_but_lost) and staging.summary.seconds >= seconds > 0
            assert (staging.sources, staging.sources_done) == (768, 512)
    with stage(out) as staging:
        staging.add(receipt(0, 0, "f", staging.folder, last=True))
        staging.add(receipt(1, 1, "c", staging.folder))
        assert list(staging.left()) == []
        assert join(staging) == [["f", "a", "b", "c#2", "d", "e"]]
        staging.place(tmp_path / "errors.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors.jsonl", "out.parquet"]


@pytest.mark.parametrize("step", range(6))
def test_the_command_dies_when_all_is_read(tmp_path, monkeypatch, step):
    """… at each step from the plan to the end; the rest is done once."""
    monkeypatch.setattr(parts, "_FILE_BYTES", 1)
    out, errors = tmp_path / "out.parquet", tmp_path / "errors.jsonl"
    out.mkdir()
    (out / "articles-00007.parquet").write_bytes(b"old")

    def stop(self: Path, missing_ok: bool = False) -> None:
        raise Killed

    with killed(stage(out, fresh=True)) as staging:
        staging.add(receipt(0, 0, "ab", staging.folder, _2="c"))
        staging.add(receipt(0, 1, "a", staging.folder, last=True))
        if step >= 1:
            plans = staging.plan()
        if step >= 2:
            join_parts(plans[0], staging.folder, 0)
            clear_parts(plans[0], staging.folder)
        if step >= 3:
            join_parts(plans[1], staging.folder, 1)
            clear_parts(plans[1], staging.folder)
        if step == 4:
            out.rename(staging.folder / "replaced")
        if step == 5:
            monkeypatch.setattr(Path, "unlink", stop)
            with pytest.raises(Killed):
                staging.place(errors)
            monkeypatch.undo()
            monkeypatch.setattr(parts, "_FILE_BYTES", 1)
    with stage(out) as staging:
        assert (staging.planned, staging.placed) == (step >= 1, step == 5)
        if not staging.placed:
            for number, plan in enumerate(staging.plan()):
                if not is_joined(staging.folder, number):
                    join_parts(plan, staging.folder, number)
                clear_parts(plan, staging.folder)
        staging.place(errors)
    assert [[r["id"] for r in rows(p)] for p in sorted(out.iterdir())] == [["a", "b"], ["a#2"]]
    assert [json.loads(line)["id"] for line in errors.read_text().splitlines()] == ["c"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors.jsonl", "out.parquet"]


def test_a_batch_that_another_has_begun(tmp_path):
    out = tmp_path / "out.parquet"
    with killed(stage(out, model="a")) as staging:
        staging.add(receipt(0, 0, "a", staging.folder))
    for other in ({"model": "b"}, {}):
        with pytest.raises(ConfigError, match="an unfinished run with other model; repeat its command"):
            stage(out, **other)
    with pytest.raises(DataError, match="not this one"):
        Staging(out, {"model": "a"}, failing_sources(out), fresh=True)
    with killed(stage(out, model="a")) as staging:
        assert len(staging.receipts) == 1, "what cannot begin costs nothing"
    with killed(stage(out, model="b", fresh=True)) as staging:
        assert not staging.resumed and not staging.receipts and not list((staging.folder / "parts").iterdir())
        staging.add(receipt(0, 0, "a", staging.folder))
    (staging.folder / "shares.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="damaged; start over with --fresh"):
        stage(out, model="b")
    with stage(out, model="b", fresh=True) as staging:
        pass
    assert not list(tmp_path.iterdir()), "nothing was done, so nothing is kept"


def test_what_is_done_outlasts_an_error(tmp_path):
    out = tmp_path / "out.parquet"
    with pytest.raises(RasidError, match=r"gave up; what is done is kept in .*\.cluster: mend"), stage(out) as staging:
        staging.add(receipt(0, 0, "a", staging.folder))
        raise RasidError("the cluster gave up")
    with pytest.raises(ConfigError, match=r"cannot be written: No space left; what is done"), stage(out) as staging:
        assert len(staging.receipts) == 1
        raise OSError(28, "No space left")
    with pytest.raises(ConfigError, match="written: No space left on device; what is done"), stage(out) as staging:
        staging._file.close()
        staging._file = Path("/dev/full").open("a")  # noqa: SIM115
        staging.add(receipt(0, 1, "a", staging.folder))
    with stage(out) as staging:
        assert len(staging.receipts) == 1, "the lock was left"
    with pytest.raises(ConfigError, match="repeat the command without --fresh"), stage(out, fresh=True) as staging:
        staging.add(receipt(0, 0, "a", staging.folder))
        raise ConfigError("a machine has another release")


def test_results_are_no_articles(folder):
    """Neither the folder that is replaced nor what a killed run left beside it is read."""
    out = folder / "out.parquet"
    for place in (out / "articles-00000.parquet", staging_of(out) / "parts" / "x.parquet"):
        place.parent.mkdir(parents=True)
        place.write_bytes(b"rows")
    sources = _sources([folder], None, out, None, Counter())
    assert [s.id for s in sources] == ["a.txt", "dump.jsonl", "empty.txt", "page.html"]


def test_results_are_not_replaced_by_nothing(tmp_path):
    out = tmp_path / "in" / "out.parquet"
    out.mkdir(parents=True)
    (out / "articles-00000.parquet").write_bytes(b"rows")
    result = call("predict", tmp_path / "in", "--engine", "ray", "--out", out, "--fresh")
    assert result.exit_code == 2 and "nothing to read there but results of an earlier run" in result.stderr
    assert (out / "articles-00000.parquet").read_bytes() == b"rows"
    assert [p.name for p in out.parent.iterdir()] == ["out.parquet"]


def test_a_summary_of_several_parts():
    one, other = (Summary(2, 10, 1, 9.0, Counter(A=1), Counter(R=2)), Summary(1, 5, 0, 1.0, Counter(A=2, B=1)))
    one.merge(other)
    assert one == Summary(3, 15, 1, 9.0, Counter(A=3, B=1), Counter(R=2))


# What Ray is not needed for


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Iterator[tuple[Callable[..., Staging], Path]]:
    """What opens a staging folder in which one row is joined, and the output folder."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "results.parquet"

    def open_(*, fresh: bool) -> Staging:
        staging = stage(out, fresh=fresh)
        staging.add(receipt(0, 0, "n", staging.folder, last=True))
        join(staging)
        return staging

    yield open_, out


def test_an_output_of_this_machine_leaves_a_running_cluster_alone(finished):
    open_, out = finished
    with open_(fresh=False) as staging:
        check_output(out, "parquet")
        staging.place(out.parent / "errors.jsonl")
    assert [r["id"] for r in rows(out)] == ["n"]


def test_results_that_came_in_between_are_not_replaced(finished):
    open_, out = finished
    with pytest.raises(ConfigError, match="has come in between; move it away and"), open_(fresh=False) as staging:
        out.mkdir()
        (out / "articles-00000.parquet").write_bytes(b"of another")
        staging.place(out.parent / "errors.jsonl")
    with pytest.raises(ConfigError, match="has come in between; move it away"):
        stage(out)
    assert (out / "articles-00000.parquet").read_bytes() == b"of another"
    out.rename(out.parent / "of-another.parquet")
    with stage(out) as staging:
        staging.place(out.parent / "errors.jsonl")
    assert [r["id"] for r in rows(out)] == ["n"]


def failing_rename(place: Path, *names: str) -> Callable[[Path, Path], Path]:
    """`Path.rename`, which cannot move what has one of the names to a place."""
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name in names and target == place:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    return fail


def test_a_failure_in_the_middle_puts_the_old_results_back(finished, monkeypatch):
    open_, out = finished
    out.mkdir()
    (out / "articles-00000.parquet").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing_rename(out, "joined"))
        with pytest.raises(ConfigError, match="Input/output error"), open_(fresh=True) as staging:
            staging.place(out.parent / "errors.jsonl")
    assert (out / "articles-00000.parquet").read_bytes() == b"old"
    with stage(out) as staging:
        staging.place(out.parent / "errors.jsonl")
    assert [r["id"] for r in rows(out)] == ["n"]


def test_old_results_outlast_a_batch_without_articles(finished, monkeypatch):
    _, out = finished
    out.mkdir()
    (out / "articles-00000.parquet").write_bytes(b"old")
    failed = pytest.raises(ConfigError, match="Input/output error")
    with monkeypatch.context() as patch, failed, Staging(out, {}, [], fresh=True) as staging:
        join(staging)
        patch.setattr(Path, "rename", failing_rename(out, "joined", "replaced"))
        staging.place(out.parent / "errors.jsonl")
    with Staging(out, {}, [], fresh=True):
        pass
    assert (out / "articles-00000.parquet").read_bytes() == b"old"


def test_what_comes_in_the_moment_of_a_death_is_in_the_way(finished):
    open_, out = finished
    out.mkdir()
    with killed(open_(fresh=True)) as staging:
        out.rename(staging.folder / "replaced")
    out.mkdir()
    with pytest.raises(ConfigError, match="has come in between; move it away and repeat the command"):
        stage(out)


def test_a_machine_that_was_given_up_still_writes(finished, monkeypatch):
    open_, out = finished

    def in_use(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(39, "Directory not empty")

    with open_(fresh=False) as staging:
        monkeypatch.setattr("shutil.rmtree", in_use)
        staging.place(out.parent / "errors.jsonl")
    assert [r["id"] for r in rows(out)] == ["n"]
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="is there already"):
        stage(out)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_old_results_that_a_dead_command_had_set_aside_come_back(finished):
    """… before it is started over, as the new ones may never come."""
    open_, out = finished
    out.mkdir()
    (out / "articles-00000.parquet").write_bytes(b"old")
    with killed(open_(fresh=True)) as staging:
        out.rename(staging.folder / "replaced")
    with stage(out, fresh=True):
        pass
    assert (out / "articles-00000.parquet").read_bytes() == b"old"


def test_a_cluster_that_gets_nothing_done_fails_in_words():
    from ray.data.exceptions import ExecutionTimeoutError

    from rasid.batch.ray_session import failures_told

    with pytest.raises(RasidError, match="the cluster gave up: nothing was done"), failures_told():
        raise ExecutionTimeoutError("nothing was done\nfor long")


def test_a_machine_with_another_release(tmp_path):
    from rasid.batch.cluster import _Worker

    with pytest.raises(ConfigError, match=r"has rasid .* and not 0\.0\.0; install the same on all"):
        _Worker(None, "0.0.0", tmp_path, None)
