"""The one error of this package."""


class MediaError(ValueError):
    """A file is empty, truncated, of the wrong kind, or without the stream that is needed."""
