"""Speed, latency and size of this engine beside what else could read the same texts, in one run and one table.

    python benchmarks/engine.py --articles data/test.jsonl

Every system sits in a process of its own, with its own load time and peak memory (Linux), and they take turns, round by
round, so that a change of the machine's speed hits all. All read the same texts: articles, cut between paragraphs where
they would not fit the 512 pieces of a pipeline. Speeds and ratios are the median (minimum–maximum) of the rounds.

- `int8`: the exported model in ONNX Runtime, whole path: tokenising, network, entities with offsets, relations.
- `float32`: the same model in torch, through the same code.
- `pipeline`: that model's encoder and tag head in a Hugging Face token-classification pipeline, float32: grouped
  tags, no relations. The fastest of some batch sizes counts; latency is that of one article.
- `pipeline, AraBERT-base size`: the same with 12 layers of 768 and 64,000 pieces, random weights that tag nothing, and
  a WordPiece tokenizer trained on these very articles, which cuts them into fewer pieces than AraBERT's own would.
- `peak`: no system but a bound, the time of the texts if every multiplication in a product of matrices of `int8` were
  as fast as in a large product of integers alone (`MatMulInteger` in ONNX Runtime).
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from systems import (
    Articles,
    Checkpoint,
    Engine,
    Peak,
    Pipeline,
    Round,
    count_multiplications,
    make_large_tagger,
    make_tagger,
)

WINDOW = 512  # pieces
WARM_UP = 5  # articles
PAUSE = 0.2  # seconds between turns, in which the threads of the system before stop waiting for work


@dataclass
class System:
    """What is measured.

    Attributes:
        kind: What reads.
        source: What it is made from, the first argument of `kind`.
        pieces: How many its tokenizer makes of all texts, special ones among them.
        load: Seconds to import and load.
        memory: Peak, MB.
    """

    name: str
    kind: type[Engine]
    source: Any
    threads: int
    pieces: int
    load: float = 0.0
    memory: float = 0.0
    rounds: list[Round] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """The batch size that is fastest."""
        return min(self.kind.batches, key=lambda batch: statistics.median(r.totals[batch] for r in self.rounds))

    @property
    def seconds(self) -> list[float]:
        """For all texts, of each round."""
        return [r.totals[self.batch] for r in self.rounds]

    def to_dict(self) -> dict[str, Any]:
        """Everything that was measured."""
        facts = {"name": self.name, "threads": self.threads, "pieces": self.pieces, "batch": self.batch}
        return {**facts, "load": self.load, "memory": self.memory, "rounds": [asdict(r) for r in self.rounds]}


def serve(connection: Connection, system: System, articles: Articles) -> None:
    """The process of a system: loads it, measures whenever it is told to, and tells its peak memory at the end."""
    os.environ |= {"OMP_NUM_THREADS": str(system.threads), "RAYON_NUM_THREADS": str(system.threads)}
    began = time.perf_counter()
    reader = system.kind(system.source, system.threads)
    load = time.perf_counter() - began
    texts = [text for article in articles[:WARM_UP] for text in article]
    for batch in reader.batches:
        reader.read(texts, batch)
    connection.send(load)
    while connection.recv():
        connection.send(reader.measure(articles))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    connection.send(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def measure(systems: Sequence[System], articles: Articles, rounds: int) -> None:
    """Let the systems take turns, and put what they need into them."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        connections: list[Connection] = []
        for system in systems:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, system, articles), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()  # so that the end of the process is the end of what it sends
            connections.append(ours)
            system.load = ours.recv()
        for _ in range(rounds):
            for system, connection in zip(systems, connections, strict=True):
                time.sleep(PAUSE)
                connection.send(True)
                system.rounds.append(connection.recv())
        for system, connection in zip(systems, connections, strict=True):
            connection.send(False)
            system.memory = connection.recv()


