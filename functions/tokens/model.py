"""A language model of characters: what comes next, given the last few. Small enough to be trained on a page of text in a second.

Source: Bengio et al. 2003, "A neural probabilistic language model", with characters for words: the embeddings of the last CONTEXT
characters side by side, one hidden layer, one number for each character that may follow.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT = 8  # with 12 it repeats its text by heart, with 6 it loses its thread
CHARACTERS = 128  # ASCII
FEATURES = 16
HIDDEN = 256
STEPS = 300
BATCH = 256
LEARNING_RATE = 1e-2
BEFORE_THE_TEXT = ord("\n")  # stands in for what comes before a first character


def codes(text: str) -> list[int]:
    """The text's characters as numbers, with a whole context before the first."""
    return [BEFORE_THE_TEXT] * CONTEXT + list(text.encode("ascii"))


def train(text: str, *, device: str, seed: int) -> nn.Sequential:
    """A model that has read `text` some 35 times. (B, CONTEXT) int64 -> (B, CHARACTERS), the higher the likelier."""
    random = torch.Generator().manual_seed(seed)
    windows = torch.tensor(codes(text)).unfold(0, CONTEXT + 1, 1)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(CHARACTERS, FEATURES),
        nn.Flatten(),
        nn.Linear(CONTEXT * FEATURES, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CHARACTERS),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        batch = windows[torch.randint(len(windows), (BATCH,), generator=random)].to(device)
        optimizer.zero_grad()
        functional.cross_entropy(model(batch[:, :-1]), batch[:, -1]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def choose(scores: Tensor, *, temperature: float, random: torch.Generator) -> int:
    """One character by its scores (CHARACTERS,): the likeliest at temperature 0, and the higher the temperature the less it counts."""
    if temperature == 0:
        return int(scores.argmax())
    chances = (scores.double() / temperature).softmax(0).cpu()  # on the CPU the same seed chooses the same on every machine
    return int(torch.multinomial(chances, 1, generator=random))
