"""Continued pre-training of a base on raw text, by masked words (BERT; Devlin et al. 2019, https://aclanthology.org/N19-1423)."""

import json
import logging
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rasid.bases.base import INFO_FILE, probe_hub, read_info, resolve_base
from rasid.config import PretrainConfig, TokenizerConfig
from rasid.errors import ConfigError, DataError, ModelError
from rasid.modeling.checkpoint import load_encoder, load_tokenizer, longest_window
from rasid.modeling.model import IGNORED
from rasid.settings import TextSettings
from rasid.text import normalize
from rasid.training.raw_text import read_paragraphs
from rasid.training.trainer import CHECKPOINTS, last_checkpoint, on_this_machine, uses_bfloat16

logger = logging.getLogger(__name__)

BASE_FOLDER, FACTS_FILE = "base", "pretraining.json"
BATCH = 1000  # texts tokenized at once, on all processors
HELD_OUT = 64  # blocks whose loss tells before and after apart


def make_blocks(
    texts: Iterable[str], tokenizer: Tokenizer, settings: TextSettings, block: int
) -> npt.NDArray[np.int32]:
    """Pieces of all texts, one after another, in full blocks with special tokens at both ends: int32 [N, block]."""
    begin, end = tokenizer.encode("").ids
    normal = (normalize(text, settings.normalization).text for text in texts)
    parts = [np.zeros(0, dtype=np.int32)]
    while batch := list(islice(normal, BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, end], dtype=np.int32))
    pieces = np.concatenate(parts)
    inside = pieces[: len(pieces) - len(pieces) % (block - 2)].reshape(-1, block - 2)
    return np.pad(inside, ((0, 0), (1, 1)), constant_values=((0, 0), (begin, end)))


class MaskedTrainer(Trainer):  # type: ignore[misc]
    """Predicts at masked places alone: over a whole vocabulary the others would cost half as much as the encoder."""

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Mean cross-entropy of the masked pieces, in nats."""
        labels = inputs.pop("labels")
        whole = self.accelerator.unwrap_model(model)
        (head,) = (part for name, part in whole.named_children() if name != whole.base_model_prefix)
        masked = labels != IGNORED
        with self.accelerator.autocast():  # which it puts around the forward of the whole model alone
            states = whole.base_model(**inputs).last_hidden_state  # [B, S, H]
            logits = head(states[masked]).float()  # [masked, V]
        loss = torch.nn.functional.cross_entropy(logits, labels[masked])
        return (loss, {"logits": logits}) if return_outputs else loss


def pretrain(config: PretrainConfig) -> Path:
    """Train a base further; an interrupted run goes on where it stopped.

    Returns:
        The folder of the new base, for `base=` of a run.

    Raises:
        ConfigError, DataError, ModelError: for an empty corpus, a bad base, or an output folder that holds a base.
    """
    out = config.output / BASE_FOLDER
    if out.exists():
        raise ConfigError(f"{out}: there already; remove it, or give another output")
    if not config.corpus:
        raise ConfigError("corpus: no text files; give some, such as corpus=[news.txt.xz], a paragraph a line")
    set_seed(config.seed)
    source = resolve_base(config.base)
    local = isinstance(source, Path) or probe_hub(source) is not None
    tokenizer = load_tokenizer(source, TokenizerConfig(), local=local)
    if tokenizer.mask_token is None:
        raise ModelError(f"{config.base}: its tokenizer has no mask token, so it cannot learn from masked words")
    encoder = load_encoder(source, local=local)
    if (longest := longest_window(encoder)) is not None and config.block > longest:
        raise ConfigError(f"block is {config.block}, but {config.base} reads {longest} pieces at most; lower it")
    model = _masked_model(encoder)
    texts = read_paragraphs(config.corpus, config.about, config.mentions)
    blocks = make_blocks(texts, tokenizer.backend_tokenizer, config.text, config.block)
    if len(blocks) <= HELD_OUT:
        raise DataError(
            f"the corpus gives {len(blocks)} blocks of {config.block} pieces; more than {HELD_OUT} are needed"
        )
    data = (
        Dataset.from_dict({"input_ids": blocks})
        .with_format("numpy")
        .train_test_split(test_size=HELD_OUT, seed=config.seed)
    )
    logger.info("%d blocks of %d pieces", len(data["train"]), config.block)
    checkpoints = config.output / CHECKPOINTS
    trainer = MaskedTrainer(
        model=on_this_machine(model),
        args=TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup,
            lr_scheduler_type="linear",
            bf16=uses_bfloat16(config.precision),
            use_cpu=not torch.cuda.is_available(),
            prediction_loss_only=True,
            dataloader_num_workers=config.workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            save_steps=200,
            save_total_limit=1,
            logging_steps=20,
            report_to="none",
            seed=config.seed,
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=config.masked, seed=config.seed),
    )
    last = last_checkpoint(checkpoints)
    result = trainer.train(resume_from_checkpoint=last)
    after = trainer.evaluate()["eval_loss"]
    logger.info("loss of masked pieces on held-out blocks: %.3f", after)
    facts = {
        "base": config.base,
        "pieces": len(data["train"]) * config.block,
        "epochs": config.epochs,
        "held_out_loss": round(after, 4),
        "seconds": None if last else round(result.metrics["train_runtime"], 1),
    }
    trainer.model.base_model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if isinstance(source, Path) and (info := read_info(source)) is not None:
        words = f"pre-trained further on {facts['pieces'] / 1e6:.1f} million pieces of raw Arabic news"
        words += f", {config.epochs:g} times" if config.epochs != 1 else ""
        record = info.model_copy(update={"pretraining": words})
        (out / INFO_FILE).write_text(record.model_dump_json(exclude={"path"}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(checkpoints)
    return out


def _masked_model(encoder: PreTrainedModel) -> PreTrainedModel:
    """An encoder's weights under a new head that predicts masked pieces."""
    try:
        model = AutoModelForMaskedLM.from_config(encoder.config)
    except ValueError as error:
        raise ModelError(f"transformers has no masked-word head for {encoder.config.model_type}") from error
    if len(heads := [name for name, _ in model.named_children() if name != model.base_model_prefix]) != 1:
        raise ModelError(
            f"the masked-word head of {encoder.config.model_type} has several parts ({', '.join(heads)}); "
            "pick a base of BERT's kind"
        )
    model.base_model.load_state_dict(encoder.state_dict())
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each text is read about once, so there is nothing to overfit, and dropout costs time
    return model
