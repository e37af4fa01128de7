"""Makes a picture smaller or larger: bytes in, bytes out, with a package of its own (pillow) and its parameters beside the payload.

An event whose payload is a file has no room for parameters in it. CloudEvents has a place for them: extension attributes, which
travel as `ce-width` and `ce-height`.
"""

import io

import faas
from PIL import Image, ImageOps

SIDE_LIMIT = 4096
PIXELS_LIMIT = 40_000_000  # a file of some kB may claim a billion pixels: refused by its head, before anything is unpacked
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # each format is a parser that strangers' bytes reach

Image.MAX_IMAGE_PIXELS = None  # `read` has a limit of its own, which rejects instead of warning


def handle(event: faas.Event, ctx: faas.Context) -> faas.Result:
    """A PNG of the asked size. With one side asked for, the other follows; with both, what sticks out is cut off evenly."""
    width, height = side(event, "width"), side(event, "height")
    picture = read(event.data)
    if width is None and height is None:
        raise faas.Reject("give the size wanted as the extension attribute width or height, or both")
    width = width or round(picture.width * (height or 0) / picture.height) or 1
    height = height or round(picture.height * width / picture.width) or 1
    if max(width, height) > SIDE_LIMIT:
        raise faas.Reject(f"{width} x {height} is too large; {SIDE_LIMIT} a side at most")
    ctx.log.info("resizing %d x %d to %d x %d", picture.width, picture.height, width, height)
    out = io.BytesIO()
    ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS).save(out, "PNG")
    return faas.Result(out.getvalue(), content_type="image/png")


def side(event: faas.Event, name: str) -> int | None:
    """One side asked for; None where it is not. Extension attributes are text, whatever they were before they travelled."""
    text = event.extensions.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= SIDE_LIMIT):
        raise faas.Reject(f"{name} {text[:20]!r} is no whole number between 1 and {SIDE_LIMIT}")
    return int(text)


def read(data: object) -> Image.Image:
    """The picture, upright, in RGB or RGBA. Rejects what is none, since trying again would not help."""
    if not isinstance(data, bytes):
        raise faas.Reject("the payload is JSON, no picture; send the file itself with a content type like image/png")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS_LIMIT:
                raise faas.Reject(f"{picture.width} x {picture.height} pixels; {PIXELS_LIMIT:,} at most")
            return ImageOps.exif_transpose(picture).convert("RGBA" if picture.has_transparency_data else "RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises for broken files
        raise faas.Reject(f"no whole picture in one of the formats {', '.join(FORMATS)}") from error
