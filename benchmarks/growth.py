"""Whether a batch slows down or needs more memory as it grows, and whether it loses anything.

    python benchmarks/growth.py data/train.jsonl --sizes 10,1000,100000

For each size, writes so many short articles, made of a corpus, into a folder, with one file in a thousand that cannot
be read, and reads it in a process of its own. Prints seconds per article after start-up, peak memory, memory at a tenth
and at the end (Linux), and whether there is one record or one error for each file.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rasid.records import read_articles

BAD_EVERY = 1000  # files
LONGEST = 300  # characters


def short_texts(corpus: Path) -> Iterator[str]:
    """First paragraphs of a corpus, cut after a sentence or a word, again and again, each time with another number."""
    texts = []
    for article in read_articles(corpus):
        paragraph = article.text.split("\n")[0]
        texts.append(paragraph if len(paragraph) <= LONGEST else paragraph[:LONGEST].rsplit(" ", 1)[0])
    for n, text in enumerate(cycle(texts)):
        yield f"{text} ({n})"


def write_files(folder: Path, corpus: Path, size: int) -> int:
    """Fill a folder; returns how many of its files cannot be read."""
    bad = 0
    for n, text in zip(range(size), short_texts(corpus), strict=False):
        part = folder / f"{n // 1000:04}"
        part.mkdir(exist_ok=True)
        if n % BAD_EVERY == BAD_EVERY - 1:
            (part / f"{n:07}.txt").write_bytes(b"\x89PNG\x00\x00")
            bad += 1
        else:
            (part / f"{n:07}.txt").write_text(text, encoding="utf-8")
    return bad


def resident(pid: int) -> tuple[float, float]:
    """Memory of a process now and at its peak, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    now, peak = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    return (int(now[1]) / 1024 if now else 0.0), (int(peak[1]) / 1024 if peak else 0.0)


def run(folder: Path, out: Path, size: int, threads: int) -> dict[str, float]:
    """Read a folder and watch the process that does; the time is what it says itself, without its start."""
    command = [sys.executable, "-m", "rasid", "predict", str(folder), "--out", str(out)]
    process = subprocess.Popen([*command, "--threads", str(threads)], stderr=subprocess.PIPE, text=True)
    written = Path(f"{out}.journal", "progress.json")
    tenth = last = peak = 0.0
    while process.poll() is None:
        try:
            summary = json.loads(written.read_text(encoding="utf-8"))["summary"]
            now, peak = resident(process.pid)
        except (OSError, ValueError):
            time.sleep(0.05)
            continue
        if summary.get("articles", 0) + summary.get("failed", 0) >= size / 10 and not tenth:
            tenth = now
        last = now or last
        time.sleep(0.05)
    rate = float(re.search(r"\(([\d,.]+) per second\)", process.stderr.read())[1].replace(",", ""))
    return {"each": 1000 / rate, "tenth": tenth, "last": last, "peak": peak}


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path, help="JSONL")
    parser.add_argument("--sizes", default="10,1000,100000", help="numbers of files")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    table = Table(title=f"short articles, {args.threads} thread(s)")
    for column in ("files", "ms each", "MB at a tenth", "MB at the end", "MB at most", "records", "errors", "planted"):
        table.add_column(column, justify="right")
    for size in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory() as place:
            folder, out = Path(place, "in"), Path(place, "out.jsonl")
            folder.mkdir()
            planted = write_files(folder, args.articles, size)
            seen = run(folder, out, size, args.threads)
            errors = out.with_name("errors.jsonl")
            counts = [sum(1 for _ in path.open("rb")) if path.exists() else 0 for path in (out, errors)]
            memory = (f"{seen[name]:.0f}" for name in ("tenth", "last", "peak"))
            table.add_row(
                f"{size:,}", f"{seen['each']:.2f}", *memory, f"{counts[0]:,}", f"{counts[1]:,}", f"{planted:,}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
