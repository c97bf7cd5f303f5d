"""Opens possibly hostile files with FFmpeg."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import av
from av.container import InputContainer

_CLOSED: Final = {"protocol_whitelist": "", "enable_drefs": "0", "use_absolute_path": "0"}


def open_container(
    source: Any, demuxer: str, codecs: Collection[str], options: Mapping[str, str] | None = None
) -> InputContainer:
    """Open a file-like object with one demuxer, no protocols and a fixed list of codecs.

    Nothing else is tried, whatever the bytes say.
    """
    container: InputContainer = av.open(
        source,
        mode="r",
        format=demuxer,
        metadata_errors="replace",  # titles and comments in some other encoding
        container_options={
            **_CLOSED,
            **(options or {}),
            "format_whitelist": demuxer,
            "codec_whitelist": ",".join(codecs),
        },
    )
    return container
