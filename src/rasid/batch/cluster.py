"""Batch prediction on the processors of many machines, with Ray Data; the rows are those of `rasid.batch.prediction`.

    shares of the sources → read → parts of some hundred documents → extract → a file and a receipt each → join → place

Reading is a stream: a file of any size is spread over all processors while it is read. Ray does once more what a
machine was doing when it died; `rasid.batch.parts` sees to it that in the end every article is there once, and
`rasid.batch.staging` that nothing is lost if it is this machine that dies.
"""

import json
import logging
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from rasid.batch.outputs import check_output
from rasid.batch.parts import FilePlan, Receipt, clear_parts, cut, is_joined, join_parts, write_part
from rasid.batch.prediction import Summary, predict_one
from rasid.batch.ray_session import connected, failures_told
from rasid.batch.staging import Staging
from rasid.errors import ConfigError
from rasid.inference import Extractor
from rasid.parallel import ordered_map
from rasid.reading.documents import Document, ReadOptions, read_documents
from rasid.reading.sources import Source, printable

# Seconds in which nothing gets done: an article that kills all who read it must not go round forever.
_PATIENCE = 2400.0
_JOINS = 16  # at once

Row = dict[str, Any]


def predict_on_cluster(
    model: Path,
    sources: Iterable[Source],
    options: ReadOptions,
    out: Path,
    errors: Path,
    max_seconds: float | None = None,
    *,
    what: dict[str, Any],
    fresh: bool = False,
    address: str | None = None,
    report: Callable[[Staging], None] = lambda staging: None,
) -> Summary:
    """Extract from every article of the sources into a folder of Parquet files, or go on where an earlier call stopped.

    All machines must see the inputs and the output, under the same paths.

    Args:
        model: An exported model; it is sent to the other machines.
        sources: What to read.
        options: How to read it.
        out: The folder.
        errors: Gets the errors; where there are none, no such file is written, and an earlier one goes.
        max_seconds: Longest time for one article.
        what: What the batch is, JSON values only; an unfinished one of other values is not gone on with.
        fresh: Whether to start over, and to replace earlier results in the folder when all is done.
        address: Of a running cluster; by default one is started on this machine, for this run alone.
        report: Called with how far the batch is, at the start and after each part.

    Raises:
        ConfigError: if the cluster cannot be reached, or the output cannot be written.
        RasidError: if the cluster fails.
    """
    check_output(errors, "jsonl")
    with Staging(out, what, sources, fresh=fresh) as staging:
        report(staging)
        if not staging.placed:
            with connected(address), failures_told():
                for receipt in _work(model, staging, options, max_seconds):
                    staging.add(receipt)
                    report(staging)
                _join(staging.plan(), staging.folder)
        staging.place(errors)
    return staging.summary


def _work(model: Path, staging: Staging, options: ReadOptions, max_seconds: float | None) -> Iterator[Receipt]:
    """Do the parts that are left, and give the receipt of each as soon as it is done."""
    shares = [{"share": n, "done": sorted(done), "sources": pickle.dumps(share)} for n, share, done in staging.left()]
    if not shares:
        return
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = max(_PATIENCE, 2 * (max_seconds or 0))
    context.target_max_block_size = 1  # bytes, so that each part is a block, and so a task, of its own
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters of it is raised
    workers = int(ray.cluster_resources().get("CPU", 1))
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix in (".json", ".onnx")}
    with DataContext.current(context):
        work = (
            ray.data.from_items(shares, override_num_blocks=len(shares))
            .flat_map(
                _read_share,
                fn_args=(options, Path.cwd()),
                num_cpus=0,  # little beside extraction; and with 1, Ray would have each file read and extracted by one
                concurrency=min(workers, len(shares)),
            )
            .map(
                _Worker,
                fn_constructor_args=(ray.put(files), version("rasid"), staging.folder, max_seconds),
                num_cpus=1,
                compute=ActorPoolStrategy(min_size=1, initial_size=workers),
            )
        )
    del shares  # of a folder of millions they take a gigabyte or more
    for row in work.iter_rows():
        yield Receipt.model_validate_json(row["receipt"])


def _read_share(row: Row, options: ReadOptions, cwd: Path) -> Iterator[Row]:
    """The parts of a share that are left to do, as rows."""
    documents, done = _read_sources(pickle.loads(row["sources"]), options, cwd), set(row["done"])
    for number, (part, last) in enumerate(cut(documents)):
        if number not in done:
            yield {"share": row["share"], "number": number, "last": last, "documents": pickle.dumps(part)}


def _read_sources(sources: Iterable[Source], options: ReadOptions, cwd: Path) -> Iterator[Document]:
    """The documents of sources whose paths begin in a folder that this process need not be in."""
    for source in sources:
        given, place = printable(source.path.as_posix()), cwd / source.path
        for document in read_documents(replace(source, path=place), options):
            where = document.source.removeprefix(printable(place.as_posix()))
            yield replace(document, source=f"{given}{where}")


class _Worker:
    """An extractor on one processor of some machine; turns parts into receipts."""

    def __init__(self, files: "ray.ObjectRef[dict[str, bytes]]", release: str, folder: Path, max_seconds: float | None):
        if (own := version("rasid")) != release:
            raise ConfigError(f"{socket.gethostname()} has rasid {own} and not {release}; install the same on all")
        self._folder, self._max_seconds = folder, max_seconds
        with TemporaryDirectory() as model:
            for name, data in ray.get(files).items():
                (Path(model) / name).write_bytes(data)
            self._extractor = Extractor.load(model, threads=1)

    def __call__(self, row: Row) -> Row:
        documents: list[Document] = pickle.loads(row["documents"])
        summary, articles, errors = Summary(), [], {}
        for place, document in enumerate(documents):
            outcome = predict_one(self._extractor, document, self._max_seconds)
            summary.add(outcome)
            if outcome.record:
                articles.append(outcome.record)
            else:
                errors[place] = json.loads(outcome.line)
        receipt = Receipt(
            share=row["share"],
            number=row["number"],
            last=row["last"],
            documents=len(documents),
            errors=errors,
            summary=summary.to_dict(),
        )
        if articles:
            try:
                receipt.file, receipt.size = write_part(articles, self._folder)
            except OSError as error:
                raise ConfigError(
                    f"{self._folder}: cannot be written by {socket.gethostname()}: {error.strerror or error}; "
                    "give an --out that all machines see under the same path"
                ) from error
        return {"receipt": receipt.model_dump_json()}


def _join(plans: list[FilePlan], folder: Path) -> None:
    """Join the parts to finished files, on all machines."""
    join = ray.remote(max_retries=-1)(join_parts)  # as often as machines die

    def finish(job: tuple[int, FilePlan]) -> FilePlan:
        number, plan = job
        if not is_joined(folder, number):
            ray.get(join.remote(plan, folder, number))
        return plan

    for plan in ordered_map(finish, enumerate(plans), _JOINS):
        clear_parts(plan, folder)
