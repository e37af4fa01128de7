"""Names the shape in a picture, with a convolutional network that each worker trains when it loads, on pictures that it draws itself.

A file with weights would load in the same place; here training stands in for it, so that everything can be read.
"""

import io
import time

import faas
import msgspec
import network
import shapes
import torch
from PIL import Image, ImageOps

PICTURES = 4000  # with 3000 it is right in 97 of 100 cases, with 4000 in 99; drawing and learning take 3 s on one core
HELD_OUT = 500
PIXELS_LIMIT = 20_000_000  # a file of some kB may claim a billion pixels: refused by its head, before anything is unpacked
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # each format is a parser that strangers' bytes reach

Image.MAX_IMAGE_PIXELS = None  # `grey_square` has a limit of its own, which rejects instead of warning


class Classification(msgspec.Struct, frozen=True):
    """The likeliest class, and how likely each of them is; together 1."""

    label: str
    probabilities: dict[str, float]


class Classify:
    """Holds the network for the life of a worker."""

    def load(self, ctx: faas.Context) -> None:
        """Train, and say how well it went on pictures that the network has not seen."""
        began = time.monotonic()
        pictures, labels = (tensor.to(ctx.device) for tensor in shapes.draw(PICTURES + HELD_OUT, seed=1))
        self.device = ctx.device
        self.network = network.train(pictures[:PICTURES], labels[:PICTURES], classes=len(shapes.CLASSES), seed=1)
        right = (self._probabilities(pictures[PICTURES:]).argmax(1) == labels[PICTURES:]).float().mean().item()
        ctx.log.info(
            "trained on %s in %.1f s: right in %.1f %% of %d new pictures", ctx.device, time.monotonic() - began, 100 * right, HELD_OUT
        )

    def handle(self, event: bytes, ctx: faas.Context) -> Classification:
        """`event` is the picture file itself: with `bytes` a payload comes as it was published, whatever its content type."""
        picture = grey_square(event, side=shapes.SIDE).to(self.device)
        probabilities = self._probabilities(picture.view(1, 1, shapes.SIDE, shapes.SIDE))[0].tolist()
        by_class = dict(zip(shapes.CLASSES, probabilities, strict=True))
        return Classification(label=max(by_class, key=by_class.__getitem__), probabilities=by_class)

    @torch.inference_mode()
    def _probabilities(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 1, SIDE, SIDE) -> (B, classes), each row adding up to 1."""
        probabilities: torch.Tensor = self.network(pictures).softmax(1)
        return probabilities


def grey_square(data: bytes, *, side: int) -> torch.Tensor:
    """The middle of a picture in grey. -> (side, side) float32 between 0 and 1. Rejects what is no picture, since trying again would not help."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS_LIMIT:
                raise faas.Reject(f"{picture.width} x {picture.height} pixels; {PIXELS_LIMIT:,} at most")
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises for broken files
        raise faas.Reject(f"no whole picture in one of the formats {', '.join(FORMATS)}") from error
    on_white = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    grey = ImageOps.fit(on_white.convert("L"), (side, side), Image.Resampling.BOX)
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(side, side) / 255
