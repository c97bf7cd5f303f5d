"""Transformer cases: one forward each, described by their names.

A case has the name `<parts>_t<timestep>`, such as `product_motion_pose_t500`. The parts say what is on:

| part | means |
|---|---|
| plain | nothing but target, person, prompt and speech |
| product, motion, pose | that input is given |
| product_scale07 | the product at relative size 0.7 (first digit, then decimals) |
| audio_face_mask | speech weighted by the face router; product and motion unless inputs are named |
| hoi_asymmetric, hoi_mutual | with the HOI stream; inputs likewise |
| pruned | without the HOI stream; inputs likewise |
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.load import load_model
from model.checkpoints.official_components import rename
from model.checkpoints.official_names import dit_config, dit_name, is_hoi_name
from model.network.block import Visibility
from model.parity.result import CaseResult, compare
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs

NETWORK_LIMIT = 1e-4

Tensors = Mapping[str, torch.Tensor]
log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<parts>.+)_t(?P<timestep>\d+(?:\.\d+)?)")
_PART = re.compile(
    r"(plain|pruned|product_scale[\d.]+|product|motion|pose|audio_face_mask|hoi_asymmetric|hoi_mutual)(?:_|$)"
)
_INPUTS = {"product": "in.product_latents", "motion": "in.motion_latents", "pose": "in.pose_latents"}


@dataclass(frozen=True)
class DitCase:
    """What one case switches on."""

    name: str
    timesteps: tuple[float, ...]  # the possible ones: recorded names drop the fraction
    inputs: frozenset[str]
    inputs_named: bool  # False: product and motion, as far as the file has them
    product_scale: float = 1.0
    audio_face_mask: bool = False
    hoi: Visibility | None = None


def parse_case(name: str) -> DitCase:
    """Read a case's name.

    Raises:
        ValueError: the name has no timestep, or a part that is not in this module's table.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"case {name!r} does not end in _t<timestep>")
    parts, rest = [], match["parts"]
    while rest:
        part = _PART.match(rest)
        if part is None:
            raise ValueError(f"case {name!r}: unknown part at {rest!r}")
        parts.append(part[1])
        rest = rest[part.end() :]
    scales = [_scale(part, name) for part in parts if part.startswith("product_scale")]
    inputs = {part for part in parts if part in _INPUTS} | ({"product"} if scales else set())
    named = bool(inputs) or "plain" in parts
    timestep = float(match["timestep"])
    visibility: Visibility | None = None
    if "hoi_asymmetric" in parts:
        visibility = "asymmetric"
    elif "hoi_mutual" in parts:
        visibility = "mutual"
    return DitCase(
        name=name,
        timesteps=(timestep,) if "." in match["timestep"] else (timestep, timestep + 0.5),
        inputs=frozenset(inputs if named else {"product", "motion"}),
        inputs_named=named,
        product_scale=scales[0] if scales else 1.0,
        audio_face_mask="audio_face_mask" in parts,
        hoi=visibility,
    )


def _scale(part: str, name: str) -> float:
    digits = part.removeprefix("product_scale")
    try:
        return float(digits if "." in digits else f"{digits[0]}.{digits[1:]}")
    except ValueError as error:
        raise ValueError(f"case {name!r}: {digits!r} is not a scale") from error


def is_dit_case(cases: Tensors) -> bool:
    """Whether a cases file is of this kind."""
    return "in.latents" in cases and any(re.fullmatch(r"out\..+\.(rgb|hoi)", key) for key in cases)


def build_transformer(official: Tensors, config: Mapping[str, Any]) -> CoInteractTransformer3DModel:
    """The network of official tensors, with the HOI branch if they have it.

    Raises:
        RuntimeError: a tensor is missing or mis-shaped.
        KeyError: a tensor is unknown.
    """
    settings = dit_config(config, hoi_branch=any(is_hoi_name(key) for key in official))
    layers = settings["audio_inject_layers"]
    transformer: CoInteractTransformer3DModel = CoInteractTransformer3DModel(**settings)
    transformer.eval()
    transformer.load_state_dict(rename(official, lambda key: dit_name(key, layers)), strict=True)
    return transformer


