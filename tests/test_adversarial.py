"""Training under changed word embeddings: gradients of a step against those that follow from the definition."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, TrainingArguments

from rasid.config import LossConfig, RunConfig
from rasid.modeling.model import IGNORED, RasidConfig, RasidModel
from rasid.schema import Ontology
from rasid.settings import ModelSettings
from rasid.training.trainer import RasidTrainer, adversarial_change

ONTOLOGY = Ontology.model_validate(
    {"entity_types": ["UNIT"], "relation_types": {"WITH": {"head": ["UNIT"], "tail": ["UNIT"]}}}
)
Batch = dict[str, torch.Tensor]
Gradients = dict[str, torch.Tensor]


@pytest.fixture
def model() -> RasidModel:
    """Without dropout, so that two passes are one and the same."""
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    settings = ModelSettings(ontology=ONTOLOGY).model_dump(mode="json")
    config = RasidConfig(encoder=bert.to_dict(), settings=settings, relation_size=8, dropout=0.0)
    model = RasidModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def batch() -> Batch:
    """Two windows, the second one padded."""
    return {
        "input_ids": torch.tensor([[2, 5, 6, 7, 8, 3], [2, 9, 6, 3, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        "word_pieces": torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]]),
        "tags": torch.tensor([[1, 2, 0, 1], [0, 1, IGNORED, IGNORED]]),
        "proclitics": torch.tensor([[0, IGNORED, IGNORED, 1], [IGNORED, 0, IGNORED, IGNORED]]),
        "entities": torch.tensor([[0, 0, 1, 0], [0, 3, 3, 0], [1, 1, 1, 0]]),
        "pairs": torch.tensor([[0, 1, 0]]),
        "relations": torch.tensor([[[1.0], [0.0]]]),
    }


def trainer(
    model: RasidModel, folder: Path, *, accumulation: int = 1, bf16: bool = False, **loss: float
) -> RasidTrainer:
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", bf16=bf16)
    run = RunConfig(loss=LossConfig(**loss))
    nobody: Any = None
    made = RasidTrainer(model=model, args=arguments, train_dataset=[0], run=run, dev=[], encoder=nobody)
    made.current_gradient_accumulation_steps = accumulation
    return made


def gradients(model: RasidModel) -> Gradients:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def defined(model: RasidModel, batch: Batch, size: float) -> tuple[float, Gradients]:
    """Losses and gradients of both passes, by hand."""
    model = copy.deepcopy(model).train()
    words = model.encoder.get_input_embeddings()
    change = torch.zeros(())
    kept: list[torch.Tensor] = []
    words.register_forward_hook(lambda _, __, output: kept.append(output + change) or kept[-1])
    first = model(**batch).loss
    (gradient,) = torch.autograd.grad(first, kept[0], retain_graph=True)
    change = torch.stack([size * g / g.norm() for g in gradient])
    second = model(**batch).loss
    assert second > first
    (first + second).backward()
    return float(first + second), gradients(model)


def same(a: Gradients, b: Gradients, *, factor: float = 1.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], factor * b[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_gradients_are_those_of_both_passes(size: float, model: RasidModel, batch: Batch, tmp_path: Path) -> None:
    expected, wanted = defined(model, batch, size)
    loss = trainer(model, tmp_path, adversarial=size).training_step(model, batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert not loss.requires_grad
    same(gradients(model), wanted)
    assert not model.encoder.get_input_embeddings()._forward_hooks


def test_gradients_that_are_there_already_change_nothing(model: RasidModel, batch: Batch, tmp_path: Path) -> None:
    """Steps are accumulated; the change of a step's embeddings is that step's own, whatever its loss is divided by."""
    _, wanted = defined(model, batch, 0.5)
    step = trainer(model, tmp_path, accumulation=2, adversarial=0.5).training_step
    step(model, batch)
    step(model, batch)  # upon the gradients of the first one
    same(gradients(model), wanted)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step(model, batch)
    same({name: gradient - 1 for name, gradient in gradients(model).items()}, wanted, factor=0.5)


def test_without_it_there_is_one_pass(model: RasidModel, batch: Batch, tmp_path: Path) -> None:
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = trainer(model, tmp_path).training_step(model, batch)
    assert len(calls) == 1
    found = gradients(model)
    loss = model(**batch).loss
    loss.backward()
    assert float(plain) == pytest.approx(float(loss), rel=1e-6)
    same(found, gradients(model))


def test_together_with_two_passes_under_dropout(model: RasidModel, batch: Batch, tmp_path: Path) -> None:
    """Each pass gets the change of its own counterpart; without dropout, those are the same."""
    expected, wanted = defined(model, batch, 0.5)
    loss = trainer(model, tmp_path, adversarial=0.5, r_drop=1.0).training_step(model, batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    same(gradients(model), wanted)


def test_under_bfloat16(model: RasidModel, batch: Batch, tmp_path: Path) -> None:
    _, wanted = defined(model, batch, 0.5)
    trainer(model, tmp_path, bf16=True, adversarial=0.5).training_step(model, batch)
    for name, found in gradients(model).items():
        assert found.dtype == torch.float32, name
        assert (found - wanted[name]).norm() < 0.1 * wanted[name].norm() + 0.01, name


def test_length_of_the_change() -> None:
    embeddings = torch.randn(3, 5, 4, requires_grad=True)
    weight = torch.randn(3, 5, 4)
    weight[1, 2:] = 0  # padding
    weight[2] = 0  # a window that the loss does not depend on
    (embeddings * weight).sum().backward()
    for scale in (1.0, 1e-12):  # a loss that is almost learned
        embeddings.grad = weight * scale
        change = adversarial_change(embeddings, 0.7)
        torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.tensor([0.7, 0.7, 0.0]))
        assert (change[1, 2:] == 0).all()
        torch.testing.assert_close(change[0] / change[0].norm(), weight[0] / weight[0].norm())
