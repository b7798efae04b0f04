"""Whether the output of a batch that is killed again and again is the same bytes as that of one left alone.

    python benchmarks/interruptions.py data/train.jsonl --kills 50
    python benchmarks/interruptions.py data/train.jsonl --kills 10 --engine ray

Writes articles of a corpus into a folder and reads it once without interruption. Then reads it with `kill -9` at random
moments, the same command each time, until so many processes were killed. Exit status 1 if any output differs.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from rich.console import Console

from rasid.records import read_articles


def command(folder: Path, out: Path, engine: str) -> list[str]:
    """The command line of the batch."""
    return [sys.executable, "-m", "rasid", "predict", str(folder), "--out", str(out), "--engine", engine]


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file or of all files of a folder, by their names."""
    return {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])}


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path, help="JSONL")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--limit", type=int, default=400, help="articles to read")
    parser.add_argument("--format", default="jsonl", choices=["jsonl", "parquet"])
    parser.add_argument("--engine", default="local", choices=["local", "ray"], help="ray writes a folder of parquet")
    parser.add_argument("--seed", type=int, default=13)
    args = parser.parse_args()

    console, moments = Console(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        folder, work = Path(place, "in"), Path(place, "out")
        folder.mkdir()
        for n, article in enumerate(islice(read_articles(args.articles), args.limit)):
            (folder / f"{n:05}.txt").write_text(article.text, encoding="utf-8")
        (folder / "bad.txt").write_bytes(b"\x89PNG\x00\x00")
        out = work / f"records.{'parquet' if args.engine == 'ray' else args.format}"
        batch = command(folder, out, args.engine)

        def outputs() -> list[dict[str, bytes]]:
            return [contents(path) for path in (out, work / "errors.jsonl")]

        began = time.monotonic()
        subprocess.run(batch, stderr=subprocess.DEVNULL, check=False)
        seconds = time.monotonic() - began
        whole, kills, batches, different = outputs(), 0, 0, 0
        while kills < args.kills:
            shutil.rmtree(work)
            batches += 1
            while True:
                process = subprocess.Popen(batch, stderr=subprocess.DEVNULL)
                try:
                    process.wait(moments.uniform(0, seconds) if kills < args.kills else None)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
            different += outputs() != whole
            left = [path.name for path in work.iterdir() if path.name not in (out.name, "errors.jsonl")]
            different += bool(left)
        console.print(f"{kills} kills in {batches} batches of {args.limit} articles: {different} outputs differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
