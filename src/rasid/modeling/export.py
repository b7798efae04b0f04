"""Export to ONNX with int8 weights, behind a gate: a model that lost accuracy on the way is not written."""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch import Tensor, nn

from rasid.encoding import TextEncoder
from rasid.errors import ConfigError, DataError, ModelError
from rasid.inference import Extractor
from rasid.modeling.checkpoint import load_checkpoint, torch_extractor
from rasid.modeling.graphs import ATTENTION, declare_operators, split_norms
from rasid.modeling.model import RasidModel
from rasid.modeling.quantization import quantize_graph
from rasid.records import Article
from rasid.scoring.calibration import DevScores, dev_scores
from rasid.settings import CONFIG_FILE, ENCODER_FILE, RELATIONS_FILE, TOKENIZER_FILE, ModelSettings

logger = logging.getLogger(__name__)

TRACED_OPSET = 18


class _EncoderGraph(nn.Module):
    """input_ids [1, S], word_pieces [1, W] → tag logits [1, W, T], proclitic logits [1, W, K], states [1, W, H]."""

    def __init__(self, model: RasidModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, word_pieces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, relation_states = self.model.encode(input_ids, word_pieces)
        tags, proclitics = self.model.tag(states)
        return tags, proclitics, relation_states


class _RelationGraph(nn.Module):
    """states [1, W, H], word_tags [1, W], entities [E, 2], pairs [P, 3] → logits [P, 2, R]."""

    def __init__(self, model: RasidModel):
        super().__init__()
        self.head = model.relation_head

    def forward(self, states: Tensor, word_tags: Tensor, entities: Tensor, pairs: Tensor) -> Tensor:
        return self.head(states, word_tags, nn.functional.pad(entities, (1, 0)), pairs)  # type: ignore[no-any-return]


def export_fp32(model: RasidModel, folder: Path) -> None:
    """Write the graphs in float32, the encoder's fused into ONNX Runtime's transformer operators.

    Without relation types in the ontology there is no graph of relations.
    """
    config = model.config
    hidden = model.encoder.config.hidden_size
    model = model.cpu().eval()
    model.encoder.set_attn_implementation(ATTENTION)
    # The longest window, since some encoders have steps for long inputs only, which a trace of a short one would lack.
    ids = torch.arange(config.model_settings().text.max_pieces)[None] % model.encoder.config.vocab_size
    words = torch.arange(1, 12)[None]
    _export(
        _EncoderGraph(model),
        {"input_ids": ids, "word_pieces": words},
        ["tag_logits", "proclitic_logits", "states"],
        {"input_ids": {1: "pieces"}, "word_pieces": {1: "words"}},
        folder / ENCODER_FILE,
    )
    if not config.model_settings().ontology.relation_names:
        return
    _export(
        _RelationGraph(model),
        {
            "states": torch.randn(1, 11, hidden),
            "word_tags": torch.zeros(1, 11, dtype=torch.int64),
            "entities": torch.tensor([[0, 1], [3, 3], [7, 9]]),
            "pairs": torch.tensor([[0, 1, 0], [0, 2, 3], [1, 2, 1]]),
        },
        ["logits"],
        {"states": {1: "words"}, "word_tags": {1: "words"}, "entities": {0: "entities"}, "pairs": {0: "pairs"}},
        folder / RELATIONS_FILE,
    )


def _export(
    graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], dynamic: dict[str, dict[int, str]], path: Path
) -> None:
    with warnings.catch_warnings():
        # Of constants in the trace: that they are right for inputs of other sizes is what the gate finds out.
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
        torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=TRACED_OPSET,
            dynamo=False,
        )
    options = FusionOptions("bert")
    options.enable_skip_layer_norm = False  # `split_norms` needs them by themselves
    options.enable_attention = options.enable_embed_layer_norm = options.enable_shape_inference = False
    fused = optimize_model(str(path), model_type="bert", optimization_options=options, opt_level=0)
    logger.info("%s: fused operators: %s", path.name, fused.get_fused_operator_statistics())
    split_norms(fused.model.graph)
    declare_operators(fused.model)
    onnx.save(fused.model, path)


def quantize(source: Path, target: Path) -> None:
    """Write all graphs of one folder into another, with int8 weights."""
    for graph in sorted(source.glob("*.onnx")):
        quantize_graph(graph, target / graph.name)


def check_parity(before: dict[str, float], after: dict[str, float], max_drop: float) -> None:
    """Refuse a quantised model that lost more than `max_drop` points of 100 of any score.

    Raises:
        ModelError: naming each score that fell too far.
    """
    lost = {name: 100 * (before[name] - after[name]) for name in before}
    if bad := {name: drop for name, drop in lost.items() if drop > max_drop}:
        told = "; ".join(
            f"{n} {100 * before[n]:.2f} → {100 * after[n]:.2f}, {d:.2f} points lost" for n, d in bad.items()
        )
        raise ModelError(
            f"not exported: quantisation costs too much on dev ({told}; at most {max_drop} allowed). "
            "Train longer, or allow more with export.max_drop"
        )


def _calibrate(path: Path, scores: DevScores) -> None:
    """Put what suits the exported model into its config: quantisation moves scores a little."""
    config = json.loads(path.read_text(encoding="utf-8"))
    settings = scores.calibrate(ModelSettings.model_validate(config["settings"]))
    config["settings"] = settings.model_dump(mode="json")
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def export(
    checkpoint: str | Path,
    folder: str | Path,
    dev: Sequence[Article],
    *,
    before: DevScores | None = None,
    max_drop: float = 0.5,
) -> dict[str, Any]:
    """Export a torch checkpoint to a folder that `Extractor.load` reads; nothing is written unless the gate passes.

    Args:
        checkpoint: Folder made by training.
        folder: Where to put `config.json`, `tokenizer.json` and the graphs. Other files in it are left alone.
        dev: Annotated articles of the gate.
        before: What the checkpoint scores on them, if that is known already.
        max_drop: Most points of 100 that strict F1 of entities or of relations may lose.

    Returns:
        Dev scores of the float32 and of the int8 model, each under the bias and thresholds that suit it, those of the
        int8 model, and the size in bytes.

    Raises:
        ModelError: if the checkpoint is unsound or the gate closes.
        DataError: if there are no articles for the gate.
        ConfigError: if the folder cannot be written.
    """
    if not dev:
        raise DataError("no articles for the parity gate; give an annotated corpus with at least one")
    model = load_checkpoint(checkpoint).eval()
    if before is None:
        encoder = TextEncoder.load(checkpoint, model.config.model_settings().text)
        before = dev_scores(torch_extractor(model, encoder), dev)
    target = Path(folder)
    with tempfile.TemporaryDirectory() as work:
        fp32, int8 = Path(work, "fp32"), Path(work, "int8")
        fp32.mkdir()
        int8.mkdir()
        export_fp32(model, fp32)
        quantize(fp32, int8)
        for name in (CONFIG_FILE, TOKENIZER_FILE):
            shutil.copy(Path(checkpoint) / name, int8 / name)
        after = dev_scores(Extractor.load(int8), dev)
        logger.info("dev: float32 %s, int8 %s", before, after)
        check_parity(before.f1, after.f1, max_drop)
        _calibrate(int8 / CONFIG_FILE, after)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{target}: cannot be made: {error.strerror}; give another folder") from error
        files = sorted(int8.iterdir())
        size = sum(path.stat().st_size for path in files)
        for path in files:
            shutil.copy(path, target / path.name)
    return {"fp32": before.f1, "int8": after.f1, "bytes": size} | after.chosen
