"""Files in, files out: photos, speech and pose videos to arrays; frames and speech to MP4."""

from model.media.audio import Speech, load_audio, load_speech, to_model_audio
from model.media.errors import MediaError
from model.media.images import cover, fit_person, load_image, place_product, write_poster
from model.media.label import with_label
from model.media.motion import read_motion, write_motion
from model.media.pose import load_pose
from model.media.router_map import write_router_map
from model.media.streaming import ClipStream
from model.media.video import ClipWriter, encode_clip, join_clips

__all__ = [
    "ClipStream",
    "ClipWriter",
    "MediaError",
    "Speech",
    "cover",
    "encode_clip",
    "fit_person",
    "join_clips",
    "load_audio",
    "load_image",
    "load_pose",
    "load_speech",
    "place_product",
    "read_motion",
    "to_model_audio",
    "with_label",
    "write_motion",
    "write_poster",
    "write_router_map",
]
