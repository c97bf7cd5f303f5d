"""Fragments of a stream: picture and sound stay together over the seams, nothing is lost or heard twice."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from contract.video import CLIP_FRAMES, FPS
from model.media import ClipStream, MediaError, encode_clip, join_clips

pytestmark = pytest.mark.slow

NUM_FRAMES = 2 * CLIP_FRAMES + 50
EVENTS = (1, 20, 79, 80, 81, 159, 160, 161, 205)
"""Frames that flash, with a click at the same time: within clips, and on both sides of the seams."""
MOST_OFFSET_S = 0.010


def clicking(rate: int, channels: int, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Silence with a short burst at each event, (N, channels)."""
    sound = np.zeros((num_frames * rate // FPS, channels), np.float32)
    burst = np.sin(np.arange(rate // 250) * 2 * np.pi / 8) * 0.9
    for frame in EVENTS:
        start = frame * rate // FPS
        sound[start : start + len(burst)] += burst[: len(sound) - start, None]
    return sound


def parts(folder: Path, rate: int, channels: int = 1, seconds_more: float = 0.0) -> list[Path]:
    """The header and the fragments of a video of three clips."""
    sound = clicking(rate, channels)
    more = np.zeros((round(seconds_more * rate), channels), np.float32)
    soundfile.write(folder / "speech.wav", np.concatenate([sound, more]), rate)
    files = [folder / "header.mp4"]
    for index in range(3):
        count = min(CLIP_FRAMES, NUM_FRAMES - index * CLIP_FRAMES)
        frames = np.random.default_rng(index).integers(0, 30, (count, 64, 48, 3), np.uint8)
        for frame in range(count):
            if index * CLIP_FRAMES + frame in EVENTS:
                frames[frame] = 255
        encode_clip(frames, folder / f"{index}.mp4")
        files.append(folder / f"{index}.m4s")
        # Each by itself, as attempts in different processes make them.
        stream = ClipStream(folder / "speech.wav", NUM_FRAMES)
        stream.write(index, folder / f"{index}.mp4", files[0], files[-1])
    return files


def joined(files: list[Path], path: Path) -> Path:
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    return path


def flashes(path: str | Path) -> list[float]:
    with av.open(str(path)) as container:
        return [
            float(frame.pts * frame.time_base)
            for frame in container.decode(video=0)
            if frame.to_ndarray(format="gray").mean() > 128 and frame.pts is not None and frame.time_base
        ]


def heard(path: str | Path) -> tuple[np.ndarray, int, float]:
    """Samples (N,), their rate, and the time of the first."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        samples = np.concatenate([frame.to_ndarray().mean(axis=0) for frame in frames])
        first = frames[0]
        assert first.pts is not None
        assert first.time_base is not None
        return samples, first.sample_rate, float(first.pts * first.time_base)


def clicks(path: str | Path) -> list[float]:
    """When the clicks are loudest, less half of their length."""
    samples, rate, begin = heard(path)
    found = []
    for frame in EVENTS:
        middle = round((frame / FPS - begin) * rate)
        low = max(0, middle - rate // 50)
        power = np.square(samples[low : middle + rate // 50])
        centre = low + float((power * np.arange(len(power))).sum() / power.sum())
        found.append(begin + centre / rate - 0.002)
    return found


RATES = [(16_000, 1), (8_000, 1), (22_050, 1), (44_100, 2), (48_000, 1)]


@pytest.mark.parametrize(("rate", "channels"), RATES)
def test_pictures_and_sound_stay_together_over_the_seams(tmp_path: Path, rate: int, channels: int) -> None:
    whole = joined(parts(tmp_path, rate, channels), tmp_path / "whole.mp4")
    seen, sounded = flashes(whole), clicks(whole)
    assert seen == pytest.approx([frame / FPS for frame in EVENTS], abs=1e-6)
    for at, sound in zip(seen, sounded, strict=True):
        assert abs(at - sound) <= MOST_OFFSET_S, f"{at} s: {1000 * (sound - at):.1f} ms"


def test_the_stream_has_the_pictures_and_sound_of_the_finished_video_and_no_more(tmp_path: Path) -> None:
    whole = joined(parts(tmp_path, 16_000), tmp_path / "whole.mp4")
    join_clips(
        [tmp_path / f"{index}.mp4" for index in range(3)], tmp_path / "speech.wav", tmp_path / "video.mp4"
    )
    packets: dict[str, list[bytes]] = {}
    times: dict[str, list[int]] = {}
    for path in (whole, tmp_path / "video.mp4"):
        for kind in ("video", "audio"):
            with av.open(str(path)) as container:
                (stream,) = [each for each in container.streams if each.type == kind]
                read = [packet for packet in container.demux(stream) if packet.size]
                packets[f"{path.stem} {kind}"] = [bytes(packet) for packet in read]
                times[f"{path.stem} {kind}"] = [packet.pts or 0 for packet in read]
    assert packets["whole video"] == packets["video video"]
    wanted = packets["video audio"]
    assert packets["whole audio"] == wanted[: len(packets["whole audio"])]
    assert len(wanted) - len(packets["whole audio"]) <= 1
    assert set(np.diff(times["whole audio"])) == {1024}
    assert sorted(times["whole video"])[:3] == [0, 512, 1024]


def test_each_fragment_lies_at_its_own_time_and_begins_with_a_key_picture(tmp_path: Path) -> None:
    files = parts(tmp_path, 16_000)
    for index, fragment in enumerate(files[1:]):
        alone = joined([files[0], fragment], tmp_path / "alone.mp4")
        with av.open(str(alone)) as container:
            frames = list(container.decode(video=0))
        assert frames[0].time == pytest.approx(index * CLIP_FRAMES / FPS)
        assert frames[0].key_frame
        _, rate, begin = heard(alone)
        expected = max(0, index * CLIP_FRAMES / FPS)
        assert -0.065 <= begin - expected < 1024 / rate + 0.001


def test_fragments_are_the_same_whoever_makes_them_and_headers_are_equal(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    made = []
    for folder in folders:
        folder.mkdir()
        made.append([file.read_bytes() for file in parts(folder, 24_000)])
    assert made[0] == made[1]


def test_speech_that_outlasts_the_video_is_not_in_the_stream(tmp_path: Path) -> None:
    whole = joined(parts(tmp_path, 16_000, seconds_more=5.0), tmp_path / "whole.mp4")
    samples, rate, begin = heard(whole)
    assert begin + len(samples) / rate <= NUM_FRAMES / FPS + 1024 / rate


def test_every_box_says_how_long_it_is(tmp_path: Path) -> None:
    def kinds(data: bytes) -> list[str]:
        found, position = [], 0
        while position < len(data):
            size, kind = struct.unpack_from(">I4s", data, position)
            assert 8 <= size <= len(data) - position
            found.append(kind.decode())
            position += size
        return found

    files = parts(tmp_path, 16_000)
    assert kinds(files[0].read_bytes()) == ["ftyp", "moov"]
    assert all(kinds(file.read_bytes()) == ["moof", "mdat"] for file in files[1:])


def test_a_file_that_is_no_clip_of_ours_is_refused(tmp_path: Path) -> None:
    files = parts(tmp_path, 16_000)
    stream = ClipStream(tmp_path / "speech.wav", NUM_FRAMES)
    with pytest.raises(MediaError):
        stream.write(0, tmp_path / "speech.wav", files[0], files[1])
