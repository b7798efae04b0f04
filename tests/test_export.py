import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import set_seed

from rasid.decoding import LIKENESS
from rasid.errors import ConfigError, DataError, ModelError
from rasid.inference import Extractor, OnnxBackend
from rasid.modeling import export as exporting
from rasid.modeling.checkpoint import TorchBackend, create_model, load_checkpoint, load_torch_extractor
from rasid.modeling.export import check_parity, export, export_fp32, quantize
from rasid.records import Article, read_articles
from rasid.scoring.calibration import DevScores, dev_scores
from rasid.scoring.evaluation import strict_f1
from rasid.settings import load_settings
from rasid.training.trainer import save_checkpoint

MISSING = ("torch", "transformers", "datasets", "accelerate", "omegaconf", "onnx", "safetensors", "jinja2")
EXPORTED = {"config.json", "tokenizer.json", "encoder.onnx", "relations.onnx"}


@pytest.fixture(scope="module", params=[0, 1], ids=["", "layers"])
def checkpoint(
    request: pytest.FixtureRequest,
    debug_run: Path,
    configure: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A torch checkpoint without and with layers of its own for relations."""
    if request.param == 0:
        return debug_run / "torch"
    folder = tmp_path_factory.mktemp("layers")
    set_seed(1)
    options = (f"base={debug_run / 'base'}", f"heads.relation_layers={request.param}")
    model, tokenizer = create_model(configure(folder, *options))
    with torch.no_grad():  # so that no layer is a copy of another one
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def torch_backend(checkpoint: Path) -> TorchBackend:
    return TorchBackend(load_checkpoint(checkpoint).eval())


@pytest.fixture(scope="module")
def fp32(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp32")
    export_fp32(load_checkpoint(checkpoint), folder)
    return folder


@pytest.fixture(scope="module")
def int8(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    quantize(fp32, folder)
    return folder


@pytest.fixture
def toy_dev(toy: dict[str, Path]) -> list[Article]:
    return list(read_articles(toy["dev"]))


def window(pieces: int, words: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    places = np.sort(random.choice(np.arange(1, pieces - 1), size=words, replace=words > pieces - 2))
    return random.integers(4, 500, size=pieces), places


def relation_inputs(states: np.ndarray, entities: int, pairs: int) -> tuple[np.ndarray, ...]:
    """Word tags, entities that fill all words evenly, and pairs of them with a likeness of their names."""
    words = len(states)
    bounds = np.linspace(0, words, entities + 1).astype(np.int64)
    spans = np.stack([bounds[:-1], bounds[1:] - 1], 1)
    tags = np.random.default_rng(1).integers(0, 13, size=words)
    every = np.stack(np.triu_indices(entities, 1), 1).astype(np.int64)
    return tags, spans, np.column_stack([every, np.arange(len(every)) % LIKENESS])[:pairs]


# Graphs

SHAPES = [(3, 1), (4, 2), (17, 9), (60, 40), (130, 64), (256, 254), (20, 30)]


@pytest.mark.parametrize(("pieces", "words"), SHAPES)
def test_float32_graphs_equal_torch(torch_backend: TorchBackend, fp32: Path, pieces: int, words: int) -> None:
    onnx_backend = OnnxBackend(fp32)
    ids, places = window(pieces, words)
    expected = torch_backend.encode(ids, places)
    for a, b in zip(onnx_backend.encode(ids, places), expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    states = expected[2]
    for entities, pairs in ((2, 1), (min(words, 7), 21), (min(words, 40), 780)):
        if entities >= 2 and entities <= words:
            inputs = relation_inputs(states, entities, pairs)
            a, b = onnx_backend.relate(states, *inputs), torch_backend.relate(states, *inputs)
            assert a.shape == b.shape == (len(inputs[2]), 2, 12)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_no_normalisation_is_slow(fp32: Path, int8: Path, form: str) -> None:
    for name in ("encoder.onnx", "relations.onnx"):
        operators = {node.op_type for node in onnx.load({"fp32": fp32, "int8": int8}[form] / name).graph.node}
        assert "SimplifiedLayerNormalization" in operators
        assert not operators & {"LayerNormalization", "SkipLayerNormalization"}


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_attention_and_gelu_are_one_operator_each(fp32: Path, int8: Path, form: str, checkpoint: Path) -> None:
    config = load_checkpoint(checkpoint).config
    expected = {"encoder.onnx": config.encoder["num_hidden_layers"], "relations.onnx": config.relation_layers}
    for name, number in expected.items():
        model = onnx.load({"fp32": fp32, "int8": int8}[form] / name)
        operators = Counter(node.op_type for node in model.graph.node)
        assert operators["Attention"] == operators["BiasGelu"] == number
        assert not {"Softmax", "Erf"} & set(operators)


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_no_pairs(fp32: Path, int8: Path, form: str) -> None:
    backend = OnnxBackend({"fp32": fp32, "int8": int8}[form])
    states = backend.encode(*window(9, 5))[2]
    tags, spans, none = relation_inputs(states, 1, 0)
    assert backend.relate(states, tags, spans, none).shape == (0, 2, 12)


def test_int8_graphs_are_close_and_small(torch_backend: TorchBackend, fp32: Path, int8: Path) -> None:
    backend = OnnxBackend(int8)
    for pieces, words in SHAPES:
        ids, places = window(pieces, words)
        for a, b in zip(backend.encode(ids, places), torch_backend.encode(ids, places), strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() < 0.1 * max(1.0, float(np.abs(b).max()))
    for name in ("encoder.onnx", "relations.onnx"):
        # Of so small a model, much is not weights.
        assert (int8 / name).stat().st_size < 0.95 * (fp32 / name).stat().st_size


def test_weights_use_seven_bits(int8: Path) -> None:
    for name in ("encoder.onnx", "relations.onnx"):
        graph = onnx.load(int8 / name).graph
        weights = [numpy_helper.to_array(i) for i in graph.initializer if i.data_type == onnx.TensorProto.INT8]
        matrices = [w for w in weights if w.ndim == 2]
        assert len(matrices) > 5
        assert all(-64 <= w.min() <= w.max() <= 64 for w in matrices)


@pytest.mark.parametrize("text", ["", " \n", "حلب", "حلب\n\nحماة", ".", "دخل اللواء " * 300])
def test_texts_of_any_size(debug_run: Path, text: str) -> None:
    extractor = Extractor.load(debug_run / "onnx", threads=1)
    found = extractor(text)
    assert found.text == text
    if not text.strip():
        assert found.entities == ()


def test_relating_one_entity(debug_run: Path) -> None:
    extractor = Extractor.load(debug_run / "onnx", threads=1)
    entity = {"id": "a", "type": "LOCATION", "start": 4, "end": 7, "text": "حلب"}
    article = Article.model_validate({"id": "x", "text": "دخل حلب", "entities": [entity]})
    assert extractor.relate(article).relations == ()


# The exported folder


def test_export_writes_exactly_the_model(toy_run: Path, toy_dev: list[Article], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    facts = export(toy_run / "torch", tmp_path, toy_dev, max_drop=5)
    assert {p.name for p in tmp_path.iterdir()} == EXPORTED | {"notes.txt"}
    assert facts["bytes"] == sum((tmp_path / name).stat().st_size for name in EXPORTED)
    for form, extractor in (("fp32", load_torch_extractor(toy_run / "torch")), ("int8", Extractor.load(tmp_path))):
        assert facts[form] == dev_scores(extractor, toy_dev).f1
        assert facts[form]["entity_f1"] > 0.9
    torch_settings, settings = load_settings(toy_run / "torch"), load_settings(tmp_path)
    chosen = {name: facts[name] for name in ("relation_threshold", "relation_thresholds")}
    assert settings == torch_settings.model_copy(update=chosen)
    assert facts["int8"] == strict_f1(Extractor.load(tmp_path), toy_dev)  # under the thresholds that it was given


def test_the_exported_model_has_the_thresholds_that_suit_it(
    toy_run: Path, toy_dev: list[Article], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([DevScores(0.9, 0.9, 0.3, {}), DevScores(0.9, 0.9, 0.6, {"GOES": 0.45})])
    monkeypatch.setattr(exporting, "dev_scores", lambda *_: next(scores))
    export(toy_run / "torch", tmp_path, toy_dev)
    assert Extractor.load(tmp_path).settings.thresholds == (0.45,)
    assert Extractor.load(tmp_path).settings.relation_threshold == 0.6


def test_exported_model_needs_no_torch(toy_run: Path) -> None:
    text = "وصل لواء الصقور إلى حماة أمس.\nقصف مدفعي بحلب ولا صلة لفرقة الرعد به."
    program = f"""
import sys
for name in {MISSING!r}:
    sys.modules[name] = None  # as if it were not installed
from rasid.inference import Extractor
sys.stdout.buffer.write(Extractor.load({str(toy_run / "onnx")!r})({text!r}).to_json().encode())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr.decode()
    found = Article.model_validate_json(result.stdout)
    assert len(found.entities) > 1
    assert found == Extractor.load(toy_run / "onnx")(text)


def test_loading_an_export_is_quiet(debug_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Extractor.load(debug_run / "onnx")("حلب")
    assert not caplog.records


# The gate


@pytest.mark.parametrize(
    ("before", "after", "max_drop", "named"),
    [
        ((0.9, 0.8), (0.9, 0.8), 0.5, []),
        ((0.9, 0.8), (0.896, 0.796), 0.5, []),
        ((0.9, 0.8), (0.99, 0.99), 0.5, []),
        ((0.9, 0.8), (0.89, 0.9), 0.5, ["entity_f1 90.00 → 89.00, 1.00 points lost"]),
        ((0.9, 0.8), (0.91, 0.7), 0.5, ["relation_f1 80.00 → 70.00, 10.00 points lost"]),
        ((0.9, 0.8), (0.1, 0.0), 50, ["entity_f1 90.00", "relation_f1 80.00"]),
    ],
)
def test_check_parity(before: tuple, after: tuple, max_drop: float, named: list[str]) -> None:
    scores = [dict(zip(("entity_f1", "relation_f1"), pair, strict=True)) for pair in (before, after)]
    if not named:
        check_parity(*scores, max_drop)
        return
    with pytest.raises(ModelError) as error:
        check_parity(*scores, max_drop)
    message = str(error.value)
    assert message.count("→") == len(named)
    assert all(part in message for part in named)
    assert f"at most {max_drop} allowed" in message
    assert "export.max_drop" in message


def damage(part: str) -> Callable[[Path, Path], None]:
    """A quantisation that loses the weights of one graph."""

    def broken(source: Path, target: Path) -> None:
        quantize(source, target)
        model = onnx.load(source / part)
        for weight in model.graph.initializer:
            array = numpy_helper.to_array(weight)
            if array.ndim == 2 and array.dtype == np.float32:
                weight.CopyFrom(numpy_helper.from_array(np.zeros_like(array), weight.name))
        onnx.save(model, target / part)

    return broken


@pytest.mark.parametrize(("part", "lost"), [("encoder.onnx", "entity_f1"), ("relations.onnx", "relation_f1")])
def test_a_damaged_model_is_not_written(
    part: str, lost: str, toy_run: Path, toy_dev: list[Article], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "quantize", damage(part))
    with pytest.raises(
        ModelError, match=rf"not exported: quantisation costs too much on dev \(.*{lost} 1?\d\d\.\d\d →"
    ):
        export(toy_run / "torch", tmp_path / "new", toy_dev, max_drop=0.5)
    assert not (tmp_path / "new").exists()


def test_a_closed_gate_leaves_an_older_model_alone(
    toy_run: Path, toy_dev: list[Article], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    export(toy_run / "torch", folder, toy_dev, max_drop=5)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(exporting, "quantize", damage("encoder.onnx"))
    with pytest.raises(ModelError):
        export(toy_run / "torch", folder, toy_dev, max_drop=0.5)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_export_of_no_checkpoint(tmp_path: Path, toy_dev: list[Article], debug_run: Path) -> None:
    for checkpoint in (tmp_path, debug_run / "base", debug_run / "onnx"):
        with pytest.raises(ModelError):
            export(checkpoint, tmp_path / "out", toy_dev)
    assert not (tmp_path / "out").exists()


def test_the_gate_needs_articles(toy_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no articles for the parity gate"):
        export(toy_run / "torch", tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_export_onto_a_file(toy_run: Path, toy_dev: list[Article], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file: cannot be made: .*; give another folder"):
        export(toy_run / "torch", tmp_path / "file", toy_dev, max_drop=5)


# Ontologies without relations


@pytest.fixture(scope="module")
def spans_only(toy: dict[str, Path], configure: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run for entities alone."""
    from rasid.training.run import run

    folder = tmp_path_factory.mktemp("spans")
    (folder / "ontology.yaml").write_text("entity_types: [UNIT, PLACE]\nproclitics: وبل\n", encoding="utf-8")
    for split in ("train", "dev"):
        articles = [a.model_copy(update={"relations": ()}) for a in read_articles(toy[split])]
        (folder / f"{split}.jsonl").write_text("".join(a.to_json() + "\n" for a in articles), encoding="utf-8")
    data = [f"data.train=[{folder / 'train.jsonl'}]", f"data.dev={folder / 'dev.jsonl'}", "data.test=null"]
    rates = ["training.encoder_learning_rate=3e-3", "training.head_learning_rate=3e-3", "training.epochs=8"]
    run(configure(folder / "run", f"ontology={folder / 'ontology.yaml'}", *data, *rates))
    return folder / "run"


@pytest.mark.parametrize("load", [load_torch_extractor, Extractor.load])
def test_model_without_relations(load: Callable[[Path], Extractor], spans_only: Path) -> None:
    extractor = load(spans_only / ("onnx" if load == Extractor.load else "torch"))
    assert extractor.ontology.relation_names == ()
    found = extractor("وصل لواء الصقور إلى حلب أمس.")
    assert {e.type for e in found.entities} == {"UNIT", "PLACE"}
    assert found.relations == ()
    assert extractor.relate(found).relations == ()


def test_export_without_relations_has_one_graph(spans_only: Path) -> None:
    assert {p.name for p in (spans_only / "onnx").glob("*.onnx")} == {"encoder.onnx"}
    metrics = json.loads((spans_only / "onnx" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["splits"]["dev"]["relations"] == {}
    assert metrics["training"]["epochs"][-1]["mean_f1"] == metrics["training"]["epochs"][-1]["entity_f1"] > 0.9
    card = (spans_only / "onnx" / "README.md").read_text(encoding="utf-8")
    assert "| relations" not in card
    assert "| UNIT |" in card
