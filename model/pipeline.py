"""Speech, a person photo, a product photo and prompts → video, clip by clip (docs/model.md).

`generate_clips` yields each clip as soon as it is decoded and can continue behind any finished clip, bit for
bit as if it had never stopped. `__call__` is the same for those who want all frames at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from contract.card import OFFICIAL_DEFAULTS
from contract.choices import Fit, Preset
from contract.job import OnProgress, Stage
from contract.params import GenerationParams, draw_seed
from contract.video import (
    CLIP_FRAMES,
    CLIP_LATENT_FRAMES,
    MAX_DROPPED_FRAMES,
    MOTION_FRAMES,
    SAMPLE_RATE,
    SpeechLength,
    video_length,
)
from model.clip import ClipInputs, ClipRenderer
from model.inputs import FramedInputs, VideoInputs, check, framed
from model.media.images import cover
from model.memory.offload import Streams
from model.pace import Pace
from model.parallel.ranks import Ranks
from model.parallel.together import lead
from model.sampling import draw_noise, pixels_from_frames
from model.speech_features import (
    OFFICIAL_AUDIO_WINDOW,
    clip_features,
    encode_audio,
    feature_frame_count,
    official_clip_count,
)
from model.text_encoder import encode_prompts
from model.transformer import CoInteractTransformer3DModel
from model.vae import encode_pixels
from model.vae_layers import use_fast_layers


@dataclass(frozen=True)
class Clip:
    """One finished clip."""

    index: int
    frames: np.ndarray
    """(80, H, W, 3) uint8; fewer in the last clip, which ends with the speech."""
    motion_frames: np.ndarray
    """(73, H, W, 3) uint8: what generating the next clip needs."""
    latents: torch.Tensor = field(repr=False, compare=False)
    """(1, 16, 1 + 20 or 19 + 20, h, w) normalised: what was decoded, [person or motion | target]."""
    routes: np.ndarray | None = field(default=None, repr=False, compare=False)
    """(20, rows, columns, 2) uint8, see `model.clip.Rendered`; None unless `params.router_maps`."""


@dataclass
class CoInteractOutput(BaseOutput):
    """All frames of a video."""

    frames: np.ndarray
    """(T, H, W, 3) uint8 at 25 fps."""
    seed: int


@dataclass(frozen=True)
class _Encoded:
    """What is encoded once per video."""

    person_latents: torch.Tensor  # (1, 16, 1, h, w) fp32
    product_latents: torch.Tensor | None
    audio_features: torch.Tensor  # (layers, T, D)
    prompt_embeds: dict[str, torch.Tensor]  # (1, 512, D) each


class CoInteractPipeline(DiffusionPipeline):
    """CoInteract (arXiv 2604.19636): speech-driven video of a person handling a product.

    Components: `transformer` CoInteractTransformer3DModel, `vae` AutoencoderKLWan, `text_encoder`
    UMT5EncoderModel with `tokenizer`, `audio_encoder` Wav2Vec2Model with `feature_extractor`, `scheduler`
    FlowMatchEulerDiscreteScheduler.
    """

    model_cpu_offload_seq = "audio_encoder->text_encoder->transformer->vae"

    transformer: CoInteractTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    audio_encoder: Wav2Vec2Model
    feature_extractor: Wav2Vec2FeatureExtractor
    scheduler: FlowMatchEulerDiscreteScheduler

    def __init__(
        self,
        transformer: CoInteractTransformer3DModel,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        audio_encoder: Wav2Vec2Model,
        feature_extractor: Wav2Vec2FeatureExtractor,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=use_fast_layers(vae),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            audio_encoder=audio_encoder,
            feature_extractor=feature_extractor,
            scheduler=scheduler,
        )
        self.streams = Streams()

    @property
    def _execution_device(self) -> torch.device:
        # Not diffusers' guess, which takes any component: the VAE is one that never leaves the device.
        device: torch.device = self.vae.device
        return device

    def generate_clips(
        self,
        inputs: VideoInputs,
        params: GenerationParams,
        *,
        first_clip: int = 0,
        motion_frames: np.ndarray | None = None,
        on_progress: OnProgress | None = None,
        ranks: Ranks | None = None,
    ) -> Iterator[Clip]:
        """Generate a video clip by clip, each as soon as it is decoded.

        Args:
            params: `preset` parity repeats the official code's recorded behaviour with its defects: stretched
                person, audio windows of 81 frames, last audio layer not normed, seed = clip index, no more
                clips than it makes, tiled VAE, no trimming.
            first_clip, motion_frames: continue behind clip `first_clip - 1`, given its `motion_frames`.
            ranks: lead the other ranks of this worker, which `follow`.

        Raises:
            ValueError: sizes that are not multiples of 16, no prompt, speech under 25 ms, and the like.
            OutOfStep: another rank failed.
        """
        return self.run(
            framed(inputs, params),
            params,
            first_clip=first_clip,
            motion_frames=motion_frames,
            on_progress=on_progress,
            ranks=ranks,
        )

    @torch.no_grad()
    def __call__(
        self,
        person_image: Image.Image,
        audio: np.ndarray,
        prompts: str | Sequence[str],
        product_image: Image.Image | None = None,
        *,
        negative_prompt: str = OFFICIAL_DEFAULTS.negative_prompt,
        pose_frames: np.ndarray | None = None,
        height: int = 1280,
        width: int = 720,
        num_clips: int | None = None,
        num_inference_steps: int = OFFICIAL_DEFAULTS.num_inference_steps,
        guidance_scale: float = OFFICIAL_DEFAULTS.guidance_scale,
        flow_shift: float = OFFICIAL_DEFAULTS.flow_shift,
        product_scale: float = 1.0,
        seed: int | None = None,
        fit: Fit = Fit.COVER,
        preset: Preset = Preset.EXACT,
        audio_face_mask: bool = False,
        on_progress: OnProgress | None = None,
    ) -> CoInteractOutput:
        """Generate a whole video; see `VideoInputs` and `GenerationParams` for shapes and units.

        Without a seed, one is drawn. The video is as long as the speech, or `num_clips` clips if that is
        shorter. Raises ValueError as `generate_clips` does.
        """
        speech = SpeechLength(len(audio), SAMPLE_RATE)
        dropped = 0 if preset is Preset.PARITY else MAX_DROPPED_FRAMES
        num_clips, num_frames = video_length(speech, num_clips, dropped)
        params = GenerationParams(
            prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts),
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            flow_shift=flow_shift,
            product_scale=product_scale,
            seed=draw_seed() if seed is None else seed,
            num_clips=num_clips,
            num_frames=num_frames,
            fit=fit,
            audio_face_mask=audio_face_mask,
            preset=preset,
        )
        inputs = VideoInputs(person_image, audio, product_image, pose_frames)
        clips = self.generate_clips(inputs, params, on_progress=on_progress)
        return CoInteractOutput(frames=np.concatenate([clip.frames for clip in clips]), seed=params.seed)

    def run(
        self,
        inputs: FramedInputs,
        params: GenerationParams,
        *,
        first_clip: int = 0,
        motion_frames: np.ndarray | None = None,
        on_progress: OnProgress | None = None,
        ranks: Ranks | None = None,
    ) -> Iterator[Clip]:
        """As `generate_clips`, of photos that are at the size of the video already."""
        check(inputs, params, first_clip, motion_frames)
        return self._run(inputs, params, first_clip, motion_frames, on_progress, ranks)

    def _renderer(self, ranks: Ranks | None) -> ClipRenderer:
        return ClipRenderer(
            self.transformer, self.vae, self.scheduler, self._execution_device, ranks, self.streams
        )

    @torch.no_grad()
    def _run(
        self,
        inputs: FramedInputs,
        params: GenerationParams,
        first_clip: int,
        motion_frames: np.ndarray | None,
        on_progress: OnProgress | None,
        ranks: Ranks | None,
    ) -> Iterator[Clip]:
        num_clips = self._clips_to_make(inputs, params)
        num_frames = num_clips * CLIP_FRAMES if params.parity else params.num_frames

        pace = Pace(on_progress, self._execution_device)
        if first_clip >= num_clips:
            return
        pace.report(Stage.ENCODING, first_clip)
        encoded = self._encode_video_inputs(inputs, params, range(first_clip, num_clips))
        renderer = self._renderer(ranks)
        before = motion_frames if first_clip > 0 else None
        for index in range(first_clip, num_clips):
            pace.report(Stage.ENCODING, index)
            clip_inputs = self._clip_inputs(inputs, params, encoded, index, before)
            rendered, frames = lead(renderer, clip_inputs, pace.of_clip(index))
            before = frames[-MOTION_FRAMES:]
            pace.catch_up()
            shown = frames[: num_frames - index * CLIP_FRAMES]
            yield Clip(index, shown, before, rendered.latents, rendered.routes)

    def _clips_to_make(self, inputs: FramedInputs, params: GenerationParams) -> int:
        if not params.parity:
            return params.num_clips
        features = feature_frame_count(self.audio_encoder, len(inputs.audio))
        return min(params.num_clips, official_clip_count(features))

    def _encode_video_inputs(self, inputs: FramedInputs, params: GenerationParams, clips: range) -> _Encoded:
        used = {params.prompt_of(clip) for clip in clips}
        if params.guided:
            used.add(params.negative_prompt)
        device = self._execution_device
        prompts = sorted(used)
        embeds = encode_prompts(self.text_encoder, self.tokenizer, prompts, device)
        self.streams.park()
        return _Encoded(
            person_latents=self._encode_frames(inputs.person[None], params.parity),
            product_latents=None
            if inputs.product is None
            else self._encode_frames(inputs.product[None], params.parity),
            audio_features=encode_audio(
                self.audio_encoder,
                self.feature_extractor,
                inputs.audio,
                device,
                last_layer_normed=not params.parity,
            ),
            prompt_embeds={prompt: embeds[i : i + 1] for i, prompt in enumerate(prompts)},
        )

    def _encode_frames(self, frames: np.ndarray, parity: bool) -> torch.Tensor:
        """uint8 frames (T, H, W, 3) → normalised latents (1, 16, (T+3)//4, h, w), fp32."""
        pixels = pixels_from_frames(frames, self._execution_device, self.vae.dtype)
        return encode_pixels(self.vae, pixels, tiled=parity or self.vae.use_tiling).float()

    def _encode_pose(self, inputs: FramedInputs, params: GenerationParams, clip: int) -> torch.Tensor | None:
        """Pose latents of one clip, (1, 16, 20, h, w); black behind the end of the pose video."""
        if inputs.pose_latents is not None:
            return inputs.pose_latents[clip].to(self._execution_device)
        if inputs.pose_frames is None:
            return None
        height, width = params.height, params.width
        shown = inputs.pose_frames[clip * CLIP_FRAMES : (clip + 1) * CLIP_FRAMES]
        frames = np.zeros((CLIP_FRAMES, height, width, 3), np.uint8)
        for i, frame in enumerate(shown):
            frames[i] = np.asarray(cover(Image.fromarray(frame), width, height))
        # The VAE codes the first frame alone; repeating it there leaves 20 latents of 4 frames each.
        frames = np.concatenate([frames[:1], frames])
        return self._encode_frames(frames, params.parity)[:, :, 1:]

    def _clip_inputs(
        self,
        inputs: FramedInputs,
        params: GenerationParams,
        encoded: _Encoded,
        clip: int,
        motion_frames: np.ndarray | None,
    ) -> ClipInputs:
        window = OFFICIAL_AUDIO_WINDOW if params.parity else CLIP_FRAMES
        return ClipInputs(
            params=params,
            person_latents=encoded.person_latents,
            product_latents=encoded.product_latents,
            motion_latents=None
            if motion_frames is None
            else self._encode_frames(motion_frames, params.parity),
            pose_latents=self._encode_pose(inputs, params, clip),
            prompt_embeds=encoded.prompt_embeds[params.prompt_of(clip)],
            negative_prompt_embeds=encoded.prompt_embeds[params.negative_prompt] if params.guided else None,
            audio_embeds=clip_features(encoded.audio_features, clip, window),
            noise=self._noise(inputs, params, encoded, clip),
        )

    def _noise(
        self, inputs: FramedInputs, params: GenerationParams, encoded: _Encoded, clip: int
    ) -> torch.Tensor:
        """Where denoising of one clip starts, (1, 16, 20, h, w) fp32."""
        if inputs.noise is not None:
            noise = inputs.noise[clip]
        else:
            # One latent frame more than the target: the person's place, as in the official code's draw.
            channels, _, h, w = encoded.person_latents.shape[1:]
            shape = (1, channels, 1 + CLIP_LATENT_FRAMES, h, w)
            noise = draw_noise(shape, clip if params.parity else params.seed + clip)
        return noise[:, :, 1:].to(self._execution_device, torch.float32)
