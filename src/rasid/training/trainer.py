"""Fine-tuning: a thin subclass of the Trainer, judged on dev by the extractor that users run."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerControl,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from rasid.bases.base import describe_base
from rasid.bases.random_base import RANDOM, make_random_base
from rasid.config import RunConfig, TrainingConfig
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError
from rasid.modeling.checkpoint import create_model, torch_extractor
from rasid.modeling.model import IGNORED, RasidModel, RasidOutput
from rasid.records import Article
from rasid.scoring.calibration import DevScores, dev_scores
from rasid.settings import WEIGHTS_FILE
from rasid.training.augmentation import augment
from rasid.training.dataset import Collator, build_dataset, label_counts
from rasid.training.distillation import distil

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
BEST = "mean_f1"


class RasidTrainer(Trainer):  # type: ignore[misc]
    """Two learning rates, and evaluation through the extractor instead of a loop over batches."""

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(self, *args: Any, run: RunConfig, dev: Sequence[Article], encoder: TextEncoder, **kwargs: Any):
        self.run_config = run
        self.dev = dev
        self.text_encoder = encoder
        self.best: DevScores | None = None  # of the epochs since the start, or since the last interruption
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; the heads, which start from nothing, learn faster than the encoder. Only matrices decay."""
        if self.optimizer is None:
            training = self.run_config.training
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            module: Any = self.model if model is None else model
            for name, parameter in module.named_parameters():
                rate = learning_rate(name, training, module.encoder.config.num_hidden_layers)
                groups.setdefault((rate, training.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
                fused=True,  # a step of training on a CPU takes a sixth less
            )
        return self.optimizer

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The model's loss or, with R-Drop, the mean of two passes' and how far they are apart."""
        first = model(**inputs)
        if not (weight := self.run_config.loss.r_drop):
            return first.loss
        second = model(**inputs)
        apart = divergence(first, second, inputs["tags"] != IGNORED)
        return (first.loss + second.loss) / 2 + weight * apart

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """A forward and a backward pass and, where the loss is adversarial, both again under changed word embeddings.

        The gradients of the two add up, as do the losses.
        """
        loss: Tensor
        if not (size := self.run_config.loss.adversarial):
            loss = super().training_step(model, inputs, *args, **kwargs)
            return loss
        words = self.accelerator.unwrap_model(model).encoder.get_input_embeddings()
        seen: list[Tensor] = []  # one for each time that a pass calls the model

        def watch(_: torch.nn.Module, __: Any, output: Tensor) -> None:
            output.retain_grad()
            seen.append(output)

        def disturb(_: torch.nn.Module, __: Any, output: Tensor) -> Tensor:
            return output + adversarial_change(seen.pop(0), size)

        with words.register_forward_hook(watch):
            loss = super().training_step(model, inputs, *args, **kwargs)
        with words.register_forward_hook(disturb):
            loss = loss + super().training_step(model, inputs, *args, **kwargs)
        return loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Strict F1 of entities and relations on dev, and their mean, each in [0, 1]."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        scores = dev_scores(torch_extractor(model, self.text_encoder), self.dev)
        model.train(training)
        if self.best is None or scores.mean_f1 > self.best.mean_f1:
            self.best = scores
        numbers = scores.f1 | {BEST: scores.mean_f1}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def learning_rate(name: str, training: TrainingConfig, layers: int) -> float:
    """Peak learning rate of a parameter of the model; one `layer_decay` less for each layer of the encoder above it."""
    if name.startswith("relation_head.layers."):
        return training.encoder_learning_rate
    if not name.startswith("encoder."):
        return training.head_learning_rate
    number = re.search(r"\.layers?\.(\d+)\.", name)
    depth = int(number[1]) + 1 if number else 0  # what is in no layer is below all: the embeddings
    return training.encoder_learning_rate * training.layer_decay ** (layers - depth)


def adversarial_change(embeddings: Tensor, size: float) -> Tensor:
    """What raises the loss most, by its gradient, if added to word embeddings [B, S, H]: `size` long in each window."""
    assert embeddings.grad is not None
    direction = F.normalize(embeddings.grad.flatten(1), dim=1, eps=torch.finfo(embeddings.grad.dtype).tiny)
    return size * direction.view_as(embeddings)


def divergence(first: RasidOutput, second: RasidOutput, real: Tensor) -> Tensor:
    """How far the tags and relations of two passes are apart: mean Kullback-Leibler divergence of both ways, per word.

    Args:
        first: One pass.
        second: The other.
        real: bool [B, W], true for real words.
    """
    total = torch.zeros((), device=real.device)
    for log_p, log_q in zip(_log_probabilities(first, real), _log_probabilities(second, real), strict=True):
        total = total + F.kl_div(log_p, log_q, reduction="sum", log_target=True)
        total = total + F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return total / (2 * real.sum())


def _log_probabilities(output: RasidOutput, real: Tensor) -> tuple[Tensor, ...]:
    """Of the tags of real words, and of each relation to hold and not to."""
    assert output.tag_logits is not None and output.relation_logits is not None
    tags = F.log_softmax(output.tag_logits[real].float(), -1)
    return tags, F.logsigmoid(output.relation_logits), F.logsigmoid(-output.relation_logits)


def uses_bfloat16(precision: str) -> bool:
    """Whether to train in bfloat16, as `precision` says: always, never, or where the GPU or processor multiplies it.

    Raises:
        ConfigError: if bf16 is asked for where nothing computes in it.
    """
    able = _computes_bfloat16()
    if precision == "bf16" and not able:
        raise ConfigError("precision=bf16: neither processor nor GPU computes in bfloat16; use auto or fp32")
    return able and precision != "fp32"


def _computes_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def on_this_machine(model: PreTrainedModel) -> PreTrainedModel:
    """The model, set to the attention that trains fastest here; the numbers are the same."""
    if not torch.cuda.is_available():  # on the CPU, the backward pass of torch's fused one is slow
        model.set_attn_implementation("eager")
    return model


def training_arguments(run: RunConfig) -> TrainingArguments:
    """The Trainer's arguments for a run.

    Raises:
        ConfigError: if bf16 is asked for where nothing computes in it.
    """
    training: TrainingConfig = run.training
    return TrainingArguments(
        output_dir=str(run.output / CHECKPOINTS),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=training.warmup,
        max_grad_norm=training.clip,
        bf16=uses_bfloat16(training.precision),
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=training.average,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{BEST}",
        greater_is_better=True,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        remove_unused_columns=False,
        dataloader_num_workers=training.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=20,
        report_to="none",
        seed=run.seed,
    )


def last_checkpoint(folder: Path) -> str | None:
    """Where an interrupted run goes on: the last checkpoint in its folder; None for a new run."""
    last: str | None = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last:
        logger.info("going on from %s", last)
    return last


def fit(
    run: RunConfig, train: Sequence[Article], dev: Sequence[Article]
) -> tuple[RasidModel, PreTrainedTokenizerFast, dict[str, Any], DevScores]:
    """Train, or go on where an interrupted run of the same output folder stopped.

    Returns:
        The best model on dev, in evaluation mode; its tokenizer; facts: scores per epoch, seconds and more; and its
        scores on dev.

    Raises:
        ConfigError, ModelError, DataError: as the parts do.
    """
    set_seed(run.seed)
    base = run.base
    if run.base == RANDOM and run.start is None:
        with PartialState().main_process_first():  # the others then write the same again, one after another
            folder = make_random_base((a.text for a in train), run.output / "base")
        run = run.model_copy(update={"base": str(folder)})
    model, tokenizer = create_model(run)
    settings = model.config.model_settings()
    encoder = TextEncoder(tokenizer.backend_tokenizer, settings.text)
    copies = list(augment(train, settings.ontology, run.augmentation, run.seed))
    articles = [*train, *copies]
    if run.distillation.teachers:
        dataset, unpredictable = distil(articles, encoder, settings, run.distillation, run.seed)
    else:
        dataset, unpredictable = build_dataset(articles, encoder, settings)
    logger.info("%d windows of %d articles; %s", len(dataset), len(articles), unpredictable)
    logger.info("labels: %s", label_counts(dataset, settings.ontology))
    trainer = RasidTrainer(
        model=on_this_machine(model),
        args=training_arguments(run),
        train_dataset=dataset,
        eval_dataset=[],
        data_collator=Collator(settings.ontology, tokenizer.pad_token_id or 0),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=run.training.patience)],
        run=run,
        dev=dev,
        encoder=encoder,
    )
    checkpoints = run.output / CHECKPOINTS
    last = last_checkpoint(checkpoints)
    result = trainer.train(resume_from_checkpoint=last)
    history = [
        {k.removeprefix("eval_"): v for k, v in entry.items()}
        for entry in trainer.state.log_history
        if f"eval_{BEST}" in entry
    ]
    model, scores = trainer.model.eval(), trainer.best
    if scores is None or scores.mean_f1 != trainer.state.best_metric:  # the best epoch was before an interruption
        scores = dev_scores(torch_extractor(model, encoder), dev)
    if run.training.average > 1:
        scores = _take_average(model, checkpoints, scores, encoder, dev)
    model.config.settings = scores.calibrate(settings).model_dump(mode="json")
    facts = {
        "epochs": history,
        "best": scores.mean_f1,
        "base": describe_base(base),
        "seconds": None if last else round(result.metrics["train_runtime"], 1),  # of the last leg alone
        "windows": len(dataset),
        "unpredictable": vars(unpredictable),
    }
    return model, tokenizer, facts, scores


def _take_average(
    model: RasidModel, checkpoints: Path, best: DevScores, encoder: TextEncoder, dev: Sequence[Article]
) -> DevScores:
    """Put the mean of the saved epochs' weights into the model, if it is better on dev than the best one of them."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = [load_file(folder / WEIGHTS_FILE) for folder in sorted(checkpoints.glob("checkpoint-*"))]
    model.load_state_dict({name: torch.stack([one[name] for one in saved]).mean(0) for name in saved[0]})
    scores = dev_scores(torch_extractor(model, encoder), dev)
    logger.info("mean of %d epochs: %s; best single one: %s", len(saved), scores, best)
    if scores.mean_f1 > best.mean_f1:
        return scores
    model.load_state_dict(kept)
    return best


def save_checkpoint(model: RasidModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint: config, safetensors weights, tokenizer."""
    model.config.settings = model.model_settings().model_dump(mode="json")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
