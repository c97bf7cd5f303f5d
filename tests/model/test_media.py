"""Photos, speech and pose videos in; clips and whole videos out."""

import io
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.choices import Fit
from model.media import (
    MediaError,
    Speech,
    encode_clip,
    fit_person,
    join_clips,
    load_audio,
    load_image,
    load_pose,
    load_speech,
    place_product,
)

WHITE = (255, 255, 255)


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """(channels, N) float32, 440 Hz; the second channel is silent."""
    t = np.arange(round(seconds * rate)) / rate
    samples = np.zeros((channels, len(t)), np.float32)
    samples[0] = 0.5 * np.sin(2 * np.pi * 440 * t)
    return samples


def moving(frames: int, width: int = 64, height: int = 48, start: int = 0) -> np.ndarray:
    """A smooth pattern that shifts with time, (T, H, W, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    pictures = [
        np.stack([(2 * x + 3 * t) % 256, (3 * y + 5 * t) % 256, (x + y + t) % 256], axis=-1)
        for t in range(start, start + frames)
    ]
    return np.stack(pictures).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, times: list[Fraction]) -> None:
    """A video with a frame at each of `times` (seconds); lossless, so that frames can be told apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=30, options={"qp": "0", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        stream.codec_context.time_base = Fraction(1, 600)
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(time * 600), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# Photos


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_photos_of_each_kind_load_as_rgb(tmp_path, kind):
    Image.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / f"photo.{kind}")
    image = load_image(tmp_path / f"photo.{kind}")
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(image, int) - (200, 30, 30)).max() < 6


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("RGB", (20, 10))
    image.paste(WHITE, (0, 0, 5, 10))  # the left edge is white
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    image.save(tmp_path / "photo.png", exif=exif)
    turned = load_image(tmp_path / "photo.png")
    assert turned.size == (10, 20)
    assert turned.getpixel((5, 0)) == WHITE
    assert turned.getpixel((5, 19)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    image.convert(mode).save(tmp_path / "photo.png")
    loaded = load_image(tmp_path / "photo.png")
    assert (loaded.getpixel((0, 0)), loaded.getpixel((3, 0))) == ((0, 0, 0), WHITE)


def test_sixteen_bit_grey_is_scaled_rather_than_clipped(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "photo.png")
    assert [load_image(tmp_path / "photo.png").getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_a_cut_off_photo_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    (tmp_path / "photo.png").write_bytes(buffer.getvalue()[:-900])
    with pytest.raises(MediaError):
        load_image(tmp_path / "photo.png")


@pytest.mark.parametrize("content", [b"", b"not an image", b"GIF89a" + bytes(100)])
def test_what_is_no_photo_is_refused(tmp_path, content):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(MediaError):
        load_image(tmp_path / "photo.png")


def test_a_missing_photo_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "photo.png")


def banded(width: int, height: int) -> Image.Image:
    """Red left third, green middle, blue right."""
    image = Image.new("RGB", (width, height), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, width // 3, height))
    image.paste((0, 0, 255), (width - width // 3, 0, width, height))
    return image


def test_cover_fills_the_frame_with_the_centre():
    fitted = fit_person(banded(300, 100), 64, 64, Fit.COVER)
    assert fitted.size == (64, 64)
    assert fitted.getpixel((8, 32)) == fitted.getpixel((56, 32)) == (0, 255, 0)


def test_contain_keeps_everything_between_black_bars():
    fitted = fit_person(banded(300, 100), 96, 96, Fit.CONTAIN)
    assert fitted.size == (96, 96)
    assert fitted.getpixel((48, 2)) == fitted.getpixel((48, 93)) == (0, 0, 0)
    assert [fitted.getpixel((x, 48)) for x in (10, 48, 85)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_stretch_keeps_everything_and_distorts():
    fitted = fit_person(banded(300, 100), 96, 96, Fit.STRETCH)
    assert [fitted.getpixel((x, 2)) for x in (10, 48, 85)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (7, 5)])
@pytest.mark.parametrize("fit", Fit)
def test_any_size_fits(size, fit):
    assert fit_person(Image.new("RGB", size), 64, 96, fit).size == (64, 96)
    assert place_product(Image.new("RGB", size), 64, 96).size == (64, 96)


def test_a_product_takes_four_fifths_of_the_frame_centred_on_black():
    placed = np.asarray(place_product(Image.new("RGB", (100, 100), WHITE), 100, 200))
    rows, columns = np.flatnonzero(placed.any(axis=(1, 2))), np.flatnonzero(placed.any(axis=(0, 2)))
    assert (columns[0], columns[-1]) == (10, 89)
    assert (rows[0], rows[-1]) == (60, 139)


# Speech


@pytest.mark.parametrize(
    ("name", "rate"), [("a.wav", 24_000), ("a.flac", 44_100), ("a.ogg", 48_000), ("a.mp3", 32_000)]
)
def test_speech_of_each_kind_becomes_16_khz_mono(tmp_path, name, rate):
    soundfile.write(tmp_path / name, tone(1.0, rate, 2).T, rate)
    audio = load_audio(tmp_path / name)
    assert audio.dtype == np.float32
    assert abs(len(audio) - 16_000) <= 16_000 * 0.05
    middle = audio[4000:12_000]
    assert np.abs(middle).max() == pytest.approx(0.25, abs=0.02)  # the mean of a tone and silence
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 220  # 440 Hz in half a second


def test_m4a_speech_is_decoded(tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=22_050, layout="mono")
        samples = tone(1.0, 22_050)
        for start in range(0, samples.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024].copy(), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 22_050, start, Fraction(1, 22_050)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    speech = load_speech(tmp_path / "a.m4a")
    assert speech.sample_rate == 22_050
    assert abs(speech.seconds - 1.0) < 0.05
    assert np.abs(speech.samples).max() == pytest.approx(0.5, abs=0.1)


def test_speech_at_16_khz_is_taken_as_it_is(tmp_path):
    samples = tone(0.5, 16_000)
    soundfile.write(tmp_path / "a.wav", samples.T, 16_000, subtype="FLOAT")
    assert np.array_equal(load_audio(tmp_path / "a.wav"), samples[0])


@pytest.mark.parametrize("content", [b"", b"no sound here", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_what_is_no_speech_is_refused(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(MediaError):
        load_audio(tmp_path / "a.wav")


def test_a_video_without_sound_is_refused_as_speech(tmp_path):
    encode_clip(moving(3), tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="no audio"):
        load_audio(tmp_path / "a.mp4")


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1000, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="finite"):
        load_audio(tmp_path / "a.wav")


# Pose


def test_a_30_fps_pose_video_plays_at_its_own_speed(tmp_path):
    frames = moving(60)
    write_video(tmp_path / "pose.mp4", frames, [Fraction(i, 30) for i in range(60)])
    pose = load_pose(tmp_path / "pose.mp4")
    assert pose.shape == (50, 48, 64, 3)
    shown = [i * 30 // 25 for i in range(50)]  # the frame on screen at i / 25 seconds
    assert np.array_equal(pose, frames[shown])


def test_a_pose_video_of_uneven_rate_follows_its_timestamps(tmp_path):
    frames = moving(4)
    write_video(
        tmp_path / "pose.mp4", frames, [Fraction(0), Fraction(1, 25), Fraction(1, 5), Fraction(6, 25)]
    )
    pose = load_pose(tmp_path / "pose.mp4", max_frames=7)
    assert np.array_equal(pose, frames[[0, 1, 1, 1, 1, 2, 3]])


def test_the_official_code_reads_frame_by_frame(tmp_path):
    frames = moving(12)
    write_video(tmp_path / "pose.mp4", frames, [Fraction(i, 30) for i in range(12)])
    assert np.array_equal(load_pose(tmp_path / "pose.mp4", resample=False), frames)


def test_pose_frames_are_cropped_and_resized_while_reading(tmp_path):
    write_video(tmp_path / "pose.mp4", moving(5), [Fraction(i, 30) for i in range(5)])
    assert load_pose(tmp_path / "pose.mp4", size=(32, 80), max_frames=3).shape == (3, 80, 32, 3)


def test_what_is_no_video_is_refused_as_pose(tmp_path):
    (tmp_path / "pose.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError):
        load_pose(tmp_path / "pose.mp4")
    soundfile.write(tmp_path / "pose.wav", tone(0.1, 16_000).T, 16_000)
    with pytest.raises(MediaError, match="no video"):
        load_pose(tmp_path / "pose.wav")


# Clips and whole videos


@pytest.fixture(scope="module")
def three_clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"clip{k}.mp4" for k in range(3)]
    for k, path in enumerate(paths):
        encode_clip(moving(80 if k < 2 else 23, start=80 * k), path)
    return paths


def test_equal_frames_give_equal_bytes(tmp_path, three_clips):
    for attempt in range(3):
        encode_clip(moving(80), tmp_path / f"{attempt}.mp4")
        assert (tmp_path / f"{attempt}.mp4").read_bytes() == three_clips[0].read_bytes()


def test_a_clip_is_h264_that_anything_plays_in_the_right_colours(three_clips):
    with av.open(str(three_clips[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames, len(container.streams)) == (25, 80, 1)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
    difference = np.abs(decoded(three_clips[0]).astype(int) - moving(80))
    assert np.median(difference) <= 8


@pytest.mark.parametrize("shape", [(0, 48, 64, 3), (5, 48, 64), (5, 48, 64, 4)])
def test_arrays_that_are_not_frames_cannot_be_encoded(tmp_path, shape):
    with pytest.raises(ValueError, match="frames must be"):
        encode_clip(np.zeros(shape, np.uint8), tmp_path / "clip.mp4")


def test_joining_keeps_every_frame_bit_for_bit(tmp_path, three_clips):
    join_clips(three_clips, Speech(tone(7.3, 24_000), 24_000), tmp_path / "video.mp4")
    assert np.array_equal(decoded(tmp_path / "video.mp4"), np.concatenate([decoded(p) for p in three_clips]))


def test_the_video_starts_playing_before_it_is_downloaded(tmp_path, three_clips):
    join_clips(three_clips, Speech(tone(7.3, 24_000), 24_000), tmp_path / "video.mp4")
    content = (tmp_path / "video.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("rate", "channels", "kept_rate"),
    [(16_000, 1, 16_000), (24_000, 2, 24_000), (44_100, 1, 44_100), (96_000, 1, 48_000), (22_000, 1, 22_050)],
)
def test_sound_and_picture_end_with_the_speech(tmp_path, three_clips, rate, channels, kept_rate):
    seconds = 7.3
    join_clips(three_clips, Speech(tone(seconds, rate, channels), rate), tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", kept_rate, channels)
        assert abs(float(video.duration * video.time_base) - seconds) <= 1 / 25
        assert abs(float(sound.duration * sound.time_base) - seconds) <= 1 / 25
        times = [packet.dts for packet in container.demux(video) if packet.dts is not None]
        assert len(times) == 183
        assert all(a < b for a, b in pairwise(times))


def test_the_speech_is_heard_where_it_was_spoken(tmp_path, three_clips):
    samples = np.zeros((1, 24_000 * 7), np.float32)
    samples[:, 72_000:96_000] = tone(1.0, 24_000)  # a tone from second 3 to 4
    join_clips(three_clips, Speech(samples, 24_000), tmp_path / "video.mp4")
    heard = np.abs(load_speech(tmp_path / "video.mp4").samples[0]) > 0.2
    assert np.flatnonzero(heard)[[0, -1]] / 24_000 == pytest.approx([3.0, 4.0], abs=0.01)


def test_speech_is_cut_where_fewer_clips_were_made(tmp_path, three_clips):
    join_clips(three_clips[:1], Speech(tone(7.3, 24_000), 24_000), tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        sound = container.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(3.2, abs=0.03)


def test_joining_again_gives_the_same_bytes(tmp_path, three_clips):
    soundfile.write(tmp_path / "speech.wav", tone(7.3, 24_000).T, 24_000)
    for name in ("a.mp4", "b.mp4"):
        join_clips(three_clips, tmp_path / "speech.wav", tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_clips_of_unequal_size_cannot_be_joined(tmp_path, three_clips):
    encode_clip(moving(80, width=96), tmp_path / "wide.mp4")
    with pytest.raises(MediaError, match=r"wide\.mp4"):
        join_clips(
            [three_clips[0], tmp_path / "wide.mp4"], Speech(tone(6.4, 24_000), 24_000), tmp_path / "v.mp4"
        )


def test_a_broken_clip_cannot_be_joined(tmp_path, three_clips):
    (tmp_path / "broken.mp4").write_bytes(three_clips[1].read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        join_clips(
            [three_clips[0], tmp_path / "broken.mp4"], Speech(tone(6.4, 24_000), 24_000), tmp_path / "v.mp4"
        )


def test_the_media_package_imports_no_torch():
    code = "import sys, model.media; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
