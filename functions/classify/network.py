"""A small convolutional network and its training: from pictures to the logarithm of how likely each class is."""

import torch
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = 4
BATCH = 64
LEARNING_RATE = 4e-3


class Network(nn.Module):
    """Three convolutions, each halving the picture, then one number a class. (B, 1, H, W) -> (B, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(classes),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Each picture is brought to mean 0 and deviation 1 first, so that its exposure does not count."""
        mean, deviation = pictures.mean((1, 2, 3), keepdim=True), pictures.std((1, 2, 3), keepdim=True)
        logits: Tensor = self.layers((pictures - mean) / (deviation + 1e-3))
        return logits


def train(pictures: Tensor, labels: Tensor, *, classes: int, seed: int) -> Network:
    """A network that has seen every picture EPOCHS times, in evaluation mode, on the device of the pictures."""
    torch.manual_seed(seed)
    network = Network(classes).to(pictures.device)
    network(pictures[:2])
    steps = EPOCHS * -(-len(pictures) // BATCH)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pictures), device=pictures.device).split(BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(pictures[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
