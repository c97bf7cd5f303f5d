"""Speech as people bring it: decoded to the end, as loud and as long as FFmpeg decodes it, or refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.video import FPS
from tests.server.conftest import Api
from tests.server.decoded import (
    CASES,
    TONE,
    Heard,
    Pipe,
    by_ffmpeg,
    decibels,
    encoded,
    heard,
    level,
    needs_ffmpeg,
    peak,
    refused,
    wav,
)
from tests.server.inputs import audio_bytes, form, samples

pytestmark = pytest.mark.slow

ONE_FRAME_S = 1 / FPS
ANSWERS = {
    # file: seconds, channels
    "adts.aac": (2.926, 1),
    "chained.ogg": (5.8, 1),
    "concat_xing.mp3": (2.978, 1),
    "flac_pipe.flac": (2.9, 1),
    "mediarecorder.webm": (2.9, 1),
    "pipe_vbr_9s.mp3": (9.684, 1),
    "surround51.flac": (1.5, 2),
    "vbr_noxing.mp3": (2.928, 1),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_file_from_the_wild_is_as_long_as_it_sounds(name: str) -> None:
    seconds, channels = ANSWERS[name]
    found = heard((CASES / name).read_bytes())
    assert abs(found.seconds - seconds) < ONE_FRAME_S
    assert found.samples.shape[1] == channels
    assert found.warnings == []
    assert peak(found.samples) > -20


# What a header says and what is there


def with_size(size: int) -> bytes:
    """TONE as a WAV whose header says that so many bytes of sound follow."""
    data = bytearray(wav(TONE))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    return bytes(data)


def whole(found: Heard, sound: np.ndarray = TONE) -> bool:
    return len(found.samples) == len(sound) and bool(np.abs(found.samples - sound).max() < 1e-4)


@pytest.mark.parametrize(
    "size", [0, 0x7FFFF000, 0x7FFFFFFF, 2_000_000_000, 0x80000000, 0xFFFFFFFF, 0xFFFFFFDB]
)
@pytest.mark.parametrize("codec", ["PCM_16", "ULAW"])
def test_a_wav_with_a_placeholder_for_its_size_is_read_to_the_end(size: int, codec: str) -> None:
    data = bytearray(wav(TONE, subtype=codec))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    found = heard(bytes(data))
    assert len(found.samples) == len(TONE)
    assert np.abs(found.samples - TONE).max() < 0.02
    assert found.warnings == []


def test_a_wav_that_announces_a_little_more_than_it_holds_is_read_with_a_warning() -> None:
    assert heard(wav(TONE)[:-10_000]).warnings == ["speech_maybe_cut"]
    assert len(heard(wav(TONE)[:-10_000]).samples) == len(TONE) - 5000
    assert heard(with_size(2 * len(TONE) + 50_000)).warnings == ["speech_maybe_cut"]


def rf64(size: int, declared: int, sound: bytes) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    ds64 = struct.pack("<QQQI", size + 72, size, size // 2, 0)
    return (
        b"RF64\xff\xff\xff\xffWAVEds64"
        + struct.pack("<I", len(ds64))
        + ds64
        + b"fmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", declared)
        + sound
    )


@pytest.mark.parametrize("size", [None, 0, 2**40])
@pytest.mark.parametrize("name", [b"RF64", b"BW64"])
def test_a_wav_of_64_bits_is_read_whatever_its_size_says(size: int | None, name: bytes) -> None:
    sound = (TONE * 32_767).astype("<i2").tobytes()
    data = rf64(len(sound) if size is None else size, 0xFFFFFFFF, sound)
    assert whole(heard(name + data[4:]))


LIST = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf62.12.102\0"


@pytest.mark.parametrize(
    "behind", [LIST, b"\0" + LIST, b"TAG" + b"x" * 5000, b"ID3\x03" + b"y" * 5000, b"\0" * 9000, b"\n"]
)
def test_what_lies_behind_the_sound_of_a_wav_is_not_heard(behind: bytes) -> None:
    assert whole(heard(wav(TONE) + behind))


def test_the_sound_of_a_wav_does_not_begin_before_its_header_says() -> None:
    data = wav(TONE)
    at = data.index(b"data")
    assert whole(heard(data[:at] + LIST + b"junk\x03\0\0\0abc\0" + data[at:]))


def test_sound_behind_the_size_that_a_wav_announces_is_not_dropped_without_a_word() -> None:
    assert refused(with_size(4000)) == "undecodable_file"


def test_wavs_sent_one_behind_the_other_are_heard_one_after_the_other() -> None:
    stereo = samples(0.5, 44_100, 2)
    found = heard(wav(TONE) + wav(stereo, 44_100) + with_size(0x7FFFF000))
    assert found.samples.shape[1] == 1
    assert abs(found.seconds - (2 * 1.3 + 0.5)) < 0.001
    assert np.abs(found.samples[-len(TONE) :] - TONE).max() < 1e-4


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp3", "libmp3lame"), ("adts", "aac"), ("flac", "flac"), ("ogg", "libopus"), ("webm", "libopus")],
)
def test_recordings_joined_byte_by_byte_are_heard_whole(container: str, codec: str) -> None:
    one = encoded(container, codec, samples(1.3, 48_000), 48_000)
    single, triple = heard(one), heard(one * 3)
    # What an encoder puts before and behind is cut off the first recording only, as FFmpeg does it.
    assert abs(triple.seconds - 3 * single.seconds) < 3 * 0.05
    assert abs(level(triple.samples) - level(single.samples)) < 0.2


def test_joined_recordings_may_differ_in_rate_and_channels() -> None:
    mono = encoded("mp3", "libmp3lame", samples(1.0, 24_000), 24_000)
    stereo = encoded("mp3", "libmp3lame", samples(1.0, 44_100, 2), 44_100)
    found = heard(mono + stereo)
    assert (found.rate, found.samples.shape[1]) == (24_000, 1)
    # What an encoder puts before and behind stays in all but the first.
    assert -0.01 < found.seconds - heard(mono).seconds - heard(stereo).seconds < 0.1
    links = encoded("ogg", "libopus", samples(1.0, 48_000), 48_000) + audio_bytes(
        "OGG", 1.0, 22_050, subtype="VORBIS"
    )
    assert abs(heard(links).seconds - 2.0) < ONE_FRAME_S


def id3(size: int) -> bytes:
    return (
        b"ID3\x03\0\0"
        + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
        + np.random.default_rng(1).bytes(size)
    )


def test_tags_before_between_and_behind_are_not_heard() -> None:
    one = encoded("mp3", "libmp3lame", TONE, 16_000)
    plain = heard(one + one)
    tagged = heard(id3(500) + one + b"TAG" + b"t" * 125 + id3(200_000) + one + b"TAG" + b"t" * 125)
    assert abs(tagged.seconds - plain.seconds) < ONE_FRAME_S


def test_a_title_in_an_odd_encoding_refuses_no_speech() -> None:
    tone = samples(0.5, 16_000)
    riff = wav(tone, subtype="ULAW") + b"LIST\x10\0\0\0INFOINAM\x04\0\0\0\xe9\xff\xfe\xe4"
    title = b"TIT2\0\0\0\x06\0\0\x03\xe9\xff\xfe\xe4\xc0"
    mp3 = b"ID3\x03\0\0\0\0\0" + bytes((len(title),)) + title + encoded("mp3", "libmp3lame", tone, 16_000)
    flac = encoded("flac", "flac", tone, 16_000).replace(b"encoder=", b"\xe9\xff\xfe=aaaa", 1)
    for data in (riff, mp3, flac):
        assert heard(data).seconds == pytest.approx(0.5, abs=ONE_FRAME_S)


def test_mp4_and_aiff_joined_byte_by_byte_are_refused_because_only_the_first_can_be_read() -> None:
    m4a = encoded("mp4", "aac", samples(1.0, 48_000), 48_000)
    aiff = encoded("aiff", "pcm_s16be", TONE, 16_000)
    assert refused(m4a + m4a) == "undecodable_file"
    assert refused(aiff + aiff) == "undecodable_file"
    assert len(heard(aiff).samples) == len(TONE)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp3", "libmp3lame"),
        ("flac", "flac"),
        ("wav", "pcm_s16le"),
        ("webm", "libopus"),
        ("ogg", "libopus"),
        ("adts", "aac"),
    ],
)
def test_what_comes_out_of_a_pipe_is_heard_whole(container: str, codec: str) -> None:
    sound = samples(4.0, 48_000)
    found = heard(encoded(container, codec, sound, 48_000, Pipe()))
    assert 4.0 <= found.seconds < 4.0 + 0.06
    assert found.warnings == []


def test_a_stream_recorded_from_its_middle_is_heard() -> None:
    data = encoded("mp3", "libmp3lame", samples(3.0, 24_000), 24_000, Pipe())
    assert heard(data[5000:]).seconds > 1.0


CUT = {
    "mp3": encoded("mp3", "libmp3lame", samples(2.0, 24_000), 24_000),
    "flac": encoded("flac", "flac", samples(2.0, 24_000), 24_000),
    "flac of unknown length": encoded("flac", "flac", samples(2.0, 24_000), 24_000, Pipe()),
    "opus": encoded("ogg", "libopus", samples(2.0, 48_000), 48_000),
    "vorbis": audio_bytes("OGG", 2.0, 24_000, subtype="VORBIS"),
    "m4a": encoded("mp4", "aac", samples(2.0, 48_000), 48_000),
    "pcm in mov": encoded("mov", "pcm_s16le", samples(2.0, 48_000), 48_000),
    "webm": encoded("webm", "libopus", samples(2.0, 48_000), 48_000),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("kept", [0.35, 0.6, 0.8, 0.97])
def test_a_file_whose_end_is_missing_is_refused_not_shortened(kind: str, kept: float) -> None:
    data = CUT[kind]
    assert refused(data[: round(len(data) * kept)]) in ("truncated_file", "undecodable_file")


@pytest.mark.parametrize("filler", [b"\0", b"\xaa", None], ids=["zeros", "bytes", "noise"])
@pytest.mark.parametrize("part", [(0.3, 0.7), (0.6, 1.0)], ids=["middle", "end"])
def test_a_file_that_cannot_be_read_on_the_way_or_at_the_end_is_refused(
    filler: bytes | None, part: tuple[float, float]
) -> None:
    for kind in ("mp3", "flac"):
        data = CUT[kind]
        begin, end = (round(len(data) * share) for share in part)
        noise = np.random.default_rng(3).bytes(end - begin)
        broken = data[:begin] + (noise if filler is None else filler * (end - begin)) + data[end:]
        assert refused(broken) in ("truncated_file", "undecodable_file")


# Length, level and peak are FFmpeg's

ENCODINGS = {
    # name: container, codec, rates (None: any)
    "PCM_U8": ("wav", None, None),
    "PCM_16": ("wav", None, None),
    "PCM_24": ("wav", None, None),
    "PCM_32": ("wav", None, None),
    "FLOAT": ("wav", None, None),
    "DOUBLE": ("wav", None, None),
    "ULAW": ("wav", None, None),
    "MS_ADPCM": ("wav", None, None),
    "flac": ("flac", "flac", None),
    "aiff": ("aiff", "pcm_s16be", None),
    "aiff of 24 bits": ("aiff", "pcm_s24be", None),
    "pcm in mov": ("mov", "pcm_s24le", None),
    "alac": ("mp4", "alac", (8000, 16_000, 44_100, 48_000)),
    "mp3": ("mp3", "libmp3lame", (8000, 11_025, 16_000, 22_050, 44_100, 48_000)),
    "aac": ("mp4", "aac", (16_000, 22_050, 44_100, 48_000, 96_000)),
    "adts": ("adts", "aac", (16_000, 22_050, 44_100, 48_000, 96_000)),
    "opus": ("ogg", "libopus", (48_000,)),
    "opus in webm": ("webm", "libopus", (48_000,)),
    "opus in mp4": ("mp4", "libopus", (48_000,)),
}
RATES = (8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 88_200, 96_000, 192_000)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[str, int, int, float]:
    name = draw(st.sampled_from(sorted(ENCODINGS)))
    rate = draw(st.sampled_from(ENCODINGS[name][2] or RATES))
    return name, rate, draw(st.sampled_from((1, 2))), draw(st.sampled_from((0.4, 1.0, 2.37)))


@needs_ffmpeg
@given(recordings())
@settings(
    max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_length_level_and_peak_are_ffmpegs(recording: tuple[str, int, int, float]) -> None:
    name, rate, channels, seconds = recording
    container, codec, _ = ENCODINGS[name]
    sound = samples(seconds, rate, channels)
    data = wav(sound, rate, name) if codec is None else encoded(container, codec, sound, rate)
    found = heard(data)
    right = by_ffmpeg(data, found.rate, channels)
    assert found.rate == min(rate, 48_000)
    assert found.samples.shape[1] == channels
    assert abs(len(found.samples) - len(right)) / found.rate < ONE_FRAME_S
    for channel in range(channels):
        assert abs(level(found.samples[:, channel]) - level(right[:, channel])) < 0.1
        assert abs(peak(found.samples[:, channel]) - peak(right[:, channel])) < 0.1


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_S8", "PCM_16"])
@pytest.mark.parametrize("rate", [88_200, 96_000, 192_000])
def test_sound_of_few_bits_at_a_high_rate_is_as_loud_as_it_was(kind: str, subtype: str, rate: int) -> None:
    if subtype not in soundfile.available_subtypes(kind):
        pytest.skip(f"{kind} has no {subtype}")
    sound = samples(1.0, rate)
    found = heard(audio_bytes(kind, 1.0, rate, subtype=subtype))
    assert abs(level(found.samples) - level(sound)) < 0.1
    assert abs(peak(found.samples) - peak(sound)) < 0.1


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
def test_no_sample_of_16_bits_or_floats_changes(subtype: str, channels: int) -> None:
    sound = samples(1.0, 24_000, channels)
    sent, _ = soundfile.read(io.BytesIO(wav(sound, 24_000, subtype)), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(heard(wav(sound, 24_000, subtype)).samples, sent)


# Channels


@needs_ffmpeg
def test_six_channels_are_mixed_to_two_as_ffmpeg_does() -> None:
    sound = np.random.default_rng(2).uniform(-0.5, 0.5, (48_000, 6)).astype(np.float32)
    for data in (encoded("flac", "flac", sound, 48_000), wav(sound, 48_000)):
        right = by_ffmpeg(data, 48_000, 2)
        assert np.abs(heard(data).samples - right).max() < 1e-3


def test_speech_in_the_middle_of_5_1_is_kept() -> None:
    sound = np.zeros((16_000, 6), np.float32)
    sound[:, 2:3] = samples(1.0, 16_000)
    found = heard(wav(sound))
    assert decibels(float(np.abs(found.samples).max())) > -20
    np.testing.assert_allclose(found.samples[:, 0], found.samples[:, 1], atol=1e-4)


def test_more_than_eight_channels_are_refused() -> None:
    assert refused(wav(samples(0.5, channels=9))) == "audio_unsupported_layout"


@pytest.mark.parametrize("share", [1.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_channel_that_is_the_other_upside_down_does_not_silence_the_speech(share: float, kind: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.hstack([TONE, -share * TONE]), 16_000, format=kind, subtype="PCM_16")
    found = heard(buffer.getvalue())
    assert np.abs(found.samples[:, 0:1] - TONE).max() < 1e-4
    assert np.abs(found.samples[:, 1:2] - share * TONE).max() < 1e-4
    assert found.warnings == []


def test_the_loudest_16_bit_sample_can_be_turned() -> None:
    left = np.where(np.arange(16_000) % 40 < 20, 1.0, -1.0).astype(np.float32)[:, None]
    found = heard(wav(np.hstack([left, -left])))
    assert np.abs(found.samples[:, 0] - found.samples[:, 1]).max() < 1e-4


@pytest.mark.parametrize("right", [0.0, 0.3, 1.0])
def test_channels_in_phase_stay_as_they_are(right: float) -> None:
    sound = np.hstack([TONE, right * TONE])
    assert np.abs(heard(wav(sound)).samples - sound).max() < 1e-4


# Silence


def noise(decibel: float, seconds: float = 2.0) -> np.ndarray:
    return (
        np.random.default_rng(5)
        .normal(0, 10 ** (decibel / 20), (round(16_000 * seconds), 1))
        .astype(np.float32)
    )


CLICK = np.zeros((32_000, 1), np.float32)
CLICK[7000:7050] = 0.9
SOUNDS = {
    "silence": (np.zeros((16_000, 1), np.float32), ["speech_silent"]),
    "a constant": (np.full((16_000, 2), 0.4, np.float32), ["speech_silent"]),
    "a click": (CLICK, ["speech_silent"]),
    "hiss": (noise(-75), ["speech_silent"]),
    "a tone at -50 dB": (0.005 * TONE, ["speech_quiet"]),
    "a soft tone": (0.05 * TONE, []),
    "a tone": (TONE, []),
    "a word in a long silence": (np.vstack([noise(-80, 20.0), TONE, noise(-80, 20.0)]), []),
    "speech in the left channel only": (np.hstack([TONE, 0 * TONE]), []),
}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_silence_and_what_nobody_will_hear_are_told(name: str, subtype: str) -> None:
    sound, warnings = SOUNDS[name]
    assert heard(wav(sound, subtype=subtype)).warnings == warnings


def test_a_warning_is_in_the_answer_of_validate_in_the_job_and_in_its_list(api: Api) -> None:
    silence = wav(np.zeros((16_000, 1), np.float32))
    expected = [("speech_silent", "audio")]

    def told(answer: dict[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
        return [(warning["code"], warning["field"]) for warning in answer["warnings"]]

    assert told(api.client.post("/v1/validate", files=form(audio=silence)).json()) == expected
    job = api.client.post("/v1/generate", files=form(audio=silence)).json()
    assert told(job) == expected
    assert told(api.client.get(f"/v1/jobs/{job['id']}").json()) == expected
    assert told(api.client.get("/v1/jobs").json()["data"][0]) == expected
    assert told(api.client.post("/v1/generate", files=form()).json()) == []
