"""Finds where somebody speaks in a recording, with a voice-activity model in TorchScript that travels in the package silero-vad.

WAV bytes in, of any common sample rate; segments out, in seconds. Nothing is fetched when it runs: the weights are in the package.
"""

import io
import wave
from importlib.resources import files

import faas
import msgspec
import torch
from silero_vad import get_speech_timestamps_from_probs  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

RATE = 16_000  # samples a second that the model was trained for
FRAME = 512  # samples of one answer of the model: 32 ms
SECONDS_LIMIT = 600
SCALES = {1: 2**7, 2: 2**15, 4: 2**31}  # bytes a sample -> its largest value


class Segment(msgspec.Struct, frozen=True):
    """One stretch of speech, and how likely it is one: the mean of the model's answers in it."""

    start_s: float
    end_s: float
    probability: float


class Speech(msgspec.Struct, frozen=True):
    """The segments in order, and the length of the recording."""

    segments: list[Segment]
    duration_s: float


class FindSpeech:
    """Holds the model, and what it remembers of one recording; a worker has one invocation at a time, so no two share it."""

    def load(self, ctx: faas.Context) -> None:
        self.device = ctx.device
        weights = files("silero_vad") / "data" / "silero_vad.jit"
        self.model = torch.jit.load(str(weights), map_location=ctx.device).eval()

    def handle(self, event: bytes, ctx: faas.Context) -> Speech:
        """`event` is the WAV file itself."""
        samples, rate = read_wav(event)
        samples = resample(samples, rate, RATE)
        ctx.log.info("%.1f s of audio at %d Hz on %s", len(samples) / RATE, rate, self.device)
        chances = self._chances(samples.to(self.device))
        spans = get_speech_timestamps_from_probs(chances, RATE, audio_length_samples=len(samples))
        segments = []
        for span in spans:
            inside = chances[span["start"] // FRAME : -(-span["end"] // FRAME)]
            segments.append(Segment(round(span["start"] / RATE, 3), round(span["end"] / RATE, 3), round(sum(inside) / len(inside), 3)))
        return Speech(segments, duration_s=round(len(samples) / RATE, 3))

    @torch.inference_mode()
    def _chances(self, samples: Tensor) -> list[float]:
        """How likely each frame is speech, given those before it: the model keeps a state, so the frames go in one by one."""
        self.model.reset_states()
        padded = functional.pad(samples, (0, -len(samples) % FRAME))
        return [self.model(frame, RATE).item() for frame in padded.split(FRAME)]


def read_wav(data: bytes) -> tuple[Tensor, int]:
    """(samples, samples a second), channels averaged. -> (T,) float32 between -1 and 1. Rejects what is no WAV file of plain samples."""
    try:
        with wave.open(io.BytesIO(data)) as recording:
            rate, channels, width = recording.getframerate(), recording.getnchannels(), recording.getsampwidth()
            raw = bytearray(recording.readframes(recording.getnframes()))
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk that claims more than there is
        raise faas.Reject(f"no WAV file with plain samples (PCM): {error or 'it ends too soon'}") from error
    if width not in SCALES or rate < 8000:
        raise faas.Reject(f"{8 * width} bits a sample at {rate} Hz; 8, 16 or 32 bits and 8000 Hz or more are taken")
    del raw[len(raw) - len(raw) % (width * channels) :]  # a file that was cut in the middle of a sample
    if not raw or len(raw) > SECONDS_LIMIT * rate * width * channels:
        raise faas.Reject(
            f"the recording has {len(raw) / (rate * width * channels):.0f} s; more than 0 and at most {SECONDS_LIMIT} are taken"
        )
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[width]
    samples = torch.frombuffer(raw, dtype=kind).float() / SCALES[width] - (1.0 if width == 1 else 0.0)  # 8 bits have no sign in WAV
    return samples.view(-1, channels).mean(1), rate


def resample(samples: Tensor, rate: int, to: int) -> Tensor:
    """The same sound at another rate. The spectrum is cut, or filled up with zeros: nothing above half the lower rate can fold back.

    (T,) -> (T * to / rate,)
    """
    if rate == to:
        return samples
    count = max(1, round(len(samples) * to / rate))
    spectrum = torch.fft.rfft(samples)
    wanted = functional.pad(spectrum, (0, count // 2 + 1 - len(spectrum)))  # a negative padding cuts
    resampled: Tensor = torch.fft.irfft(wanted, n=count) * (count / len(samples))
    return resampled
