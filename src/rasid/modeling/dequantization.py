"""From an exported model back to torch: what ships as int8 alone can be trained on."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from rasid.errors import ModelError
from rasid.modeling.model import RasidConfig, RasidModel
from rasid.settings import ENCODER_FILE, RELATIONS_FILE, load_settings

_PRODUCTS = ("MatMul", "Gemm")  # a module's node is called after it and one of these
_QUANTIZED, _SCALE, _ZERO = "_quantized", "_scale", "_zero_point"
_TRANSITIONS = "transitions.learned.weight"


def dequantize(folder: str | Path) -> RasidModel:
    """The torch model of an exported one: the same numbers, as fine as int8 weights are.

    Raises:
        ModelError: if the folder is not an exported model, or its graphs do not hold every weight of the model.
    """
    folder = Path(folder)
    settings = load_settings(folder)
    model = RasidModel(RasidConfig.from_pretrained(folder, local_files_only=True))
    weights = _read(folder / ENCODER_FILE, "model.", "")
    if settings.ontology.relation_names:
        weights |= _read(folder / RELATIONS_FILE, "head.", "relation_head.")
    if model.transitions is not None and settings.transitions is not None:
        weights[_TRANSITIONS] = torch.tensor(settings.transitions) - torch.from_numpy(model.transitions.penalty)
    own = dict(model.named_parameters())
    if not settings.ontology.relation_names:  # the head is there and never asked
        own = {name: parameter for name, parameter in own.items() if not name.startswith("relation_head.")}
    missing = [name for name, p in own.items() if name not in weights or weights[name].shape != p.shape]
    if missing:
        raise ModelError(
            f"{folder}: its graphs lack {len(missing)} weights of its config, {', '.join(missing[:3])} among them, so "
            "that it cannot be trained on; start from the torch folder of its training run"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    return model


def _read(path: Path, before: str, after: str) -> dict[str, Tensor]:
    """The weights of a graph by their names in the model, in which `after` stands for the graph's `before`."""
    if not path.is_file():
        raise ModelError(f"{path}: missing, so this folder is neither a torch checkpoint nor an exported model")
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's own kinds
        raise ModelError(f"{path}: cannot be read as ONNX ({error}); copy the model again") from error
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: _float(name, arrays) for name in arrays if not name.endswith((_SCALE, _ZERO))}
    named = {name.removesuffix(_QUANTIZED): array for name, array in weights.items()}
    for node in graph.node:  # products turn weights, and give them names of their own
        module, _, kind = node.name.rpartition("/")
        turned = [name for name in node.input if name in weights and weights[name].ndim == 2]
        if turned and kind.startswith(_PRODUCTS):
            named[f"{module.strip('/').replace('/', '.')}.weight"] = weights[turned[0]].T
    return {after + name.removeprefix(before): torch.tensor(array) for name, array in named.items()}


def _float(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """An array as it is, or what a quantised one stands for; scales are of the last axis, one for each column."""
    stem = name.removesuffix(_QUANTIZED)
    if stem == name:
        return arrays[name]
    shift = arrays[stem + _ZERO].astype(np.float32)
    result: np.ndarray = (arrays[name].astype(np.float32) - shift) * arrays[stem + _SCALE]
    return result
