"""mimetic_min: mimetic initialization of transformers, to read, copy and teach from."""

from .gpt import GPT, GPTConfig
from .vit import ViT, ViTConfig

__all__ = ["GPT", "GPTConfig", "ViT", "ViTConfig"]
