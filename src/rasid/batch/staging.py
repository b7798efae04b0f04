"""The staging folder of a batch on a cluster: what is done so far, so that the same command goes on after any end.

A folder beside the output, gone when the batch is done:

    shares.jsonl    the files to read, listed and dealt once
    run.json        what the batch is; a folder with it is a whole staging folder
    parts/          records of the parts that have been read
    receipts.jsonl  which of them count
    errors.jsonl    what went wrong, once all are read
    plan.jsonl      which of them make up which finished file, thereafter
    joined/         finished files; gone when they are in their place
    replaced/       the results of before, in the moment in which these take their place
"""

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from rasid.batch.outputs import check_same_run, hold, remove_output, sync, write_lines, write_output
from rasid.batch.parts import JOINED, PARTS, FilePlan, Receipt, check_complete, deal, file_size, plan_files
from rasid.batch.prediction import Summary
from rasid.errors import ConfigError, RasidError
from rasid.reading.sources import Source

SHARES, RUN, RECEIPTS, ERRORS, PLAN = "shares.jsonl", "run.json", "receipts.jsonl", "errors.jsonl", "plan.jsonl"
REPLACED, LOCK = "replaced", "lock"
INTERVAL = 1.0  # seconds of receipts that a power cut may cost


class Run(BaseModel):
    """What a batch is.

    Attributes:
        what: JSON values; a staging folder of others is not gone on with.
        replace: Whether the results of an earlier batch may be replaced.
    """

    what: dict[str, Any]
    replace: bool


