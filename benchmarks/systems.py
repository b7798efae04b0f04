"""What `engine.py` measures: systems that read the same texts, and what they are made from."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What is imported up here is in the memory of every system: the rest is imported where it is needed.

BATCHES = (1, 8, 16)
PEAK_SHAPE, PEAK_SECONDS = (1024, 2048, 2048), 1.0
LARGE_VOCABULARY = 64_000
Articles = Sequence[Sequence[str]]  # the texts of each article


@dataclass(frozen=True)
class Round:
    """Seconds for all texts by batch size, and for each article alone."""

    totals: dict[int, float]
    latencies: list[float]


def clock(action: Callable[[], None]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Engine:
    """An exported model."""

    batches: tuple[int, ...] = (1,)

    def __init__(self, folder: Path, threads: int):
        from rasid.inference import Extractor

        self.extractor = Extractor.load(folder, threads=threads)

    def read(self, texts: Sequence[str], batch: int) -> None:
        """Read some texts; with one thread for each text at once if there are several."""
        for _ in self.extractor.pipe(texts) if len(texts) > 1 else map(self.extractor, texts):
            pass

    def measure(self, articles: Articles) -> Round:
        """One turn."""
        texts = [text for article in articles for text in article]
        totals = {batch: clock(lambda batch=batch: self.read(texts, batch)) for batch in self.batches}
        return Round(totals, [clock(lambda article=article: self.read(article, 1)) for article in articles])


class Checkpoint(Engine):
    """A torch model through the code of the engine."""

    def __init__(self, folder: Path, threads: int):
        import torch

        from rasid.modeling.checkpoint import load_torch_extractor

        torch.set_num_threads(threads)
        self.extractor = load_torch_extractor(folder)


class Pipeline(Engine):
    """A token classifier in a pipeline."""

    batches = BATCHES

    def __init__(self, folder: Path, threads: int):
        import torch
        from transformers import pipeline

        torch.set_num_threads(threads)
        self.pipeline = pipeline(
            "token-classification", str(folder), aggregation_strategy="first", device="cpu", dtype=torch.float32
        )

    def read(self, texts: Sequence[str], batch: int) -> None:
        """Tag some texts."""
        self.pipeline(list(texts), batch_size=batch)


class Peak(Engine):
    """A large integer product instead of a system."""

    def __init__(self, multiplications: float, threads: int):
        import numpy as np
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper

        rows, inner, columns = PEAK_SHAPE
        rng = np.random.default_rng(0)
        self.multiplications = multiplications
        self.left = rng.integers(0, 256, (rows, inner), dtype=np.uint8)
        weights = rng.integers(-64, 64, (inner, columns), dtype=np.int8)
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["left", "weights"], ["product"])],
            "peak",
            [helper.make_tensor_value_info("left", TensorProto.UINT8, self.left.shape)],
            [helper.make_tensor_value_info("product", TensorProto.INT32, (rows, columns))],
            [numpy_helper.from_array(weights, "weights")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def read(self, texts: Sequence[str], batch: int) -> None:
        """Multiply once."""
        self.session.run(None, {"left": self.left})

    def measure(self, articles: Articles) -> Round:
        """How long the texts would take at the speed of the fastest product of a second."""
        end, best = time.perf_counter() + PEAK_SECONDS, float("inf")
        while time.perf_counter() < end:
            best = min(best, clock(lambda: self.read((), 1)))
        rows, inner, columns = PEAK_SHAPE
        return Round({1: self.multiplications * best / (rows * inner * columns)}, [])


def make_tagger(checkpoint: Path, folder: Path) -> Any:
    """Write the encoder and the tag head of a checkpoint as a token classifier; returns its tokenizer."""
    from transformers import AutoModelForTokenClassification

    from rasid.config import TokenizerConfig
    from rasid.modeling.checkpoint import load_tokenizer, load_trained

    model = load_trained(checkpoint)
    config = model.encoder.config
    config.id2label = dict(enumerate(model.config.model_settings().ontology.tags))
    tagger = AutoModelForTokenClassification.from_config(config)
    getattr(tagger, tagger.base_model_prefix).load_state_dict(model.encoder.state_dict())
    tagger.classifier.load_state_dict(model.tag_head.state_dict())
    tokenizer = load_tokenizer(checkpoint, TokenizerConfig(), local=True, trained=config)
    tagger.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_large_tagger(tags: Sequence[str], texts: Sequence[str], folder: Path) -> Any:
    """Write a token classifier of the size of AraBERT's base model; returns its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(vocab_size=LARGE_VOCABULARY, special_tokens=[*special.values()], show_progress=False),
    )
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    model = BertForTokenClassification(BertConfig(vocab_size=LARGE_VOCABULARY, id2label=dict(enumerate(tags))))
    with torch.no_grad():
        model.classifier.bias[0] = 100.0  # `O`: random tags would only cost it time
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return fast


def count_multiplications(folder: Path, texts: Sequence[str]) -> float:
    """Multiplications in the products of matrices with which an exported model reads texts.

    A torch model of the same form and of random weights runs beside it; what there is to compute, such as which pairs
    of entities, the exported one decides.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from rasid.inference import Extractor
    from rasid.modeling.checkpoint import TorchBackend
    from rasid.modeling.model import RasidConfig, RasidModel

    class Counting(TorchBackend):
        """Lets torch work, and answers with what the exported model says."""

        def encode(self, *arrays: Any) -> Any:
            super().encode(*arrays)
            return exported.encode(*arrays)

        def relate(self, *arrays: Any) -> Any:
            super().relate(*arrays)
            return exported.relate(*arrays)

    model = RasidModel(RasidConfig.from_pretrained(folder)).eval()
    model.encoder.set_attn_implementation("eager")  # fused attention would not be counted
    extractor = Extractor.load(folder, threads=1)
    exported, extractor.backend = extractor.backend, Counting(model)
    with FlopCounterMode(display=False) as counter:
        for text in texts:
            extractor(text)
    return counter.get_total_flops() / 2
