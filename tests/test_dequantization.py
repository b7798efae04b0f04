import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from rasid.encoding import TextEncoder
from rasid.errors import ModelError
from rasid.modeling.checkpoint import create_model, load_checkpoint, load_torch_extractor, torch_extractor
from rasid.modeling.dequantization import dequantize
from rasid.modeling.export import export_fp32, quantize
from rasid.modeling.model import RasidModel
from rasid.records import Article, read_articles
from rasid.scoring.calibration import dev_scores
from rasid.settings import ENCODER_FILE, RELATIONS_FILE, shipped_model
from rasid.training.trainer import save_checkpoint

LEVELS = 127  # of a weight's column: 7 bits
FORMS = {
    "plain": [],
    "layers": ["heads.relation_layers=1"],
    "crf": ["heads.crf=true"],
    "biaffine": ["heads.scorer=biaffine"],
    "markers": ["heads.scorer=markers", "heads.relation_layers=1"],
}


@pytest.fixture(scope="module", params=FORMS)
def both(
    request: pytest.FixtureRequest,
    debug_run: Path,
    configure: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RasidModel, Path]:
    """A model with random weights everywhere, biases too, and its exported folder."""
    folder = tmp_path_factory.mktemp(request.param)
    model, tokenizer = create_model(configure(folder, f"base={debug_run / 'base'}", *FORMS[request.param]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(model, tokenizer, folder / "torch")
    for name in ("fp32", "int8"):
        (folder / name).mkdir()
    export_fp32(model, folder / "fp32")
    quantize(folder / "fp32", folder / "int8")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / "torch" / name, folder / "int8" / name)
    return load_checkpoint(folder / "torch"), folder / "int8"


def test_every_weight_comes_back(both: tuple[RasidModel, Path]) -> None:
    model, folder = both
    found = dict(dequantize(folder).named_parameters())
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        step = (weight.amax() - weight.amin()) / LEVELS if weight.ndim > 1 else 0.0
        assert (found[name] - weight).abs().max() <= step, name


def test_a_missing_weight_is_told(both: tuple[RasidModel, Path], tmp_path: Path) -> None:
    _, folder = both
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / ENCODER_FILE
    model = onnx.load(path)
    (node,) = [node for node in model.graph.node if node.name == "/tag_head/MatMul_quant"]
    node.name = "other"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"model: its graphs lack 1 weights of its config, tag_head\.weight"):
        dequantize(tmp_path / "model")


@pytest.fixture
def exported(toy_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_run / "onnx", tmp_path / "model")


@pytest.mark.parametrize("name", [ENCODER_FILE, RELATIONS_FILE])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_folder_that_is_not_whole(exported: Path, name: str, how: str) -> None:
    path = exported / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    problem = {"gone": "missing, so this folder is neither", "cut": "cannot be read as ONNX"}[how]
    with pytest.raises(ModelError, match=problem) as error:
        dequantize(exported)
    assert str(error.value).startswith(f"{path}: ")


def test_zero_points_and_scales(exported: Path) -> None:
    """An embedding's rows, by hand."""
    graph = onnx.load(exported / ENCODER_FILE).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stem = "model.encoder.embeddings.word_embeddings.weight"
    rows, zero, scale = (arrays[f"{stem}_{part}"] for part in ("quantized", "zero_point", "scale"))
    expected = (rows.astype(np.int64) - int(zero)) * float(scale)
    np.testing.assert_allclose(
        dequantize(exported).encoder.embeddings.word_embeddings.weight.detach().numpy(), expected, rtol=1e-6
    )


def test_what_an_exported_model_knows_is_kept(toy_run: Path, toy: dict[str, Path]) -> None:
    dev = list(read_articles(toy["dev"]))
    scores = dev_scores(load_torch_extractor(toy_run / "onnx"), dev)
    assert scores.f1["entity_f1"] > 0.9 and scores.f1["relation_f1"] > 0.9


def test_training_goes_on_from_an_exported_model(
    toy_run: Path, configure_toy: Callable[..., Any], toy: dict[str, Path], tmp_path: Path
) -> None:
    from rasid.training.run import run

    rates = ("training.encoder_learning_rate=1e-6", "training.head_learning_rate=1e-6", "export.max_drop=5")
    result = run(configure_toy(tmp_path / "run", f"start={toy_run / 'onnx'}", *rates))
    assert result.dev["entity_f1"] > 0.9  # with such rates, one epoch alone learns nothing


def test_the_shipped_model_is_a_start_by_its_name(configure: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = create_model(configure(tmp_path, config="tune"))
    expected = dequantize(shipped_model())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert tokenizer.pad_token_id == model.encoder.config.pad_token_id == 1
    article = Article(id="x", text="وصل رتل لقوات التحالف إلى قاعدة الشدادي.", entities=(), relations=())
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    again = torch_extractor(model.eval(), TextEncoder.load(tmp_path / "saved", model.model_settings().text))
    assert {e.text for e in again(article.text).entities} >= {"قاعدة الشدادي"}
