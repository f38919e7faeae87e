"""The media types of bodies, as one request's header names them."""

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header, without its parameters; case means nothing in it."""
    return content_type.split(";")[0].strip().lower()
