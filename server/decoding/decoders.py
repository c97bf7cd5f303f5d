"""The table of which decoder reads which kind of file, for the sandbox and for one's own files.

There are two sets of libraries, because FFmpeg makes a process twice as expensive to fork. The plain set
reads what most requests bring: photos in PNG, JPEG or WebP and speech in WAV. The full set reads everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import BinaryIO, Final, Literal

from server.decoding import riff
from server.decoding.formats import ACCEPTED, THREADS, Kind, Limits, Sample, accepted_format, sniff

Libraries = Literal["plain", "full"]
Decoder = Callable[[BinaryIO, BinaryIO, str, Limits], dict[str, object]]
Decoders = Mapping[tuple[Kind, str], Decoder]

_PLAIN_FORMATS: Final = frozenset({"PNG", "JPEG", "WEBP"})


def libraries_for(source: BinaryIO) -> Libraries:
    """The set of libraries that decodes a file. Either refuses a file that nothing decodes."""
    found = sniff(source)
    if found is None or found in _PLAIN_FORMATS or (found == "WAV" and riff.is_plain(source)):
        return "plain"
    return "full"


def load_decoders(libraries: Libraries) -> tuple[Decoders, list[Sample]]:
    """The decoder of each kind and format, with its libraries loaded; and files to try them on."""
    from server.decoding import photo, samples, wav

    decoders: dict[tuple[Kind, str], Decoder] = {
        **{("image", name): photo.decode_image for name in _PLAIN_FORMATS},
        ("audio", "WAV"): wav.decode_wav,
    }
    trials = samples.all_samples()
    if libraries == "full":
        import pi_heif
        import PIL.AvifImagePlugin

        from server.decoding import pose, sound

        PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = THREADS
        pi_heif.register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=THREADS
        )
        decoders |= {("image", name): photo.decode_image for name in ACCEPTED["image"]}
        decoders |= {("audio", name): sound.decode_sound for name in ACCEPTED["audio"]}
        decoders |= {("video", name): pose.decode_video for name in ACCEPTED["video"]}
        trials += [sound.sample(), pose.sample(), samples.image("AVIF", "RGB")]
    return decoders, trials


def decode(
    decoders: Decoders, source: BinaryIO, target: BinaryIO, kind: Kind, limits: Limits
) -> dict[str, object]:
    """Decode one file into its canonical form. Raises RejectedFileError.

    Returns the facts about it, by the names of `server.decoding.decoded.DecodedFile`.
    """
    name = accepted_format(kind, source)
    source.seek(0)
    return {"format": ACCEPTED[kind][name], **decoders[kind, name](source, target, name, limits)}
