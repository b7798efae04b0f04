"""How much misspelt text costs a model, by kind of misspelling.

    python benchmarks/noise.py models/rasid-compact data/test.jsonl

Misspells a share of the letters that each kind of `rasid.training.augmentation.NOISE` could change, and prints strict
micro F1 of entities and relations in points of 100, with the loss against the corpus as it stands: the mean over the
seeds.
"""

import argparse
import random
from pathlib import Path

from rasid.inference import Extractor
from rasid.records import Article, read_articles
from rasid.scoring.evaluation import strict_f1
from rasid.training.augmentation import NOISE, add_noise


def measure(extractor: Extractor, articles: list[Article], kinds: list[str], rate: float, seeds: int) -> list[float]:
    """Points of entities and of relations under some kinds of noise, mean over the seeds."""
    total = [0.0, 0.0]
    for seed in range(seeds):
        rng = random.Random(seed)
        scores = strict_f1(extractor, [add_noise(a, rate, rng, kinds) for a in articles])
        total = [points + 100 * score / seeds for points, score in zip(total, scores.values(), strict=True)]
    return total


def main() -> None:
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of an exported model")
    parser.add_argument("articles", type=Path, help="annotated articles, JSONL")
    parser.add_argument("--rate", type=float, default=0.3, help="share of the letters that are misspelt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if not 0 <= args.rate <= 1 or args.seeds < 1:
        parser.error("expected a rate from 0 to 1 and at least one seed")

    extractor = Extractor.load(args.model, threads=args.threads)
    articles = list(read_articles(args.articles, extractor.ontology))
    print(f"{len(articles)} articles, {100 * args.rate:g} % of the letters, mean of {args.seeds} seed(s)\n")
    print("| noise | letters | entities | loss | relations | loss |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    clean = measure(extractor, articles, [], 0, 1)
    print(f"| none | 0 | {clean[0]:.1f} | | {clean[1]:.1f} | |")
    for name, kinds in {**{kind: [kind] for kind in NOISE}, "all": list(NOISE)}.items():
        letters = sum(len(NOISE[kind][0].findall(a.text)) for kind in kinds for a in articles)
        points = measure(extractor, articles, kinds, args.rate, args.seeds)
        cells = (f"{now:.1f} | {before - now:.1f}" for before, now in zip(clean, points, strict=True))
        print(f"| {name} | {letters:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
