"""Fine-tuning: a thin subclass of the Trainer, judged on dev by the extractor that users run."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerControl,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from rasid.base import describe_base
from rasid.checkpoint import create_model, torch_extractor
from rasid.config import RunConfig, TrainingConfig
from rasid.dataset import Collator, build_dataset, label_counts
from rasid.decoding import Floats
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError
from rasid.evaluation import strict_f1
from rasid.inference import Backend
from rasid.model import RasidModel
from rasid.random_base import RANDOM, make_random_base
from rasid.records import Article

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
BEST = "mean_f1"
THRESHOLD = "relation_threshold"
THRESHOLDS = tuple(round(0.2 + 0.05 * i, 2) for i in range(11))  # 0.2 … 0.7


class RasidTrainer(Trainer):  # type: ignore[misc]
    """Two learning rates, and evaluation through the extractor instead of a loop over batches."""

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(self, *args: Any, run: RunConfig, dev: Sequence[Article], encoder: TextEncoder, **kwargs: Any):
        self.run_config = run
        self.dev = dev
        self.text_encoder = encoder
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; the heads, which start from nothing, learn faster than the encoder. Only matrices decay."""
        if self.optimizer is None:
            training = self.run_config.training
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            for name, parameter in (self.model if model is None else model).named_parameters():
                rate = training.encoder_learning_rate if name.startswith("encoder.") else training.head_learning_rate
                groups.setdefault((rate, training.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
            )
        return self.optimizer

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Strict F1 of entities and relations on dev, and their mean, each in [0, 1]."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        scores = dev_scores(model, self.text_encoder, self.dev)
        model.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def dev_scores(model: RasidModel, encoder: TextEncoder, articles: Sequence[Article]) -> dict[str, float]:
    """Strict F1 of entities and relations over annotated articles, their mean, and the threshold that relations had.

    The threshold is the one of `THRESHOLDS` under which relations score best here; it belongs to the model.
    """
    extractor = torch_extractor(model, encoder)
    extractor.backend = _Remembering(extractor.backend)
    related = bool(extractor.ontology.relation_names)

    def under(threshold: float) -> dict[str, float]:
        extractor.settings = extractor.settings.model_copy(update={THRESHOLD: threshold})
        return strict_f1(extractor, articles) | {THRESHOLD: threshold}

    thresholds = THRESHOLDS if related else (extractor.settings.relation_threshold,)
    best = max(map(under, thresholds), key=lambda scores: (scores["relation_f1"], scores[THRESHOLD]))
    mean = (best["entity_f1"] + best["relation_f1"]) / 2 if related else best["entity_f1"]
    return best | {BEST: mean}


class _Remembering:
    """A backend that runs the network once for each input, since thresholds change only what is made of its answers."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self._answers: dict[bytes, Any] = {}

    def encode(self, *arrays: Any) -> tuple[Floats, Floats, Floats]:
        """See `rasid.inference.Backend`."""
        return self._answer(self.backend.encode, arrays)  # type: ignore[no-any-return]

    def relate(self, *arrays: Any) -> Floats:
        """See `rasid.inference.Backend`."""
        return self._answer(self.backend.relate, arrays)  # type: ignore[no-any-return]

    def _answer(self, ask: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
        key = hashlib.sha256()
        for array in arrays:
            key.update(repr(array.shape).encode() + array.tobytes())
        if (digest := key.digest()) not in self._answers:
            self._answers[digest] = ask(*arrays)
        return self._answers[digest]


def computes_in_bfloat16() -> bool:
    """Whether the GPU, or else the processor, multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def training_arguments(run: RunConfig) -> TrainingArguments:
    """The Trainer's arguments for a run.

    Raises:
        ConfigError: if bf16 is asked for where nothing computes in it.
    """
    training: TrainingConfig = run.training
    bf16 = training.precision != "fp32" and computes_in_bfloat16()
    if training.precision == "bf16" and not bf16:
        raise ConfigError("training.precision=bf16: neither processor nor GPU computes in bfloat16; use auto or fp32")
    return TrainingArguments(
        output_dir=str(run.output / CHECKPOINTS),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=training.warmup,
        max_grad_norm=training.clip,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
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


def fit(
    run: RunConfig, train: Sequence[Article], dev: Sequence[Article]
) -> tuple[RasidModel, PreTrainedTokenizerFast, dict[str, Any]]:
    """Train, or go on where an interrupted run of the same output folder stopped.

    Returns:
        The best model on dev, in evaluation mode; its tokenizer; and facts: scores per epoch, seconds and more.

    Raises:
        ConfigError, ModelError, DataError: as the parts do.
    """
    set_seed(run.seed)
    base = run.base
    if run.base == RANDOM:
        with PartialState().main_process_first():  # the others then write the same again, one after another
            folder = make_random_base((a.text for a in train), run.output / "base")
        run = run.model_copy(update={"base": str(folder)})
    model, tokenizer = create_model(run)
    settings = model.config.model_settings()
    encoder = TextEncoder(tokenizer.backend_tokenizer, settings.text)
    dataset, unpredictable = build_dataset(train, encoder, settings)
    logger.info("%d windows of %d articles; %s", len(dataset), len(train), unpredictable)
    logger.info("labels: %s", label_counts(dataset, settings.ontology))
    trainer = RasidTrainer(
        model=model,
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
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if last:
        logger.info("going on from %s", last)
    result = trainer.train(resume_from_checkpoint=last)
    history = [
        {k.removeprefix("eval_"): v for k, v in entry.items()}
        for entry in trainer.state.log_history
        if f"eval_{BEST}" in entry
    ]
    threshold = next(
        (h[THRESHOLD] for h in history if h[BEST] == trainer.state.best_metric), settings.relation_threshold
    )
    model.config.settings = settings.model_copy(update={THRESHOLD: threshold}).model_dump(mode="json")
    facts = {
        "epochs": history,
        "best": trainer.state.best_metric,
        "threshold": threshold,
        "base": describe_base(base),
        "seconds": None if last else round(result.metrics["train_runtime"], 1),  # of the last leg alone
        "windows": len(dataset),
        "unpredictable": vars(unpredictable),
    }
    return trainer.model.eval(), tokenizer, facts


def save_checkpoint(model: RasidModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint: config, safetensors weights, tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
