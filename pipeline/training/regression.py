"""Least squares for a layer that is there: what to add to its weight so that its block comes nearer to a state.

A layer gives W a + b for its inputs a, and what it gives is added to a residual. With r the state that is wanted less
the one that the block gives now, the change D minimises

    sum (|r - D a| / |t|)² + ridge x |D|²,        D = C (G + ridge x mean(diag G) I)^-1

over tokens, with t the state that is wanted, G = sum a a^T / |t|² and C = sum r a^T / |t|². A layer with a bias has a
one behind its inputs, which no ridge holds. The ridge pulls the change to zero, and not the weight. Of 0.1 and 1 the
larger was better on text of another kind than that of the fit, by 2 to 5%, and as good on the same (SmolLM2-135M
without 6 or 13 of its 30 blocks, 16k tokens).

G, C and the factor are fp64: for m inputs of a hidden state of d entries m (m + d) x 8 bytes, and twice m² x 8 more
while they are solved. A token counts by its share of its state, as in pipeline/importance/linear.py: the first of a
sequence often has a state a thousand times as long as the others, and would alone decide what plain least squares find.
"""

from __future__ import annotations

import torch

from pipeline.errors import RegrowError
from pipeline.world import World

#: Lengths and sums below count as this: a state of zeros has no direction to miss.
LEAST = torch.finfo(torch.float32).tiny


def shares(residuals: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """|r| / |t| of each token: (N,) from residuals and wanted states, each (N, d)."""
    lengths = torch.linalg.vector_norm(wanted, dim=1).clamp_min(LEAST)
    return torch.linalg.vector_norm(residuals, dim=1) / lengths


class Regression:
    """The sums of one layer's least squares, over the tokens that are added. ``inputs`` are m, ``outputs`` d."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: torch.device | str = "cpu"):
        self.bias, self.tokens = bias, 0
        count = inputs + bias
        self.gram = torch.zeros((count, count), dtype=torch.float64, device=device)
        self.cross = torch.zeros((outputs, count), dtype=torch.float64, device=device)

    def add(self, inputs: torch.Tensor, residuals: torch.Tensor, wanted: torch.Tensor) -> None:
        """Take tokens: what enters the layer (N, m), what is missing (N, d), and the states that are wanted (N, d)."""
        entering = inputs.double()
        if self.bias:
            entering = torch.cat([entering, entering.new_ones((len(entering), 1))], dim=1)
        weights = 1 / wanted.double().square().sum(dim=1, keepdim=True).clamp_min(LEAST)
        self.gram += (weights * entering).T @ entering
        self.cross += residuals.double().T @ (weights * entering)
        self.tokens += len(inputs)

    def meet(self, world: World) -> None:
        """Add up the sums of all processes."""
        tokens = torch.tensor([self.tokens])
        for sums in (self.gram, self.cross, tokens):
            world.sum(sums)
        self.tokens = int(tokens)

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The changes of the weight (d, m) and of the bias (d,), None where there is none; fp64.

        ``ridge`` is relative to the mean square of the inputs. Raises RegrowError when the equations cannot be solved.
        """
        held = torch.full((len(self.gram),), ridge, dtype=torch.float64, device=self.gram.device)
        diagonal = self.gram.diagonal()
        if self.bias:
            held[-1], diagonal = 0, diagonal[:-1]
        stiff = self.gram.clone()
        stiff.diagonal().add_(held * diagonal.mean())
        factor, failed = torch.linalg.cholesky_ex(stiff)
        if failed or not torch.isfinite(self.cross).all():
            raise RegrowError(
                "the equations cannot be solved: the layer's inputs do not span its width on this text, or are not "
                "finite; raise train.healing.ridge, or train.healing.sequences"
            )
        change = torch.cholesky_solve(self.cross.T, factor).T
        return (change[:, :-1], change[:, -1]) if self.bias else (change, None)
