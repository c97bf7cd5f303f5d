"""Speech, a person photo, a product photo and prompts → video, clip by clip (docs/model.md;
official code).

`generate_clips` yields each clip as soon as it is decoded and can continue behind any finished clip, bit for
bit as if it had never stopped. `__call__` is the same for those who want all frames at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from contract.video import (
    CLIP_FRAMES,
    CLIP_LATENT_FRAMES,
    MOTION_FRAMES,
    SAMPLE_RATE,
    clips_of_frames,
    frames_of_speech,
)
from model.media.images import PersonFit, cover, fit_person, place_product
from model.memory.offload import onload_outer_layers
from model.sampling import apply_guidance, draw_noise, frames_from_pixels, pixels_from_frames, set_schedule
from model.speech_features import (
    clip_features,
    encode_audio,
    feature_frame_count,
    official_clip_count,
)
from model.text_encoder import encode_prompts
from model.transformer import CoInteractTransformer3DModel, Conditioning, TransformerOutput
from model.vae import decode_latents, encode_pixels

OFFICIAL_AUDIO_WINDOW = 81

DEFAULT_NEGATIVE_PROMPT = (
    "Blurry, worst quality, blurred details, static frame, violent emotions, rapid hand shaking, subtitles, "
    "ugly, deformed, extra fingers, poorly drawn hands, poorly drawn face"
)


@dataclass(frozen=True)
class Progress:
    """Where a generation is. `stage` is encoding, denoising or decoding; `step` counts finished steps."""

    stage: str
    clip: int
    num_clips: int
    step: int
    num_steps: int


OnProgress = Callable[[Progress], None]
"""Called between steps. What it raises ends the generation: that is how to cancel one."""


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


@dataclass(frozen=True)
class VideoRequest:
    """One video, with images already brought to the frame; `generate_clips` makes it from photos."""

    person: np.ndarray
    """(H, W, 3) uint8, H and W multiples of 16: also the size of the video."""
    product: np.ndarray | None
    """(H, W, 3) uint8."""
    audio: np.ndarray
    """(N,) float32, mono, 16 kHz."""
    prompts: tuple[str, ...]
    """Prompt k drives clip k; the last one is reused."""
    negative_prompt: str
    pose_frames: np.ndarray | None
    """(T, h, w, 3) uint8 at 25 fps, of any size."""
    num_clips: int | None
    """None: as many as the speech needs. More than it needs are not made."""
    num_inference_steps: int
    guidance_scale: float
    """1 leaves the unconditional pass out."""
    flow_shift: float
    product_scale: float
    seed: int
    """Clip k draws its noise with seed + k (the official code: with k)."""
    parity: bool = False
    audio_face_mask: bool = False
    first_clip: int = 0
    motion_frames: np.ndarray | None = None
    """(73, H, W, 3) uint8 of the clip before `first_clip`."""
    num_frames: int | None = None
    """Length of the video; None: the speech's length."""
    noise: tuple[torch.Tensor, ...] | None = None
    """Per clip (1, 16, 21, h, w) to use instead of drawing it."""
    pose_latents: tuple[torch.Tensor, ...] | None = None
    """Per clip (1, 16, 20, h, w) to use instead of encoding `pose_frames`."""

    def __post_init__(self) -> None:
        height, width = self.person.shape[:2]
        if height % 16 or width % 16:
            raise ValueError(f"width and height must be multiples of 16, not {width}x{height}")
        if not self.prompts:
            raise ValueError("at least one prompt is needed")
        if self.num_clips is not None and self.num_clips < 1:
            raise ValueError(f"num_clips must be at least 1, not {self.num_clips}")
        if self.first_clip < 0:
            raise ValueError(f"first_clip must not be negative: {self.first_clip}")
        expected = (MOTION_FRAMES, height, width, 3)
        if self.first_clip > 0 and (self.motion_frames is None or self.motion_frames.shape != expected):
            got = None if self.motion_frames is None else self.motion_frames.shape
            raise ValueError(
                f"continuing at clip {self.first_clip} needs motion_frames of {expected}, not {got}"
            )


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
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            audio_encoder=audio_encoder,
            feature_extractor=feature_extractor,
            scheduler=scheduler,
        )

    def generate_clips(
        self,
        *,
        person_image: Image.Image,
        product_image: Image.Image | None = None,
        audio: np.ndarray,
        prompts: Sequence[str],
        negative_prompt: str = DEFAULT_NEGATIVE_PROMPT,
        pose_frames: np.ndarray | None = None,
        height: int = 1280,
        width: int = 720,
        num_clips: int | None = None,
        num_inference_steps: int = 40,
        guidance_scale: float = 7.0,
        flow_shift: float = 7.0,
        product_scale: float = 1.0,
        seed: int = 0,
        fit: PersonFit = "cover",
        parity: bool = False,
        audio_face_mask: bool = False,
        first_clip: int = 0,
        motion_frames: np.ndarray | None = None,
        num_frames: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Clip]:
        """Generate a video clip by clip; see `VideoRequest` for shapes and units.

        Args:
            person_image, product_image: photos of any size; `fit` says how the person fills the frame.
            parity: repeat the official code's recorded behaviour with its defects: stretched person, audio
                windows of 81 frames, last audio layer not normed, seed = clip index, no more clips than it
                makes, tiled VAE, no trimming.
            first_clip, motion_frames: continue behind clip `first_clip - 1`, given its `motion_frames`.

        Raises:
            ValueError: sizes that are not multiples of 16, no prompt, speech under 25 ms, and the like.
        """
        if height % 16 or width % 16:
            raise ValueError(f"width and height must be multiples of 16, not {width}x{height}")
        person = fit_person(person_image, width, height, "stretch" if parity else fit)
        product = None if product_image is None else place_product(product_image, width, height)
        request = VideoRequest(
            person=np.asarray(person),
            product=None if product is None else np.asarray(product),
            audio=audio,
            prompts=tuple(prompts),
            negative_prompt=negative_prompt,
            pose_frames=pose_frames,
            num_clips=num_clips,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            flow_shift=flow_shift,
            product_scale=product_scale,
            seed=seed,
            parity=parity,
            audio_face_mask=audio_face_mask,
            first_clip=first_clip,
            motion_frames=motion_frames,
            num_frames=num_frames,
        )
        return self.run(request, on_progress)

    @torch.no_grad()
    def __call__(
        self,
        person_image: Image.Image,
        audio: np.ndarray,
        prompts: str | Sequence[str],
        product_image: Image.Image | None = None,
        *,
        negative_prompt: str = DEFAULT_NEGATIVE_PROMPT,
        pose_frames: np.ndarray | None = None,
        height: int = 1280,
        width: int = 720,
        num_clips: int | None = None,
        num_inference_steps: int = 40,
        guidance_scale: float = 7.0,
        flow_shift: float = 7.0,
        product_scale: float = 1.0,
        seed: int | None = None,
        fit: PersonFit = "cover",
        parity: bool = False,
        audio_face_mask: bool = False,
        on_progress: OnProgress | None = None,
    ) -> CoInteractOutput:
        """Generate a whole video; arguments as `generate_clips`. Without a seed, one is drawn."""
        seed = secrets.randbelow(2**31) if seed is None else seed
        clips = self.generate_clips(
            person_image=person_image,
            product_image=product_image,
            audio=audio,
            prompts=[prompts] if isinstance(prompts, str) else prompts,
            negative_prompt=negative_prompt,
            pose_frames=pose_frames,
            height=height,
            width=width,
            num_clips=num_clips,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            flow_shift=flow_shift,
            product_scale=product_scale,
            seed=seed,
            fit=fit,
            parity=parity,
            audio_face_mask=audio_face_mask,
            on_progress=on_progress,
        )
        return CoInteractOutput(frames=np.concatenate([clip.frames for clip in clips]), seed=seed)

    def run(self, request: VideoRequest, on_progress: OnProgress | None = None) -> Iterator[Clip]:
        """Generate the clips of `request` from `first_clip` on, each as soon as it is decoded."""
        needed = self._clips_needed(request)
        num_clips = needed if request.num_clips is None else min(needed, request.num_clips)
        num_frames = CLIP_FRAMES * num_clips
        if not request.parity:
            heard = frames_of_speech(len(request.audio), SAMPLE_RATE)
            num_frames = min(num_frames, request.num_frames or heard)
        return self._run(request, num_clips, num_frames, on_progress)

    @torch.no_grad()
    def _run(
        self,
        request: VideoRequest,
        num_clips: int,
        num_frames: int,
        on_progress: OnProgress | None,
    ) -> Iterator[Clip]:
        def report(stage: str, clip: int, step: int = 0) -> None:
            if on_progress is not None:
                on_progress(Progress(stage, clip, num_clips, step, request.num_inference_steps))

        if request.first_clip >= num_clips:
            return
        report("encoding", request.first_clip)
        encoded = self._encode_video_inputs(request, num_clips)
        motion_frames = request.motion_frames if request.first_clip > 0 else None
        for index in range(request.first_clip, num_clips):
            report("encoding", index)
            motion_latents = (
                None if motion_frames is None else self._encode_frames(motion_frames, request.parity)
            )
            cond, uncond = self._prepare_conditioning(request, encoded, index, motion_latents)
            after_step = partial(report, "denoising", index)
            latents = self._denoise(request, encoded, index, cond, uncond, after_step)
            del cond, uncond  # up to 2 GB that decoding can use

            after_chunk = partial(report, "decoding", index, request.num_inference_steps)
            after_chunk()
            before = encoded.person_latents if motion_latents is None else motion_latents
            latents = torch.cat([before, latents], dim=2)
            pixels = decode_latents(
                self.vae,
                latents,
                keep_from=before.shape[2],
                tiled=request.parity or self.vae.use_tiling,
                after_chunk=after_chunk,
            )
            frames = frames_from_pixels(pixels)  # (80, H, W, 3)
            motion_frames = frames[-MOTION_FRAMES:]
            yield Clip(index, frames[: num_frames - index * CLIP_FRAMES], motion_frames, latents)

    def _clips_needed(self, request: VideoRequest) -> int:
        if request.parity:
            features = feature_frame_count(self.audio_encoder, len(request.audio))
            return official_clip_count(features, OFFICIAL_AUDIO_WINDOW)
        if request.num_frames is not None:
            return clips_of_frames(request.num_frames)
        return clips_of_frames(frames_of_speech(len(request.audio), SAMPLE_RATE))

    def _encode_video_inputs(self, request: VideoRequest, num_clips: int) -> _Encoded:
        used = {
            request.prompts[min(k, len(request.prompts) - 1)] for k in range(request.first_clip, num_clips)
        }
        if request.guidance_scale != 1.0:
            used.add(request.negative_prompt)
        device = self._execution_device
        prompts = sorted(used)
        embeds = encode_prompts(self.text_encoder, self.tokenizer, prompts, device)
        return _Encoded(
            person_latents=self._encode_frames(request.person[None], request.parity),
            product_latents=None
            if request.product is None
            else self._encode_frames(request.product[None], request.parity),
            audio_features=encode_audio(
                self.audio_encoder,
                self.feature_extractor,
                request.audio,
                device,
                last_layer_normed=not request.parity,
            ),
            prompt_embeds={prompt: embeds[i : i + 1] for i, prompt in enumerate(prompts)},
        )

    def _encode_frames(self, frames: np.ndarray, parity: bool) -> torch.Tensor:
        """uint8 frames (T, H, W, 3) → normalised latents (1, 16, (T+3)//4, h, w), fp32."""
        pixels = pixels_from_frames(frames, self._execution_device, self.vae.dtype)
        return encode_pixels(self.vae, pixels, tiled=parity or self.vae.use_tiling).float()

    def _encode_pose(self, request: VideoRequest, clip: int) -> torch.Tensor | None:
        """Pose latents of one clip, (1, 16, 20, h, w); black behind the end of the pose video."""
        if request.pose_latents is not None:
            return request.pose_latents[clip].to(self._execution_device)
        if request.pose_frames is None:
            return None
        height, width = request.person.shape[:2]
        shown = request.pose_frames[clip * CLIP_FRAMES : (clip + 1) * CLIP_FRAMES]
        frames = np.zeros((CLIP_FRAMES, height, width, 3), np.uint8)
        for i, frame in enumerate(shown):
            frames[i] = np.asarray(cover(Image.fromarray(frame), width, height))
        # The VAE codes the first frame alone; repeating it there leaves 20 latents of 4 frames each.
        frames = np.concatenate([frames[:1], frames])
        return self._encode_frames(frames, request.parity)[:, :, 1:]

    def _prepare_conditioning(
        self, request: VideoRequest, encoded: _Encoded, clip: int, motion_latents: torch.Tensor | None
    ) -> tuple[Conditioning, Conditioning | None]:
        """All that the denoising steps of a clip share, for the conditional and the unconditional pass."""
        dtype = self.transformer.dtype
        offloaded = onload_outer_layers(self.transformer, self._execution_device)
        window = OFFICIAL_AUDIO_WINDOW if request.parity else CLIP_FRAMES
        audio = clip_features(encoded.audio_features, clip, window).to(dtype)
        pose_latents = self._encode_pose(request, clip)
        prompt = request.prompts[min(clip, len(request.prompts) - 1)]

        def prepare(prompt: str, audio_embeds: torch.Tensor) -> Conditioning:
            return self.transformer.prepare_conditioning(
                num_latent_frames=CLIP_LATENT_FRAMES,
                person_latents=encoded.person_latents.to(dtype),
                product_latents=None
                if encoded.product_latents is None
                else encoded.product_latents.to(dtype),
                motion_latents=None if motion_latents is None else motion_latents.to(dtype),
                pose_latents=None if pose_latents is None else pose_latents.to(dtype),
                encoder_hidden_states=encoded.prompt_embeds[prompt].to(dtype),
                audio_embeds=audio_embeds,
                product_scale=request.product_scale,
                keep_key_values=not offloaded,
            )

        if request.guidance_scale == 1.0:
            return prepare(prompt, audio), None
        return prepare(prompt, audio), prepare(request.negative_prompt, torch.zeros_like(audio))

    def _denoise(
        self,
        request: VideoRequest,
        encoded: _Encoded,
        clip: int,
        cond: Conditioning,
        uncond: Conditioning | None,
        after_step: Callable[[int], None],
    ) -> torch.Tensor:
        """Target latents of one clip, (1, 16, 20, h, w) fp32."""
        device = self._execution_device
        channels, _, h, w = encoded.person_latents.shape[1:]
        if request.noise is not None:
            noise = request.noise[clip]
        else:
            # One latent frame more than the target: the person's place, as in the official code's draw.
            shape = (1, channels, 1 + CLIP_LATENT_FRAMES, h, w)
            noise = draw_noise(shape, clip if request.parity else request.seed + clip)
        latents = noise[:, :, 1:].to(device, torch.float32)

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        set_schedule(scheduler, request.num_inference_steps, request.flow_shift, torch.device("cpu"))
        after_step(0)
        for step, timestep in enumerate(scheduler.timesteps):
            noise_pred = self._predict("cond", latents, timestep, cond, request.audio_face_mask)
            if uncond is not None:
                noise_uncond = self._predict("uncond", latents, timestep, uncond, request.audio_face_mask)
                noise_pred = apply_guidance(noise_pred, noise_uncond, request.guidance_scale)
            latents = scheduler.step(noise_pred.float(), timestep, latents, return_dict=False)[0]
            after_step(step + 1)
        return latents

    def _predict(
        self,
        name: str,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        audio_face_mask: bool,
    ) -> torch.Tensor:
        """Velocity of the target latents (1, 16, 20, h, w); `name` keeps the passes' step caches apart."""
        noisy = latents.to(self.transformer.dtype)
        with self.transformer.cache_context(name):
            output: TransformerOutput = self.transformer(
                noisy, timestep, conditioning, audio_face_mask=audio_face_mask
            )
        return output.sample
