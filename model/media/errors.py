"""The one error of this package."""


class MediaError(ValueError):
    """A file is not what it should be: empty, truncated, of another kind, or without the stream that is needed."""