def load_weights(official: Tensors, metadata: Mapping[str, str]) -> CoInteractTransformer3DModel:
    """The network of a weights file, whose metadata holds the official settings as JSON under `config`."""
    if "config" not in metadata:
        raise ValueError("the weights file's metadata holds no `config` of a transformer")
    return build_transformer(official, json.loads(metadata["config"]))


def load_checkpoint(folder: Path) -> CoInteractTransformer3DModel:
    """The network of a checkpoint folder, in float32."""
    transformer: CoInteractTransformer3DModel = load_model(
        CoInteractTransformer3DModel, folder / "transformer", torch.device("cpu"), torch.float32
    )
    return transformer


@torch.no_grad()
def run_dit_cases(transformer: CoInteractTransformer3DModel, cases: Tensors) -> Iterator[CaseResult]:
    """Compare every output that the file holds.

    Without an HOI branch, cases that need one are left out with a warning. Under the asymmetric mask the
    video's output needs none.
    """
    if "out.audio_emb_local" in cases:
        audio = transformer.audio_encoder(cases["in.audio_features"])
        yield compare("audio_emb_local", audio.local, cases["out.audio_emb_local"], limit=NETWORK_LIMIT)
        overall = cases["out.audio_emb_global"]
        yield compare("audio_emb_global", audio.overall.view_as(overall), overall, limit=NETWORK_LIMIT)

    outputs = [match[1] for key in cases if (match := re.fullmatch(r"out\.(.+)\.(?:rgb|hoi)", key))]
    for name in sorted(set(outputs)):
        case = parse_case(name)
        recorded = {kind: cases[key] for kind in ("rgb", "hoi") if (key := f"out.{name}.{kind}") in cases}
        if case.hoi and not transformer.config.hoi_branch:
            if case.hoi == "mutual" or "hoi" in recorded:
                log.warning("%s: these weights have no HOI branch; its output is not compared", name)
            recorded = {kind: t for kind, t in recorded.items() if kind == "rgb" and case.hoi == "asymmetric"}
        if recorded:
            yield from _run(transformer, case, cases, recorded)


def _run(
    transformer: CoInteractTransformer3DModel, case: DitCase, cases: Tensors, recorded: Tensors
) -> Iterator[CaseResult]:
    latents: dict[str, torch.Tensor] = {}
    for part in case.inputs:
        if _INPUTS[part] in cases:
            latents[f"{part}_latents"] = cases[_INPUTS[part]]
        elif case.inputs_named:
            raise ValueError(f"case {case.name!r} needs {_INPUTS[part]}, which the file lacks")
    person, target = cases["in.latents"].split([1, cases["in.latents"].shape[2] - 1], dim=2)
    inputs = ConditioningInputs(
        person_latents=person,
        encoder_hidden_states=cases["in.context"],
        audio_embeds=cases["in.audio_features"],
        product_scale=case.product_scale,
        **latents,
    )
    hoi: dict[str, Any] = {}
    if case.hoi and transformer.config.hoi_branch:
        prompt = cases.get("in.hoi_context", cases["in.context"])
        inputs = replace(inputs, hoi_encoder_hidden_states=prompt)
        hoi = {"hoi_latents": cases["in.hoi_latents"], "hoi_visibility": case.hoi}
    attempts = []
    for timestep in case.timesteps:
        output = transformer(target, timestep, inputs, audio_face_mask=case.audio_face_mask, **hoi)
        ours = {"rgb": output.sample, "hoi": output.hoi_sample}
        attempts.append(
            [
                compare(f"{case.name}.{kind}", ours[kind], official, limit=NETWORK_LIMIT)
                for kind, official in recorded.items()
            ]
        )
        if all(result.passed for result in attempts[-1]):
            break
    yield from min(attempts, key=lambda results: max(result.max_abs_diff for result in results))
