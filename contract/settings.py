"""All settings of the service, read from the environment once, validated, frozen.

Every field is an environment variable `COINTERACT_<FIELD>`; docs/settings.md lists them and a test keeps it
complete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contract.attention import AttentionBackend
from contract.network import PrivateNetworks
from contract.video import CLIP_FRAMES, MAX_DROPPED_FRAMES

ENV_PREFIX: Final = "COINTERACT_"


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", populate_by_name=True
    )

    # Where things are
    data_dir: Path = Field(
        Path("data"), description="Folder that holds jobs, results and the embedded Redis."
    )
    storage_url: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[^?#\s]*)?$",
        description="Where jobs and results are kept instead of the data folder: s3://bucket/prefix, the "
        "same for all processes of all machines. Endpoint and credentials come from boto3's own variables "
        "(AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID and so on) or the machine's role.",
    )
    storage_cache_bytes: int = Field(
        20 * 2**30, gt=0, description="Bytes of local copies that a machine keeps of files in S3."
    )
    storage_redirects: bool = Field(
        False,
        description="Send clients to S3 for files, with a signed URL, instead of passing the bytes on. They "
        "must reach it, and web pages need its CORS rules.",
    )
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("COINTERACT_REDIS_URL", "REDIS_URL"),
        description="Redis to use: redis://, rediss:// (TLS), unix:// or "
        "redis+sentinel://host:26379,host:26379/SERVICE/DB. Without it a private one is started on a unix "
        "socket in the data folder.",
    )
    host: str = Field("127.0.0.1", description="Address the API binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API binds to.")

    # What a request may ask for
    max_upload_bytes: int = Field(
        64 * 2**20, gt=0, description="Bytes of one whole request, all files together."
    )
    max_json_bytes: int = Field(
        24 * 2**20, gt=0, description="Bytes of a request sent as JSON (it is held in memory)."
    )
    upload_timeout_s: float = Field(
        120.0, gt=0, description="Seconds within which an upload must be complete."
    )
    max_image_bytes: int = Field(30 * 2**20, gt=0, description="Bytes of one image file.")
    max_image_pixels: int = Field(
        64_000_000,
        gt=0,
        description="Pixels (width × height) of one image as it is sent. What has over 25 million is shrunk "
        "while it is decoded.",
    )
    min_image_side: int = Field(32, gt=0, description="Smallest width and height of an image, in pixels.")
    max_audio_bytes: int = Field(50 * 2**20, gt=0, description="Bytes of the audio file.")
    max_audio_seconds: float = Field(300.0, gt=0, description="Seconds of decoded speech.")
    min_audio_seconds: float = Field(0.2, gt=0, description="Shortest speech accepted, in seconds.")
    max_dropped_frames: int = Field(
        MAX_DROPPED_FRAMES,
        ge=0,
        lt=CLIP_FRAMES,
        description="Frames at the end of the speech that are dropped rather than given a clip of their own.",
    )
    strict_media_types: bool = Field(
        False,
        description="Refuse a file of another type than it is said to be, even if that is an accepted one.",
    )
    max_video_bytes: int = Field(50 * 2**20, gt=0, description="Bytes of a pose video.")
    max_prompt_chars: int = Field(4000, gt=0, description="Characters of one prompt.")
    max_prompts: int = Field(100, gt=0, description="Prompts in one request (one per clip).")
    max_steps: int = Field(100, gt=0, description="Largest num_inference_steps.")
    max_clips: int = Field(100, gt=0, description="Largest number of clips in one video.")

    max_video_pixels: int = Field(4_000_000, gt=0, description="Pixels of one frame of a pose video.")
    max_concurrent_uploads: int = Field(
        128,
        gt=0,
        description="Submits being received at once; more are refused with 429. A tenant (API key, or "
        "address without keys) may hold as many of them as it leaves free.",
    )
    max_files: int = Field(
        1000, gt=0, description="Files that a key may keep (`POST /v1/files`); more are refused with 429."
    )
    max_files_bytes: int = Field(
        2 * 2**30, gt=0, description="Bytes of all decoded files that a key may keep."
    )
    file_retention_s: int = Field(
        7 * 86400, ge=60, description="Seconds that a file is kept after it was last sent."
    )
    decode_timeout_s: float = Field(
        60.0, gt=0, description="Seconds the sandbox may take to decode one request's files."
    )
    decode_processes: int = Field(2, gt=0, description="Sandboxed decodings at once.")
    fetch_timeout_s: float = Field(30.0, gt=0, description="Seconds to fetch one https: input.")
    max_wait_s: float = Field(
        60.0, gt=0, description="Longest wait that `Prefer: wait=N` is granted, in seconds."
    )
    max_event_streams: int = Field(
        200,
        gt=0,
        description="Open event streams, and requests that wait for a job; more streams get 429. "
        "Shared as uploads are.",
    )

    allowed_networks: CommaSeparated = Field(
        (),
        description="Hosts (with or without port) and networks of your own, separated by commas, to which "
        "input URLs and webhooks may lead, by http: too, such as minio.internal,10.1.0.0/16. Others must be "
        "public, and https:.",
    )

    # Where videos come from
    provenance: bool = Field(
        True,
        description="Sign content credentials (C2PA) into each video and clip: made by a model, and how.",
    )
    provenance_key: Path | None = Field(
        None,
        description="PEM file with the private key that signs. Made once and kept in storage if not given.",
    )
    provenance_certificate: Path | None = Field(
        None, description="PEM file with the certificate of that key and those of its issuers, in order."
    )

    # Speech from text
    speech_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+(/[^?#\s]*)?$",
        description="Base URL of an OpenAI-compatible speech server, such as http://kokoro:8880/v1: with it, "
        "requests may give speech_text instead of audio.",
    )
    speech_api_key: str | None = Field(None, repr=False, description="Key that the speech server asks for.")
    speech_model: str = Field("tts-1", description="Model that the speech server is asked for.")
    speech_voices: CommaSeparated = Field(
        ("alloy",),
        min_length=1,
        description="Voices that a request may choose, separated by commas; the first is the default.",
    )
    speech_timeout_s: float = Field(120.0, gt=0, description="Seconds to wait for speech from text.")
    max_speech_chars: int = Field(4096, gt=0, description="Characters of a speech_text.")

    # Under which name, and for whose pages
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+(/[^?#\s]*)?$",
        description="Where clients find this server, such as https://video.example.com. URLs in jobs, "
        "webhooks and signed links begin with it; without it they are paths.",
    )
    allowed_hosts: CommaSeparated = Field(
        (),
        description="Host names, separated by commas, under which this server answers; `*.example.com` for "
        "all below one. Loopback names, addresses and the host of the public URL need not be named.",
    )
    allowed_origins: CommaSeparated = Field(
        (),
        description="Origins of web pages, separated by commas, that may use this server from a browser, "
        "such as https://shop.example.com (CORS).",
    )

    # Who may ask
    allow_anonymous: bool = Field(
        False,
        description="Serve without API keys beyond loopback. For networks closed by other means.",
    )

    allow_unconfined_decoding: bool = Field(
        False,
        description="Decode uploads where the kernel cannot confine the decoder (macOS, and processors other "
        "than x86-64 and arm64). For files of people you trust.",
    )

    webhook_secret: str | None = Field(
        None,
        description="whsec_… secret that signs webhooks. Made once and kept in storage if not given.",
    )

    # The queue and the workers
    max_queued_jobs: int = Field(
        1000,
        gt=0,
        description="Jobs that may wait; more are refused with 429. A key may hold as many as it leaves "
        "free.",
    )
    max_attempts: int = Field(3, gt=0, description="Attempts that may end badly before a job fails.")
    lease_ttl_s: float = Field(
        4.5, gt=0, description="Seconds without a heartbeat after which a worker counts as dead."
    )
    heartbeat_s: float = Field(1.5, gt=0, description="Seconds between two heartbeats of a worker.")
    reaper_interval_s: float = Field(1.0, gt=0, description="Seconds between two rounds of the reaper.")
    stall_timeout_s: float = Field(
        1800.0, gt=0, description="Seconds without progress after which an attempt is stopped."
    )
    stop_grace_s: float = Field(
        25.0, gt=0, description="Seconds a worker has to put its job back on SIGTERM."
    )
    retention_s: int = Field(7 * 86400, gt=0, description="Seconds a finished job and its files are kept.")
    keep_motion: bool = Field(
        True,
        description="Keep with a job the frames between its clips, so that it can be extended, and its clips "
        "made anew. They are packed without loss and count as stored bytes.",
    )
    watchdog_s: float = Field(
        30.0,
        gt=0,
        description="Seconds without an answer to a health check after which `up` restarts a part.",
    )
    min_free_bytes: int = Field(2**30, ge=0, description="Free disk space below which new jobs are refused.")

    reaper_metrics_port: int | None = Field(
        None, description="Port of the reaper's /metrics; none by default."
    )
    worker_metrics_port: int | None = Field(
        None, description="Port of the worker's /metrics; none by default."
    )

    attention: AttentionBackend = Field(
        AttentionBackend.AUTO,
        description="Kernel that computes attention. auto measures those at hand when a worker loads its "
        "model. torch, torch-flash, torch-efficient, torch-math and cudnn come with torch; flash-2 needs the "
        "package flash-attn, flash-3 flash_attn_interface, flash-3-hub kernels (fetched at the first start).",
    )

    fp8_compute: bool = Field(
        True,
        description="Multiply in 8 bits what a checkpoint stores in 8 bits (`convert --fp8-ffn`), on GPUs "
        "that can (Ada, Hopper, Blackwell): faster, and a little less like the checkpoint. Off, and "
        "elsewhere, such weights are expanded to bf16 first.",
    )

    traces: bool = Field(
        False,
        description="Send traces by OTLP over HTTP, where OpenTelemetry's own variables say "
        "(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS and so on). Needs the extra `traces`.",
    )

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_json: bool = Field(False, description="Write log lines as JSON objects.")

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        PrivateNetworks.parse(entries)
        return entries

    @model_validator(mode="after")
    def _key_and_certificate_belong_together(self) -> Settings:
        if (self.provenance_key is None) != (self.provenance_certificate is None):
            raise ValueError("provenance_key and provenance_certificate belong together")
        return self

    @property
    def private_networks(self) -> PrivateNetworks:
        """`allowed_networks`, understood."""
        return PrivateNetworks.parse(self.allowed_networks)

    @property
    def base_url(self) -> str:
        """What the URLs that clients get begin with; empty if they are paths."""
        return (self.public_url or "").rstrip("/")

    @property
    def storage_dir(self) -> Path:
        """Folder of the artifact store, if that is a folder."""
        return self.data_dir / "storage"

    @property
    def remote_dir(self) -> Path:
        """Folder for unfinished files and for copies, if the artifact store is S3."""
        return self.data_dir / "s3"

    @property
    def machine_dir(self) -> Path:
        """Folder for what this machine keeps for itself."""
        return self.data_dir if self.storage_url is None else self.remote_dir

    @property
    def rq_lease_s(self) -> int:
        """Seconds until RQ gives up a ticket. Generous, because the journal and our lease decide about the
        job.
        """
        return math.ceil(2 * self.lease_ttl_s)


def as_environment(values: Mapping[str, object]) -> dict[str, str]:
    """The environment variables from which a process reads these settings; None leaves one out."""
    return {
        f"{ENV_PREFIX}{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }
