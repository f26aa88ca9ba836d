"""The objectives: what to say next, and beside it, while the model learns to see, dense labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from demo_training.batches import Batch
from demo_training.dialogues import IGNORED
from demo_training.network import CausalLM
from llm_service.tokenizer import Tokenizer

INITIAL_SCALE = 10.0  # of cosines, before the softmax of the alignment loss; learned


class Losses(NamedTuple):
    """The parts of the loss, each a scalar; the dense ones are weighted down to 0 in training.

    Attributes:
        answer: cross entropy of the answers' tokens.
        patch_class: cross entropy of what each 14-pixel patch shows, read off the ViT.
        patch_colour: likewise, of its colour.
        alignment: cross entropy of each picture token's class, where the logits are its cosines
            with the classes' names as the decoder's input embeddings have them.
    """

    answer: torch.Tensor
    patch_class: torch.Tensor
    patch_colour: torch.Tensor
    alignment: torch.Tensor

    def total(self, dense_weight: torch.Tensor) -> torch.Tensor:
        """Returns what is minimised; the weight is a scalar."""
        dense = self.patch_class + 0.5 * self.patch_colour + self.alignment
        return self.answer + dense_weight * dense


class Objectives(nn.Module):
    """The heads of the dense losses; no checkpoint has them.

    Attributes:
        names: [classes, vocabulary], the share of each token in a class's names.
    """

    names: torch.Tensor

    def __init__(self, width: int, names: torch.Tensor, colour_count: int) -> None:
        super().__init__()
        self.class_head = nn.Linear(width, len(names))
        self.colour_head = nn.Linear(width, colour_count)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.register_buffer("names", names, persistent=False)

    def forward(
        self,
        patches: torch.Tensor,
        embeddings: torch.Tensor,
        hidden: torch.Tensor,
        language: CausalLM,
        batch: Batch,
    ) -> Losses:
        """Measures what `DemoModel.encode` and `DemoModel.decode` returned for a batch."""
        cosines = self._cosines(embeddings, language.model.embed_tokens.weight)
        return Losses(
            cross_entropy(language.lm_head(hidden), batch.targets),
            cross_entropy(self.class_head(patches), batch.classes.flatten(1)),
            cross_entropy(self.colour_head(patches), batch.colours.flatten(1)),
            cross_entropy(cosines, token_classes(batch.classes)),
        )

    def _cosines(self, embeddings: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        names = F.normalize(self.names @ words, dim=-1)  # [classes, hidden]
        cosines: torch.Tensor = F.normalize(embeddings.float(), dim=-1) @ names.T
        return cosines * self.log_scale.exp()


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the targets that are not IGNORED; 0 where all are."""
    summed = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return summed / (targets != IGNORED).sum().clamp(min=1)


def token_classes(classes: torch.Tensor) -> torch.Tensor:
    """[n, P, P] of patches -> [n, P x P / 4] of picture tokens: the highest of their four."""
    edge = classes.shape[-1] // 2
    squares = classes.view(-1, edge, 2, edge, 2)
    return squares.amax((2, 4)).flatten(1)


def name_shares(
    tokenizer: Tokenizer, names: Sequence[Sequence[str]], vocabulary: int
) -> torch.Tensor:
    """Returns [classes, vocabulary]: for each class, how its names' tokens share a weight of 1.

    Args:
        tokenizer: of the model.
        names: of each class, its name in every language.
        vocabulary: size of the model's vocabulary.
    """
    shares = torch.zeros(len(names), vocabulary)
    for row, spellings in zip(shares, names, strict=True):
        for name in spellings:
            token_ids = tokenizer.encode(name)
            weights = torch.full((len(token_ids),), 1 / len(token_ids) / len(spellings))
            row.index_add_(0, torch.tensor(token_ids), weights)
    return shares
