"""Fragmented MP4 (ISO/IEC 14496-12), box by box: a header, then a fragment for each clip with its sound.

Written here and not by FFmpeg, because a fragment must lie at its own time in the whole, although each is
made by itself, perhaps by another process. The header's edit lists make the seams gapless: they say how much
of the sound is the encoder's priming, and how far pictures are shown behind the time at which they are
decoded. All players honour that much of an edit list.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

VIDEO_TRACK, SOUND_TRACK = 1, 2
_UNITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_IS_KEY, _IS_NO_KEY = 0x02000000, 0x01010000
_MOVIE_TIMESCALE = 1000


@dataclass(frozen=True)
class VideoHeader:
    """H.264 of one size. `config` is its AVCDecoderConfigurationRecord; colours are BT.709, limited range."""

    width: int
    height: int
    timescale: int
    config: bytes
    delay: int
    """From the decoding of a picture to its showing, at least, so that no offset is negative."""


@dataclass(frozen=True)
class SoundHeader:
    """AAC-LC. `config` is its AudioSpecificConfig."""

    rate: int
    channels: int
    config: bytes
    priming: int
    """Samples at the start that are not sound."""


@dataclass(frozen=True)
class Sample:
    """A coded picture, or a frame of sound."""

    data: bytes
    is_key: bool = True
    offset: int = 0
    """From when it is decoded to when it is shown, in the track's timescale; 0 or more."""


@dataclass(frozen=True)
class Run:
    """Samples of one track, one behind the other from the time `start`, each lasting `duration`."""

    track: int
    start: int
    duration: int
    samples: Sequence[Sample]


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def header(video: VideoHeader, sound: SoundHeader) -> bytes:
    """What a player reads first: `ftyp` and `moov`."""
    times = struct.pack(">IIII", 0, 0, _MOVIE_TIMESCALE, 0)
    movie = struct.pack(">IHHII", 0x10000, 0x100, 0, 0, 0) + _UNITY + bytes(24) + struct.pack(">I", 3)
    extends = [
        _full(b"trex", 0, 0, struct.pack(">5I", track, 1, 0, 0, 0)) for track in (VIDEO_TRACK, SOUND_TRACK)
    ]
    moov = box(
        b"moov",
        _full(b"mvhd", 0, 0, times, movie),
        _video_track(video),
        _sound_track(sound),
        box(b"mvex", *extends),
    )
    return box(b"ftyp", b"iso6", struct.pack(">I", 0), b"iso6cmfcmp41") + moov


def _video_track(video: VideoHeader) -> bytes:
    entry = box(
        b"avc1",
        bytes(6) + struct.pack(">H", 1) + bytes(16),
        struct.pack(">HHIIIH", video.width, video.height, 0x480000, 0x480000, 0, 1),
        bytes(32) + struct.pack(">Hh", 24, -1),
        box(b"avcC", video.config),
        box(b"colr", b"nclx", struct.pack(">HHHB", 1, 1, 1, 0)),
    )
    shown = _full(b"vmhd", 0, 1, bytes(8)), entry
    return _track(VIDEO_TRACK, (video.width, video.height), video.timescale, b"vide", video.delay, *shown)


def _sound_track(sound: SoundHeader) -> bytes:
    entry = box(
        b"mp4a",
        bytes(6) + struct.pack(">H", 1) + bytes(8),
        struct.pack(">HHII", sound.channels, 16, 0, sound.rate << 16),
        _full(b"esds", 0, 0, _elementary_stream(sound.config)),
    )
    heard = _full(b"smhd", 0, 0, bytes(4)), entry
    return _track(SOUND_TRACK, (0, 0), sound.rate, b"soun", sound.priming, *heard)


def _elementary_stream(config: bytes) -> bytes:
    """An ES_Descriptor (ISO/IEC 14496-1) for AAC."""

    def descriptor(tag: int, body: bytes) -> bytes:
        return struct.pack(">BB", tag, len(body)) + body

    specific = descriptor(5, config)
    decoder = descriptor(4, struct.pack(">BBBHII", 0x40, 0x15, 0, 0, 0, 0) + specific)
    return descriptor(3, struct.pack(">HB", SOUND_TRACK, 0) + decoder + descriptor(6, b"\x02"))


def _track(
    track: int,
    size: tuple[int, int],
    timescale: int,
    handler: bytes,
    starts_at: int,
    media_header: bytes,
    entry: bytes,
) -> bytes:
    # All of the track from `starts_at` on; a duration of 0 stands for whatever fragments will come.
    edit = box(b"edts", _full(b"elst", 0, 0, struct.pack(">IIiHH", 1, 0, starts_at, 1, 0)))
    volume = 0x100 if handler == b"soun" else 0
    about = struct.pack(">5I", 0, 0, track, 0, 0) + bytes(8) + struct.pack(">HHHH", 0, 0, volume, 0) + _UNITY
    tkhd = _full(b"tkhd", 0, 7, about, struct.pack(">II", size[0] << 16, size[1] << 16))
    mdhd = _full(b"mdhd", 0, 0, struct.pack(">IIIIHH", 0, 0, timescale, 0, 0x55C4, 0))  # "und"
    hdlr = _full(b"hdlr", 0, 0, bytes(4), handler, bytes(12), b"\0")
    here = box(b"dinf", _full(b"dref", 0, 0, struct.pack(">I", 1), _full(b"url ", 0, 1)))
    empty = [_full(kind, 0, 0, bytes(4)) for kind in (b"stts", b"stsc")]
    empty += [_full(b"stsz", 0, 0, bytes(8)), _full(b"stco", 0, 0, bytes(4))]
    stbl = box(b"stbl", _full(b"stsd", 0, 0, struct.pack(">I", 1), entry), *empty)
    return box(b"trak", tkhd, edit, box(b"mdia", mdhd, hdlr, box(b"minf", media_header, here, stbl)))


def fragment(sequence: int, runs: Sequence[Run]) -> bytes:
    """`moof` and `mdat` of one stretch of time. Runs without samples are left out."""
    runs = [run for run in runs if run.samples]
    moof_bytes = len(_moof(sequence, runs, 0))
    data = b"".join(sample.data for run in runs for sample in run.samples)
    return _moof(sequence, runs, moof_bytes + 8) + box(b"mdat", data)


def _moof(sequence: int, runs: Sequence[Run], data_offset: int) -> bytes:
    """`data_offset` is where the first sample lies, from the start of the box."""
    tracks = []
    for run in runs:
        tracks.append(_traf(run, data_offset))
        data_offset += sum(len(sample.data) for sample in run.samples)
    return box(b"moof", _full(b"mfhd", 0, 0, struct.pack(">I", sequence)), *tracks)


def _traf(run: Run, data_offset: int) -> bytes:
    # default-base-is-moof, default-sample-duration-present
    tfhd = _full(b"tfhd", 0, 0x20008, struct.pack(">II", run.track, run.duration))
    tfdt = _full(b"tfdt", 1, 0, struct.pack(">Q", run.start))
    rows = [
        struct.pack(">III", len(sample.data), _IS_KEY if sample.is_key else _IS_NO_KEY, sample.offset)
        for sample in run.samples
    ]
    # data offset; size, flags and composition offset of each sample
    trun = _full(b"trun", 0, 0xE01, struct.pack(">Ii", len(rows), data_offset), *rows)
    return box(b"traf", tfhd, tfdt, trun)