class Staging:
    """The staging folder of one batch; use it in a `with` statement.

    Attributes:
        folder: Where it is.
        resumed: Whether an earlier process has begun it.
        receipts: Of the parts that are done, without their summaries.
        summary: Counts so far, those of earlier processes included.
        sources: How many files there are to read.
        sources_done: How many of them are done, about.
    """

    def __init__(self, out: Path, what: dict[str, Any], sources: Iterable[Source], *, fresh: bool = False):
        """Open the staging folder of a batch, or begin one.

        Args:
            out: The folder that its results are for.
            what: What the batch is, JSON values only.
            sources: What to read; listed where there is no staging folder yet.
            fresh: Begin anew whatever is there, and replace earlier results.

        Raises:
            ConfigError: if another process works there, it belongs to another batch, is damaged or cannot be written,
                or the output is there already.
            DataError, ConfigError: as listing the sources does.
        """
        self.out, self.folder = out, staging_of(out)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.folder / LOCK, out)
            try:
                self.resumed = not fresh and (self.folder / RUN).exists()
                if not self.resumed:
                    self._begin(what, sources, fresh)
                self._open(what)
            except BaseException:
                if not (self.folder / RUN).exists():
                    self._remove()
                self._lock.release()
                raise
        except OSError as error:
            raise ConfigError(f"{_cannot_write(out, error)}; mend that or choose another place") from error

    def _begin(self, what: dict[str, Any], sources: Iterable[Source], fresh: bool) -> None:
        if (replaced := self.folder / REPLACED).exists() and not self.out.exists():
            replaced.rename(self.out.resolve())
        check_place(self.out, fresh=fresh)
        listed = self.folder / "listed.jsonl"
        shares = (json.dumps([source.to_values() for source in share]) + "\n" for share in deal(sources))
        write_lines(listed, shares)
        (self.folder / RUN).unlink(missing_ok=True)  # from here on there is none until it is whole
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (LOCK, listed.name):
                path.unlink()
        for name in (PARTS, JOINED):
            (self.folder / name).mkdir()
        listed.replace(self.folder / SHARES)
        write_lines(self.folder / RECEIPTS, [])
        write_lines(self.folder / RUN, [Run(what=what, replace=fresh).model_dump_json()])

    def _open(self, what: dict[str, Any]) -> None:
        self.receipts = list[Receipt]()
        self.summary = Summary()
        self.sources_done = 0
        self._began = self._synced = time.monotonic()
        try:
            run = Run.model_validate_json((self.folder / RUN).read_bytes())
            check_same_run(self.folder, run.what, what)
            with (self.folder / SHARES).open(encoding="ascii") as lines:
                self._lengths = [len(json.loads(line)) for line in lines]
            write_lines(self.folder / RECEIPTS, self._whole())
        except (FileNotFoundError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"{self.folder}: damaged; start over with --fresh") from error
        self.sources = sum(self._lengths)
        self._file = (self.folder / RECEIPTS).open("a", encoding="utf-8")
        self._replace = run.replace
        self._began -= self.summary.seconds
        if self.resumed and not self.placed:
            self._check_free()

    def _whole(self) -> Iterator[str]:
        """The receipts that count, line by line; the others' parts are read again."""
        planned = self.planned
        with (self.folder / RECEIPTS).open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    receipt = Receipt.model_validate_json(line)
                except ValidationError:
                    if planned:
                        raise
                    continue  # the machine stopped in the middle of it
                if planned or not receipt.file or file_size(self.folder / PARTS / receipt.file) == receipt.size:
                    self._count(receipt)
                    yield line.removesuffix("\n") + "\n"

    def _count(self, receipt: Receipt) -> None:
        self.summary.merge(Summary.from_dict(receipt.summary))
        self.summary.seconds = receipt.seconds
        self.sources_done += self._lengths[receipt.share] if receipt.last else 0
        self.receipts.append(receipt.model_copy(update={"summary": {}}))  # those of a large batch take a lot of memory

    @property
    def planned(self) -> bool:
        """Whether all is read."""
        return (self.folder / PLAN).exists()

    @property
    def placed(self) -> bool:
        """Whether the results are in their place already."""
        return self.planned and not (self.folder / JOINED).exists()

    def left(self) -> Iterator[tuple[int, list[Source], set[int]]]:
        """The shares that are not all done: the place of each, its sources, and the places of the parts that are."""
        done, last = defaultdict[int, set[int]](set), dict[int, int]()
        for receipt in self.receipts:
            done[receipt.share].add(receipt.number)
            if receipt.last:
                last[receipt.share] = receipt.number
        with (self.folder / SHARES).open(encoding="ascii") as lines:
            for share, line in enumerate(lines):
                if share not in last or len(done[share]) <= last[share]:
                    yield share, [Source.from_values(*values) for values in json.loads(line)], done[share]

    def add(self, receipt: Receipt) -> None:
        """Take the receipt of a part that was left to do."""
        now = time.monotonic()
        receipt.seconds = now - self._began
        self._file.write(receipt.model_dump_json() + "\n")
        self._file.flush()
        if now - self._synced >= INTERVAL:
            os.fsync(self._file.fileno())
            self._synced = now
        self._count(receipt)

    def plan(self) -> list[FilePlan]:
        """What goes into each finished file.

        Raises:
            RasidError: if not each part is there once, or its file is not what its receipt says.
        """
        path = self.folder / PLAN
        if not path.exists():
            os.fsync(self._file.fileno())
            self.receipts.sort(key=lambda receipt: (receipt.share, receipt.number))
            check_complete(self.receipts, len(self._lengths))
            with (self.folder / ERRORS).open("w", encoding="utf-8") as errors:
                plans = list(plan_files(self.receipts, self.folder, errors))
                errors.flush()
                os.fsync(errors.fileno())
            write_lines(path, (json.dumps(plan) + "\n" for plan in plans))
            return plans
        with path.open(encoding="ascii") as lines:
            return [[(name, {int(row): id for row, id in new.items()}) for name, new in json.loads(s)] for s in lines]

    def place(self, errors: Path) -> None:
        """Put the joined files and the errors where the user wants them, and take the staging folder away.

        Args:
            errors: Gets the errors; where there are none, no such file is written, and an earlier one goes.

        Raises:
            ConfigError: if that is not possible; nothing is lost then.
        """
        if not self.placed:
            self._place()
        if self.summary.failed:
            write_output(self.folder / ERRORS, errors, "jsonl")
        else:
            remove_output(errors)
        self._remove()

    def _place(self) -> None:
        """Put the finished files in place, instead of what is there; a stop in between is made up for."""
        place, joined, replaced = self.out.resolve(), self.folder / JOINED, self.folder / REPLACED
        sync(joined)
        self._check_free()
        try:
            if place.exists():
                place.rename(replaced)
            joined.rename(place)
        except BaseException:
            if joined.exists() and replaced.exists():
                replaced.rename(place)
            raise
        sync(place.parent)

    def _check_free(self) -> None:
        """See that nothing has come to the output's place since the batch began."""
        if self.out.exists() and (not self._replace or (self.folder / REPLACED).exists()):
            raise ConfigError(f"{self.out}: has come in between; move it away and repeat the command")
        check_place(self.out, fresh=self._replace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        told = _cannot_write(self.out, error) if isinstance(error, OSError) else error
        kept = (self.folder / RUN).exists()
        if kept and not self.receipts and not (self.folder / REPLACED).exists():  # nothing is lost
            self._remove()
            kept = False
        self.close()
        if kept and isinstance(told, RasidError):
            command = "the command without --fresh" if self._replace else "the command"
            raise type(told)(
                f"{told}; what is done is kept in {self.folder}: mend that and repeat {command}, or start over with "
                "--fresh"
            ) from error
        if told is not error and told is not None:
            raise told from error

    def close(self) -> None:
        """Close the receipts and let others have the folder."""
        with suppress(OSError):  # a full disk, told before
            self._file.close()
        self._lock.release()

    def _remove(self) -> None:
        """Take the folder away; what a machine that was given up still writes there may stay, and does no harm."""
        with suppress(OSError):
            (self.folder / RUN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def staging_of(out: Path) -> Path:
    """Where the staging folder of an output is."""
    place = out.resolve()
    return place.with_name(f".{place.name}.cluster")


def check_place(out: Path, *, fresh: bool) -> None:
    """See that a folder of results may come to this place.

    Raises:
        ConfigError: if something is there, unless it is results and may be replaced.
    """
    if not out.exists():
        return
    if not fresh:
        raise ConfigError(f"{out}: is there already; replace it with --fresh, or give another --out")
    if out.is_dir() and (others := [p.name for p in out.iterdir() if p.suffix != ".parquet" or not p.is_file()]):
        raise ConfigError(f"{out}: holds more than Parquet files, such as {others[0]}; give another --out")


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{out}: cannot be written: {error.strerror or error}")
