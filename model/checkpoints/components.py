"""Official T5, VAE and wav2vec2 files → the networks to build and the tensors to load, all checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from model.checkpoints.errors import CheckpointError, Fault, Problem, unreadable
from model.checkpoints.layout import (
    Layout,
    audio_encoder_layout,
    check_table,
    on_meta,
    refuse,
    text_encoder_layout,
    vae_layout,
)
from model.checkpoints.merge import Origin, PlannedTensor
from model.checkpoints.official import TensorInfo, TensorTable, read_table
from model.checkpoints.official_components import t5_config, vae_config

TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
AUDIO_ENCODER_FILES = ("model.safetensors", "pytorch_model.bin")

_OFFICIAL_T5 = {"vocab_size": 256384, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_OFFICIAL_T5_WIDTH = 4096


@dataclass(frozen=True)
class ComponentPlan:
    """A network on the meta device and its tensors."""

    model: Any
    """The network. Its class writes the configuration from which a loader builds it."""
    tensors: tuple[PlannedTensor, ...]
    dropped: tuple[TensorInfo, ...]
    files: tuple[Path, ...]


def plan_text_encoder(file: Path) -> ComponentPlan:
    """UMT5 encoder. Raises CheckpointError as `read_table` and `check_table` do."""
    table = read_table(file)
    config = _config_from_shapes(t5_config, table, file)
    if config["d_model"] == _OFFICIAL_T5_WIDTH:
        # The number of layers is read from the file itself, so a file without its last layers would look
        # complete if this were not compared.
        for key, expected in _OFFICIAL_T5.items():
            if config[key] != expected:
                raise unreadable(file, f"expected UMT5-XXL with {key} {expected}, found {config[key]}")
    model = on_meta(lambda: UMT5EncoderModel(UMT5Config(**config, architectures=["UMT5EncoderModel"])))
    return _plan(model, table, text_encoder_layout(model), file)


def plan_vae(file: Path) -> ComponentPlan:
    """Wan 2.1 VAE. Raises CheckpointError as `read_table` and `check_table` do."""
    table = {
        name: replace(info, name=name)
        for name, info in ((key.removeprefix("model."), info) for key, info in read_table(file).items())
    }
    config = _config_from_shapes(vae_config, table, file)
    model = on_meta(lambda: AutoencoderKLWan(**config))
    return _plan(model, table, vae_layout(model, config["num_res_blocks"]), file)


def plan_audio_encoder(folder: Path) -> ComponentPlan:
    """wav2vec2 of a transformers folder, without its CTC head and the embedding that only masks in training.

    Raises:
        CheckpointError: no config.json or no weights in the folder, or as `read_table` and `check_table`.
    """
    file = next((folder / name for name in AUDIO_ENCODER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise unreadable(folder, f"expected {' or '.join(AUDIO_ENCODER_FILES)} in this folder, found neither")
    settings = read_json(folder / "config.json")
    # The masking embedding is left out: only training uses it, and not every file has it.
    settings |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "architectures": ["Wav2Vec2Model"]}
    model = on_meta(lambda: Wav2Vec2Model(Wav2Vec2Config.from_dict(settings)))
    table: TensorTable = {}
    dropped = []
    problems = []
    for key, info in read_table(file).items():
        name = _ctc_name(key)
        if name.startswith("lm_head.") or name == "wav2vec2.masked_spec_embed":
            dropped.append(info)
        elif name in table:
            detail = f"expected once; {table[name].name} and {key} in {file.name} mean the same tensor"
            problems.append(Problem(Fault.DUPLICATE, key, detail))
        else:
            table[name] = replace(info, name=key)
    refuse(problems)
    plan = _plan(model, table, audio_encoder_layout(model), file)
    return replace(plan, dropped=tuple(dropped))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. CheckpointError if there is no such file or it holds anything else."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise unreadable(path, f"expected this file: {error.strerror}") from error
    except ValueError as error:
        raise unreadable(path, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise unreadable(path, "expected a JSON object")
    return value


def _ctc_name(key: str) -> str:
    """The tensor's name in `Wav2Vec2ForCTC`, whichever model or version of transformers saved it."""
    key = key.removeprefix("model.")
    key = key.replace("parametrizations.weight.original0", "weight_g")
    key = key.replace("parametrizations.weight.original1", "weight_v")
    return key if key.startswith(("wav2vec2.", "lm_head.")) else f"wav2vec2.{key}"


def _config_from_shapes(
    config: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]], table: TensorTable, file: Path
) -> dict[str, Any]:
    shapes = {name: info.shape for name, info in table.items()}
    try:
        return config(shapes)
    except KeyError as error:
        detail = f"expected in {file.name}: the network's size is read from it"
        raise CheckpointError([Problem(Fault.MISSING, str(error.args[0]), detail)]) from error
    except (ValueError, IndexError) as error:
        raise unreadable(file, f"its tensors do not look like the official ones: {error}") from error


def _plan(model: nn.Module, table: TensorTable, layout: Layout, file: Path) -> ComponentPlan:
    refuse(check_table(table, layout, file.name))
    tensors = (PlannedTensor(layout[name].name, info, Origin.COMPONENT) for name, info in table.items())
    return ComponentPlan(model, tuple(tensors), (), (file,))
