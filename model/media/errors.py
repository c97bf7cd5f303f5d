"""The one error of this package."""


class MediaError(ValueError):
    """A file is empty, truncated, of another kind than it should be, or lacks the stream that is needed."""
