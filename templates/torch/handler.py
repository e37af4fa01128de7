"""A small network that has learnt the sine. Replace `load` with your model and its weights, `handle` with what it answers."""

import math

import msgspec
import torch

import faas

STEPS = 400


class Points(msgspec.Struct):
    """The event. A payload that does not fit is rejected, with the field named, before `handle` is called."""

    x: list[float]


class Curve(msgspec.Struct):
    """The result, sent as JSON."""

    y: list[float]
    device: str


class Model:
    """One for each worker: the network is made once and answers many events."""

    def load(self, ctx: faas.Context) -> None:
        """Run before the first event, within limits.load_timeout. `ctx.device` is "cuda" where a GPU is leased, else "cpu"."""
        torch.manual_seed(0)
        self.device = torch.device(ctx.device)
        self.network = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).to(self.device)
        x = torch.linspace(-math.pi, math.pi, 128, device=self.device).unsqueeze(1)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=0.02)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(self.network(x), torch.sin(x))
            loss.backward()
            optimizer.step()
        ctx.log.info("learnt the sine, loss %.5f", loss.item())

    def handle(self, event: Points, ctx: faas.Context) -> Curve:
        """Run once for each event, within limits.timeout."""
        with torch.inference_mode():
            y = self.network(torch.tensor(event.x, device=self.device).reshape(-1, 1)).flatten()
        return Curve(y=y.tolist(), device=self.device.type)
