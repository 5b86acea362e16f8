"""What sits on the encoder while it is pre-trained, and is thrown away after: `g` and the pseudo-label heads `p`."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from decar.errors import ConfigError
from decar.models.networks import seeded, with_float32_end

Kind = Literal["paper", "released", "batchnorm"]


class Projection(nn.Module):
    """`g`: embedding `(B, D)` to `(B, P)` (paper, section 3: one linear layer of 512 units and a ReLU).

    Args:
        dim: `D`.
        out: `P`.
        kind: `paper`; `released`: what the authors' code has (dropout, 512, ReLU, dropout, 512); `batchnorm`: linear,
            BatchNorm, ReLU.
        seed: Seeds the weights; None draws from torch's global generator.
    """

    def __init__(self, dim: int, out: int = 512, kind: Kind = "paper", seed: int | None = None) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ConfigError(f"projection.kind={kind}: choose one of {', '.join(get_args(Kind))}")
        self.kind, self.out = kind, out
        with seeded(seed):
            if kind == "paper":
                self.layers = nn.Sequential(nn.Linear(dim, out))
            elif kind == "batchnorm":
                self.layers = nn.Sequential(nn.Linear(dim, out, bias=False), nn.BatchNorm1d(out))
            else:
                self.layers = nn.Sequential(
                    nn.Dropout(0.5), nn.Linear(dim, out), nn.ReLU(), nn.Dropout(0.5), nn.Linear(out, out)
                )

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The heads' input, and the vectors `z` to be clustered, each `(B, P)`, in float32 under autocast too.

        The heads read the output of the last ReLU. The paper clusters it too; the other kinds cluster its input.
        """
        before = with_float32_end(self.layers, embedding)
        after = torch.relu(before)
        return after, after if self.kind == "paper" else before


class PseudoLabelHeads(nn.ModuleList):
    """`p`: one linear layer a clustering, `(B, P)` to `H` times `(B, K_h)`, renewed whenever the labels are.

    The new weights are N(0, 0.01) with zero bias (released code; the paper only says that the head is reset).

    Args:
        dim: `P`.
        sizes: Clusters of each of the `H` clusterings; at least 1 each.
    """

    def __init__(self, dim: int, sizes: Sequence[int] = (1,)) -> None:
        super().__init__()
        self.dim = dim
        self.reset(sizes, seed=0)

    @property
    def sizes(self) -> list[int]:
        """Number of clusters that each head tells apart."""
        return [int(head.out_features) for head in self]  # type: ignore[arg-type]

    def reset(self, sizes: Sequence[int], seed: int, keep: int = 0) -> None:
        """Replace every head but the first `keep` by a fresh one of the given size, its weights fixed by the seed."""
        device = next(self.parameters()).device if len(self) else torch.device("cpu")
        generator = torch.Generator().manual_seed(seed)
        heads = list(self)[:keep]
        for size in sizes[len(heads) :]:
            head = nn.Linear(self.dim, size)
            nn.init.normal_(head.weight, std=0.01, generator=generator)
            nn.init.zeros_(head.bias)
            heads.append(head.to(device))
        del self[:]
        self.extend(heads)

    def forward(self, projected: Tensor) -> list[Tensor]:
        """Logits of each clustering: `H` tensors `(B, K_h)`."""
        return [head(projected) for head in self]
