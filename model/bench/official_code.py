"""The official CoInteract code, loaded from a clone, with small networks. Nothing of it is kept here.

It imports packages that only its downloads, its training or its image tools need. Where one is not installed,
an empty stand-in takes its place: nothing that is measured calls it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import math
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ByT5Tokenizer, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

OFFICIAL_PACKAGE = "diffsynth"
STAND_INS = ("modelscope", "torchvision", "pandas", "lightning", "pyloudnorm", "librosa", "xfuser")
NEEDED = "einops"

Tensors = dict[str, torch.Tensor]


class OfficialCodeMissing(Exception):
    """The folder is no clone of the official repository, or a package that it needs is not installed."""


@dataclass(frozen=True)
class SmallNetworks:
    """Sizes of the four networks, in the official code's words."""

    dit: Mapping[str, Any]
    expert_hidden_dim: int
    text: Mapping[str, int]
    audio: Mapping[str, Any]
    vae_dim: int


class _StandIn(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        return sys.modules.setdefault(full, _StandIn(full))

    def __call__(self, *_: object, **__: object) -> None:
        """A decorator or a constructor of something that is never used."""


class _StandInFinder(Loader):
    """Finds a stand-in for whatever lies in a missing package."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.split(".")[0] not in self._packages:
            return None
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: it is empty."""


class OfficialCode:
    """The official package of the clone in `folder`, imported for as long as this process lives.

    Raises:
        OfficialCodeMissing
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / OFFICIAL_PACKAGE / "pipelines" / "wan_video_new.py").is_file():
            raise OfficialCodeMissing(f"{folder} is no clone of the official CoInteract repository")
        if importlib.util.find_spec(NEEDED) is None:
            raise OfficialCodeMissing(f"the official code needs {NEEDED}: pip install {NEEDED}")
        package = types.ModuleType(OFFICIAL_PACKAGE)
        package.__path__ = [str(folder / OFFICIAL_PACKAGE)]
        sys.modules[OFFICIAL_PACKAGE] = package
        missing = tuple(name for name in STAND_INS if importlib.util.find_spec(name) is None)
        sys.meta_path.append(_StandInFinder(missing))
        with silenced():
            self.pipelines = self._module("pipelines.wan_video_new")
            self.transformers = self._module("models.wan_video_dit_s2v")
            self._text = self._module("models.wan_video_text_encoder")
            self._vae = self._module("models.wan_video_vae")
            self._audio = self._module("models.wav2vec")
            self._prompts = self._module("prompters.wan_prompter")

    @staticmethod
    def _module(name: str) -> Any:
        return importlib.import_module(f"{OFFICIAL_PACKAGE}.{name}")

    def transformer(self, config: Mapping[str, Any], expert_hidden_dim: int) -> nn.Module:
        """The network with its experts."""
        with silenced():
            network = self.transformers.WanS2VModel(**config)
            network.enable_moe_ffn(expert_hidden_dim=expert_hidden_dim)
        made: nn.Module = network.eval()
        return made

    def pipeline(self, sizes: SmallNetworks) -> tuple[Any, Tensors]:
        """The whole pipeline with seeded weights, and these weights prefixed as `model.parity` takes them."""
        with silenced():
            pipe = self.pipelines.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
            pipe.dit = self.transformer(sizes.dit, sizes.expert_hidden_dim)
            pipe.text_encoder = self._text.WanTextEncoder(**sizes.text).eval()
            pipe.vae = self._vae.WanVideoVAE()
            pipe.vae.model = self._vae.VideoVAE_(dim=sizes.vae_dim).eval()
            pipe.audio_encoder = self._audio.WanS2VAudioEncoder.__new__(self._audio.WanS2VAudioEncoder)
            nn.Module.__init__(pipe.audio_encoder)
            pipe.audio_encoder.model = Wav2Vec2ForCTC(Wav2Vec2Config(**sizes.audio)).eval()
            pipe.audio_encoder.video_rate = 25
            pipe.audio_processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
            pipe.prompter.fetch_models(pipe.text_encoder)
            pipe.prompter.tokenizer = self._tokenizer()
            pipe.height_division_factor = pipe.width_division_factor = 2 * pipe.vae.upsampling_factor
        weights: Tensors = {}
        parts = {
            "dit": pipe.dit,
            "t5": pipe.text_encoder,
            "w2v": pipe.audio_encoder.model,
            "vae": pipe.vae.model,
        }
        for seed, (prefix, network) in enumerate(parts.items()):
            drawn = seeded_weights(network, seed)
            weights |= {f"{prefix}.{name}": tensor for name, tensor in drawn.items()}
        return pipe, weights

    def _tokenizer(self) -> Any:
        """Of bytes: the official one is a file of the weights."""
        tokenizer = self._prompts.HuggingfaceTokenizer.__new__(self._prompts.HuggingfaceTokenizer)
        tokenizer.tokenizer, tokenizer.seq_len, tokenizer.clean = ByT5Tokenizer(), 512, "whitespace"
        return tokenizer


def seeded_weights(network: nn.Module, seed: int) -> Tensors:
    """Give the network drawn weights, and return them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, old in sorted(network.state_dict().items()):
        if not old.is_floating_point():
            weights[name] = old
            continue
        weights[name] = draw_weight(name, old.shape, generator)
    network.load_state_dict(weights, strict=True)
    return weights


def draw_weight(name: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Values of a tensor of the official networks, such that each layer has about unit gain."""
    values = torch.randn(shape, generator=generator)
    if ("norm" in name and name.endswith("weight")) or name.endswith("gamma"):
        return 1 + 0.1 * values
    if name.endswith("casual_audio_encoder.weights"):
        return 0.5 + 0.1 * values
    gain = 0.05 if values.dim() < 2 else min(0.3, 1 / math.sqrt(values[0].numel()))
    return gain * values


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """The official code prints at every step."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
