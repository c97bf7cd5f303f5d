"""Decoding of speech in everything that FFmpeg reads. Runs in the sandbox only, beside files of one's own."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from contract.choices import WarningCode
from server.decoding import wav
from server.decoding.ffmpeg import open_container
from server.decoding.formats import Limits, RejectedFileError, Sample, truncated
from server.decoding.riff import read_parts
from server.decoding.track import BLOCK_SAMPLES, SpeechWriter
from server.decoding.wholeness import (
    TAGS,
    check_aiff,
    check_mp4,
    end_of_tags,
    mp3_frames_announced,
    ogg_links,
    webm_links,
)

_DEMUXERS: Final = {
    "WAV": "wav",
    "AIFF": "aiff",
    "FLAC": "flac",
    "OGG": "ogg",
    "MP3": "mp3",
    "AAC": "aac",
    "M4A": "mov",
    "WEBM": "matroska",
}
_CODECS: Final = frozenset(
    {
        *("aac", "alac", "ac3", "eac3", "amrnb", "amrwb", "flac", "gsm_ms", "opus", "speex", "vorbis"),
        *("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float"),
        *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8"),
        *("pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le", "pcm_s16be", "pcm_s16le"),
        *("pcm_s24be", "pcm_s24le", "pcm_s32be", "pcm_s32le", "pcm_u16be", "pcm_u16le"),
    }
)
_NAMES: Final = "AAC, ALAC, AC-3, AMR, FLAC, MP3, Opus, Speex, Vorbis, PCM, ADPCM"
_SELF_SYNCHRONOUS: Final = frozenset({"MP3", "AAC"})
"""Frames of these are found by their first bits, so that something between them, a tag, is passed over."""
_RAW: Final = frozenset({"MP3", "AAC", "FLAC"})
"""Frames up to the end of the file."""
_LOST_SECONDS: Final = 0.5
"""So much unreadable sound between readable is a damaged file."""


class _Slice:
    """Some of a file as a file: FFmpeg gets one link of a chain."""

    def __init__(self, source: BinaryIO, begin: int, end: int) -> None:
        self._source, self._begin, self._length = source, begin, end - begin
        self._position = 0

    def read(self, count: int = -1) -> bytes:
        left = self._length - self._position
        self._source.seek(self._begin + self._position)
        data = self._source.read(left if count < 0 else max(0, min(count, left)))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position


@dataclass
class _Read:
    """What of a file could be decoded. Offsets are in bytes."""

    frames: int = 0
    seconds: float = 0.0
    end: int = 0
    """End of the last packet that could be decoded."""
    largest: int = 0
    bad: list[tuple[int, int]] = field(default_factory=list)
    """Begin and end of the packets that could not."""
    tags: list[int] = field(default_factory=list)
    """Where a tag begins; FFmpeg takes what is in it for frames as long as it looks like some."""


def _stream_of(container: InputContainer, kind: str) -> AudioStream:
    streams = container.streams.audio
    if not streams:
        raise RejectedFileError("undecodable_file", f"The {kind} file has no sound.")
    for stream in streams:
        if stream.codec_context is not None and stream.codec_context.name in _CODECS:
            return stream
    raise RejectedFileError("unsupported_media_type", "The sound is coded in an unsupported way.", _NAMES)


def _samples(frame: av.AudioFrame) -> np.ndarray:
    """(C, N): int16 where that is exact, else float32 around ±1."""
    channels = frame.layout.nb_channels
    block = frame.to_ndarray()
    if not frame.format.is_planar:
        block = block.reshape(-1, channels).T
    match frame.format.packed.name:
        case "s16":
            return block
        case "u8":
            return (block.astype(np.int16) - np.int16(128)) * np.int16(256)
        case "s32":
            return (block / 2**31).astype(np.float32)
        case _:
            return block.astype(np.float32, copy=False)


def _frames(
    container: InputContainer, stream: AudioStream, lenient: bool, read: _Read
) -> Iterator[av.AudioFrame]:
    """The decoded frames. What cannot be decoded is noted in `read`, or raised if not `lenient`."""
    for packet in container.demux(stream):
        begin = packet.pos or 0
        if packet.size and bytes(memoryview(packet)[:8]).startswith(TAGS):
            read.tags.append(begin)
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if not lenient:
                raise
            read.bad.append((begin, begin + packet.size))
            continue
        if packet.size:
            read.end = max(read.end, begin + packet.size)
            read.largest = max(read.largest, packet.size)
        for frame in frames:
            read.frames += 1
            read.seconds += frame.samples / frame.sample_rate
            yield frame


class _Blocks:
    """Gathers frames of one rate and layout into blocks worth writing."""

    def __init__(self, writer: SpeechWriter) -> None:
        self._writer = writer
        self._waiting: list[np.ndarray] = []
        self._samples = 0
        self._layout: tuple[object, ...] = ()
        self._rate = 0
        self._speakers: tuple[str, ...] = ()

    def add(self, frame: av.AudioFrame) -> None:
        block = _samples(frame)
        layout = (frame.sample_rate, frame.layout.name, block.dtype)
        if layout != self._layout or self._samples >= BLOCK_SAMPLES:
            self.flush()
            self._layout, self._rate = layout, frame.sample_rate
            self._speakers = tuple(channel.name for channel in frame.layout.channels)
        self._waiting.append(block)
        self._samples += block.shape[1]

    def flush(self) -> None:
        if self._waiting:
            self._writer.write(np.concatenate(self._waiting, axis=1), self._rate, self._speakers)
        self._waiting, self._samples = [], 0


def _decode(
    source: BinaryIO | _Slice, kind: str, writer: SpeechWriter, options: dict[str, str] | None = None
) -> _Read:
    """Append the sound of one file. Raises RejectedFileError, FFmpegError."""
    read, blocks = _Read(), _Blocks(writer)
    with open_container(source, _DEMUXERS[kind], _CODECS, options) as container:
        stream = _stream_of(container, kind)
        announced = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        for frame in _frames(container, stream, kind in _SELF_SYNCHRONOUS, read):
            blocks.add(frame)
        blocks.flush()
    # FLAC counts its samples, or says nothing; an MP4's duration is never more than its index holds.
    if kind in ("FLAC", "M4A") and read.seconds < announced - 0.25:
        raise truncated()
    return read


def _check_frames(data: mmap.mmap, kind: str, read: _Read) -> None:
    """Frames to the end of the file, and none missing between. Raises RejectedFileError."""
    rest = len(data) - end_of_tags(data, read.end)
    # A stream that was stopped ends within a frame: that one is lost to every reader.
    if rest > (0 if kind == "FLAC" else max(1024, read.largest)):
        raise truncated()
    lost, passed, tags = 0, 0, iter([*read.tags, len(data)])
    tag = next(tags)
    for begin, end in read.bad:
        if begin >= read.end:
            break  # that is the rest
        while tag <= begin:
            # Each byte is looked at once, however many tags there are.
            passed, tag = passed if tag < passed else end_of_tags(data, tag), next(tags)
        lost += max(0, end - max(begin, passed))
    if lost * read.seconds > _LOST_SECONDS * max(1, len(data) - lost):
        raise RejectedFileError("undecodable_file", f"The {kind} speech is damaged on the way.")
    announced = mp3_frames_announced(data) if kind == "MP3" else None
    if announced is not None and read.frames < announced - 2:
        raise truncated()


def _decode_wav(source: BinaryIO, writer: SpeechWriter) -> None:
    for part in read_parts(source):
        if part.is_plain:
            wav.write_part(source, part, writer)
        else:
            options = {"ignore_length": "1"} if part.size_is_open else None
            _decode(_Slice(source, part.begin, part.end), "WAV", writer, options)
            wav.warn_if_cut(part.missing_bytes, writer)


def _decode_all(source: BinaryIO, data: mmap.mmap, kind: str, writer: SpeechWriter) -> None:
    match kind:
        case "WAV":
            _decode_wav(source, writer)
        case "WEBM":
            for begin, end in webm_links(data):
                _decode(_Slice(source, begin, end), kind, writer)
        case "OGG":
            links, is_ended = ogg_links(data)
            for begin, end in links:
                _decode(_Slice(source, begin, end), kind, writer)
            if not is_ended:
                writer.warn(
                    WarningCode.SPEECH_MAYBE_CUT, "The Ogg file does not say that it ends where it ends."
                )
        case _:
            if kind == "M4A":
                check_mp4(data)
            elif kind == "AIFF":
                wav.warn_if_cut(check_aiff(data), writer)
            read = _decode(source, kind, writer)
            if kind in _RAW:
                _check_frames(data, kind, read)


def decode_sound(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """The canonical speech out of a sound or video file. Raises RejectedFileError."""
    writer = SpeechWriter(target, limits)
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            source.seek(0)
            _decode_all(source, data, kind, writer)
        except av.error.FFmpegError as error:
            raise RejectedFileError("undecodable_file", f"The {kind} speech is damaged.") from error
    return writer.finish()


def sample() -> Sample:
    """AAC in MP4."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return "audio", buffer.getvalue()
