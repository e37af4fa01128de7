"""Trains a small network with the hyperparameters of an event, tells how far it is, and answers with what became of it.

One event is one trial, so a search over hyperparameters is a number of events, and a trial that is stopped frees its worker at once.
"""

import math
from typing import Annotated

import faas
import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

ARMS = 3
EXAMPLES = 1500
HELD_OUT = 600
BATCH = 100


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The hyperparameters. Bounds here are the first line of defence: what lies outside is rejected before anything runs."""

    epochs: Annotated[int, msgspec.Meta(ge=1, le=500)] = 30
    lr: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    hidden: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


class Metrics(msgspec.Struct, frozen=True):
    """How well the trained network does on examples that it has not seen; `epochs` are those that were run."""

    loss: float
    accuracy: float
    epochs: int
    parameters: int


class Train:
    """Holds the examples, which every trial shares: what differs between two trials is then their hyperparameters."""

    def load(self, ctx: faas.Context) -> None:
        points, arms = spirals(EXAMPLES + HELD_OUT, seed=1)
        self.points, self.arms = points.to(ctx.device), arms.to(ctx.device)

    def handle(self, event: Trial, ctx: faas.Context) -> Metrics:
        """Train for the asked epochs, or until the invocation is cancelled."""
        torch.manual_seed(event.seed)  # the network's first weights, and the order of the examples
        network = nn.Sequential(
            nn.Linear(2, event.hidden), nn.Tanh(), nn.Linear(event.hidden, event.hidden), nn.Tanh(), nn.Linear(event.hidden, ARMS)
        ).to(ctx.device)
        optimizer = torch.optim.Adam(network.parameters(), event.lr)
        epoch = 0
        while epoch < event.epochs and not ctx.cancelled:  # a blocking handler is asked to stop; who does not look is killed later
            for batch in torch.randperm(EXAMPLES).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(network(self.points[batch]), self.arms[batch]).backward()
                optimizer.step()
            epoch += 1
            loss, accuracy = self.measure(network)
            ctx.log.info("epoch %d: loss %.4f, accuracy %.3f", epoch, loss, accuracy)
            ctx.progress(epoch / event.epochs, f"loss {loss:.4f}, accuracy {accuracy:.3f}")
            ctx.meter("examples", EXAMPLES)  # summed up in the usage record: what was worked through, whoever pays for it
        loss, accuracy = self.measure(network)
        return Metrics(loss, accuracy, epochs=epoch, parameters=sum(p.numel() for p in network.parameters()))

    @torch.inference_mode()
    def measure(self, network: nn.Module) -> tuple[float, float]:
        """(loss, accuracy) on the examples held out of the training."""
        scores, arms = network(self.points[EXAMPLES:]), self.arms[EXAMPLES:]
        return functional.cross_entropy(scores, arms).item(), (scores.argmax(1) == arms).float().mean().item()


def spirals(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Points on ARMS spirals that wind about one another, and the arm of each: easy to draw, and no line tells them apart.

    -> (count, 2) float32, (count,) int64.
    """
    random = torch.Generator().manual_seed(seed)
    arms = torch.randint(ARMS, (count,), generator=random)
    along = torch.rand(count, generator=random).sqrt()
    angle = 1.5 * math.pi * along + arms * (math.tau / ARMS) + 0.2 * torch.randn(count, generator=random)
    return along.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1), arms
