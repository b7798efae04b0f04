"""Speed of an exported int8 model against its torch float32 checkpoint: the same windows, side by side.

    python benchmarks/speed.py runs/compact data/test.jsonl

Both read the same windows through the same code; only the backend differs. They take turns, round by round, so that a
change of the machine's speed hits both. Prints pieces per second of each (whole path: tokenising, network, decoding),
the median of the rounds' ratios, and of the exported model the load time and the peak memory in a process of its own
(Linux).
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rasid.checkpoint import load_torch_extractor
from rasid.inference import Extractor
from rasid.records import read_articles

LOAD = """
import time; began = time.perf_counter()
import re, sys
from rasid.inference import Extractor
extractor = Extractor.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter() - began
from rasid.records import read_articles
for _ in extractor.pipe(article.text for article in read_articles(sys.argv[3])): pass
print(loaded, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


def measure(extractor: Extractor, texts: list[str]) -> float:
    """Seconds for all texts."""
    began = time.perf_counter()
    for _ in extractor.pipe(texts):
        pass
    return time.perf_counter() - began


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of a training run, with onnx/ and torch/ in it")
    parser.add_argument("articles", type=Path, help="JSONL")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=100, help="articles to read")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    texts = [a.text for a in read_articles(args.articles)][: args.limit]
    int8 = Extractor.load(args.run / "onnx", threads=args.threads)
    fp32 = load_torch_extractor(args.run / "torch")
    pieces = sum(len(w.input_ids) for text in texts for w in int8.encoder.encode(text).windows)
    for extractor in (int8, fp32):
        measure(extractor, texts[:5])
    rounds = [(measure(int8, texts), measure(fp32, texts)) for _ in range(args.rounds)]

    command = [sys.executable, "-c", LOAD, str(args.run / "onnx"), str(args.threads), str(args.articles)]
    load, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    title = f"{len(texts)} articles, {pieces:,} pieces, {args.threads} thread(s), median of {args.rounds} rounds"
    table = Table(title=title)
    for column in ("", "pieces/s", "articles/s"):
        table.add_column(column, justify="left" if not column else "right")
    for name, times in zip(("int8, ONNX Runtime", "float32, torch"), zip(*rounds, strict=True), strict=True):
        seconds = statistics.median(times)
        table.add_row(name, f"{pieces / seconds:,.0f}", f"{len(texts) / seconds:,.1f}")
    console = Console()
    console.print(table)
    ratios = sorted(slow / fast for fast, slow in rounds)
    middle = statistics.median(ratios)
    console.print(f"int8 is {middle:.2f}× as fast ({ratios[0]:.2f}–{ratios[-1]:.2f} over the rounds)")
    console.print(f"import and load {float(load):.2f} s, peak memory {float(memory):.0f} MB")


if __name__ == "__main__":
    main()