def cut(text: str, tokenizers: Sequence[Any]) -> list[str]:
    """An article as texts of whole paragraphs that fit a window; a paragraph that does not is left out."""
    texts: list[str] = []
    for paragraph in filter(str.strip, text.split("\n")):
        longer = f"{texts[-1]}\n{paragraph}" if texts else paragraph
        if texts and fits(longer, tokenizers):
            texts[-1] = longer
        elif fits(paragraph, tokenizers):
            texts.append(paragraph)
    return texts


def fits(text: str, tokenizers: Sequence[Any]) -> bool:
    """Whether all tokenizers make one window of a text."""
    return all(len(tokenizer(text).input_ids) <= WINDOW for tokenizer in tokenizers)


def render(systems: Sequence[System], articles: int) -> str:
    """The table in Markdown."""
    import numpy as np

    lines = [
        "| system | threads | batch | pieces/s | articles/s | int8 is faster by | p50, ms | p95, ms | load, s | MB |",
        "| --- |" + " ---: |" * 9,
    ]
    engines = {system.threads: system for system in systems if system.kind is Engine}
    for system in systems:
        speeds = [articles / seconds for seconds in system.seconds]
        ratios = [own / engine for own, engine in zip(system.seconds, engines[system.threads].seconds, strict=True)]
        latencies = [1000 * seconds for r in system.rounds for seconds in r.latencies]
        bound = not latencies
        cells = [
            system.name,
            str(system.threads),
            str(system.batch) if len(system.kind.batches) > 1 else "",
            f"{system.pieces / statistics.median(system.seconds):,.0f}",
            spread(speeds, ".1f"),
            spread(ratios, ".2f") if system.kind is not Engine else "",
            *("" if bound else f"{np.percentile(latencies, share):.1f}" for share in (50, 95)),
            "" if bound else f"{system.load:.2f}",
            "" if bound else f"{system.memory:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str) -> str:
    """Median (minimum–maximum)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def main() -> None:
    """Prepare the systems and the texts, measure, and print one Markdown table."""
    from rasid.inference import Extractor
    from rasid.records import read_articles
    from rasid.settings import shipped_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=shipped_model(), help="exported model; the shipped one by default"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="torch folder of its training run; by default its int8 weights as float32",
    )
    parser.add_argument("--articles", type=Path, required=True, help="JSONL")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=50, help="articles to read")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    args = parser.parse_args()
    if min(args.rounds, args.limit, *args.threads) < 1:
        parser.error("expected at least one round, article and thread")

    checkpoint = args.checkpoint or args.model
    raw = [article.text for article in read_articles(args.articles)]
    engine = Extractor.load(args.model, threads=1)
    with tempfile.TemporaryDirectory() as work:
        small, large = Path(work, "small"), Path(work, "large")
        tokenizers = make_tagger(checkpoint, small), make_large_tagger(engine.ontology.tags, raw, large)
        articles = [texts for text in raw[: args.limit] if (texts := cut(text, tokenizers))]
        texts = [text for article in articles for text in article]
        windows = sum(len(w.input_ids) for text in texts for w in engine.encoder.encode(text).windows)
        of_small, of_large = (sum(len(tokenizer(text).input_ids) for text in texts) for tokenizer in tokenizers)
        multiplications = count_multiplications(args.model, texts)
        systems = [
            System(name, kind, source, threads, pieces)
            for threads in args.threads
            for name, kind, source, pieces in (
                ("int8", Engine, args.model, windows),
                ("float32", Checkpoint, checkpoint, windows),
                ("pipeline", Pipeline, small, of_small),
                ("pipeline, AraBERT-base size", Pipeline, large, of_large),
                ("peak", Peak, multiplications, windows),
            )
        ]
        measure(systems, articles, args.rounds)
    print(
        f"{len(articles)} articles, {len(texts)} texts, {windows:,} pieces of {multiplications / windows / 1e6:.1f} "
        f"million multiplications, {args.rounds} rounds\n\n{render(systems, len(articles))}"
    )
    if args.json:
        facts = {"articles": len(articles), "texts": len(texts), "multiplications": multiplications}
        result = {**facts, "systems": [system.to_dict() for system in systems]}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
