"""Small corpora and finished runs that several tests share. Nothing here needs a network or a trained encoder."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"

Configure = Callable[..., Any]  # returns a RunConfig

UNITS = ("اللواء الأول", "الفرقة الثالثة", "كتيبة النسور", "لواء الصقور", "الفوج العاشر", "فرقة الرعد")
PLACES = ("حلب", "دير الزور", "حماة", "الرقة", "عين العرب", "إدلب")
TOY_ONTOLOGY = """
entity_types: [UNIT, PLACE]
relation_types:
  GOES: {head: [UNIT], tail: [PLACE]}
proclitics: وبل
"""


def write_jsonl(path: Path, records: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def toy_article(number: int, unit: str, place: str) -> dict[str, object]:
    """One sentence of one of three forms; in the third the unit has a proclitic, and nobody goes anywhere."""
    forms = ("وصل {unit} إلى {place} أمس.", "غادر {unit} نحو {place} صباحا.", "قصف مدفعي بـ{place} ولا صلة ل{unit} به.")
    form = forms[number % len(forms)]
    text = form.format(unit=unit, place=place)
    spans = {"UNIT": unit, "PLACE": place}
    entities = [
        {"id": kind, "type": kind, "start": text.index(s), "end": text.index(s) + len(s), "text": s}
        for kind, s in spans.items()
    ]
    relations = [] if number % 3 == 2 else [{"type": "GOES", "head": "UNIT", "tail": "PLACE"}]
    return {"id": f"toy-{number}", "text": text, "entities": entities, "relations": relations}


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first articles of each split of the project's corpus."""
    folder = tmp_path_factory.mktemp("corpora")
    paths = {}
    for split, articles in {"train": 24, "dev": 6, "test": 4}.items():
        with (DATA / f"{split}.jsonl").open(encoding="utf-8") as lines:
            paths[split] = folder / f"{split}.jsonl"
            paths[split].write_text("".join(itertools.islice(lines, articles)), encoding="utf-8")
    return paths


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An ontology of two types and one relation, with corpora that are easy to learn."""
    folder = tmp_path_factory.mktemp("toy")
    pairs = list(itertools.product(UNITS, PLACES))
    articles = [toy_article(n, *pairs[n // 3]) for n in range(3 * len(pairs))]
    random.Random(0).shuffle(articles)
    (folder / "ontology.yaml").write_text(TOY_ONTOLOGY, encoding="utf-8")
    return {
        "ontology": folder / "ontology.yaml",
        "train": write_jsonl(folder / "train.jsonl", articles[:90]),
        "dev": write_jsonl(folder / "dev.jsonl", articles[90:]),
    }


@pytest.fixture(scope="session")
def configure(corpora: dict[str, Path]) -> Configure:
    """`configure(output, *overrides, config="debug")`: a config of configs/ over the small corpora."""
    from rasid.config import load_config

    def make(output: Path, *overrides: str, config: str = "debug"):
        small = [
            f"output={output}",
            f"ontology={DATA / 'ontology.yaml'}",
            f"data.train=[{corpora['train']}]",
            f"data.dev={corpora['dev']}",
            f"data.test={corpora['test']}",
            "training.precision=fp32",
        ]
        return load_config(ROOT / "configs" / f"{config}.yaml", [*small, *overrides])

    return make


@pytest.fixture(scope="session")
def configure_toy(configure: Configure, toy: dict[str, Path]) -> Configure:
    """`configure_toy(output, *overrides)`: debug.yaml over the toy ontology and corpora."""

    def make(output: Path, *overrides: str):
        data = [f"data.train=[{toy['train']}]", f"data.dev={toy['dev']}", "data.test=null"]
        return configure(output, f"ontology={toy['ontology']}", *data, *overrides)

    return make


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory: pytest.TempPathFactory, configure: Configure) -> Path:
    """The output folder of a finished run of configs/debug.yaml over small corpora."""
    from rasid.training.run import run

    output = tmp_path_factory.mktemp("debug") / "run"
    run(configure(output))
    return output


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory, configure_toy: Configure) -> Path:
    """The output folder of a run that has learned the toy corpus."""
    from rasid.training.run import run

    output = tmp_path_factory.mktemp("toy") / "run"
    rates = ("training.encoder_learning_rate=3e-3", "training.head_learning_rate=3e-3")
    run(configure_toy(output, "training.epochs=12", "training.patience=12", "export.max_drop=5", *rates))
    return output
