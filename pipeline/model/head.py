"""Head and loss as one operation: token losses, and their gradients, without the logits of a whole micro-batch.

A micro-batch of 8 rows of 2,048 tokens has 16,384 x 262,144 logits under Gemma's vocabulary: 17 GB in fp32, and as
much again for their gradient. Here tokens go through head and loss a chunk at a time, and what is kept is the gradient
of the chunk's states, and the head's, summed over chunks in fp32. Both are made in the forward pass, where the chunk's
logits still stand, so that no product is done twice. (The idea is that of Cut Cross-Entropy, arXiv 2411.09009, and of
Liger Kernel, arXiv 2410.10989; the order of work is ours, in plain torch.)

What a family does behind its head (a scale, a soft cap) its config says in names of its own. It is tried on a few
tokens, and taken where the model's logits come out; where they do not, the whole logits are computed as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from pipeline.errors import RegrowError
from pipeline.model.hooks import input_device, own_forward
from pipeline.model.lesson import Lesson
from pipeline.model.loss import NO_TARGET, ChunkLoss

#: Bytes that a chunk may take. The head's gradient is added to once a chunk, so that small chunks cost.
CHUNK = 2 << 30
#: Bytes for each token and entry of the vocabulary: the product in bf16; in fp32 logits, log-softmax and a soft cap's.
#: Compiled, nothing of it is written but the product and its gradient.
PLAIN, COMPILED = 14, 4
#: Names by which configs say a factor of the logits. Granite divides by the one that HyperCLOVA X multiplies by.
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
#: The name by which configs say c of the soft cap c tanh(z / c) of logits z (Gemma 2, arXiv 2408.00118, section 2).
CAP = "final_logit_softcapping"
#: Tokens that a head is tried on.
TRIED = 8
#: Largest difference between the logits that are made here and the model's, relative to the largest: in half precision
#: a factor rounds otherwise before or behind fp32.
TOLERANCE, HALF_TOLERANCE = 1e-5, 2e-2


def with_gradient(
    product: torch.Tensor, targets: torch.Tensor, head: Head, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (N,) fp32 of a chunk's product (N, vocabulary), and their sum's gradient by it without the head's scale,
    times ``factor`` (), made in fp32 and rounded once to the product's dtype."""
    chunk = ChunkLoss.of(head.logits(product), targets)
    return chunk.losses, chunk.by_product(chunk.gradient(), head.cap, factor).to(product.dtype)


@dataclass(frozen=True)
class Head:
    """A model's last product, and what becomes of it: logits = cap x tanh(scale x product / cap), without a cap
    scale x product. ``judge`` is ``with_gradient``, or what was compiled of it."""

    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None
    judge: Callable[..., tuple[torch.Tensor, torch.Tensor]] = field(default=with_gradient, repr=False)

    def logits(self, product: torch.Tensor) -> torch.Tensor:
        """Logits of the head's product, in its shape, in fp32."""
        scaled = product.float() * self.scale if self.scale != 1 else product.float()
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


def find_head(model: nn.Module) -> Head | None:
    """The model's head, if what follows it is known: then the model's own logits come out. None where they do not.

    Runs one forward of a few tokens, without gradients; under ZeRO 3 every process must ask.
    """
    # DeepSpeed's engine has a config of its own, and the model within.
    owner = getattr(model, "module", model)
    linear = owner.get_output_embeddings()
    if type(linear) is not nn.Linear:
        return None
    products: list[torch.Tensor] = []
    handle = linear.register_forward_hook(lambda module, inputs, output: products.append(output))
    was_training = model.training
    # No random number is drawn.
    model.eval()
    try:
        ids = torch.arange(TRIED, device=input_device(owner))[None] % linear.out_features
        with torch.no_grad():
            wanted = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        handle.remove()
        model.train(was_training)
    # A head that is called otherwise, or more than once, is not known.
    if len(products) != 1 or products[0].shape != wanted.shape:
        return None
    # The head of a dispatched model may lie on another device than its inputs.
    product = products[0].to(wanted.device)
    near = (TOLERANCE if product.dtype == torch.float32 else HALF_TOLERANCE) * float(wanted.abs().max())
    off = [
        (float((head.logits(product) - wanted).abs().max()), number, head)
        for number, head in enumerate(_candidates(linear, owner.config))
    ]
    least, _, head = min(off, key=lambda one: one[:2])
    return head if least <= near else None


def require_causal_head(model: PreTrainedModel) -> None:
    """RegrowError where the model gives no logits of the next token: one without its head, or one that looks both
    ways."""
    name = type(model).__name__
    bare = {each for names in MODEL_MAPPING_NAMES.values() for each in ([names] if isinstance(names, str) else names)}
    # Some wrappers, and code of a model's own, do not say where theirs is.
    if name in bare and model.get_output_embeddings() is None:
        raise RegrowError(
            f'model: {name} has no head and predicts nothing; load_model("folder, or owner/name") or '
            "AutoModelForCausalLM gives it with its head"
        )
    if name.endswith("ForMaskedLM"):
        raise RegrowError(
            f"model: {name} predicts a token from both sides of it, itself among them: its loss is no perplexity; a "
            "causal language model of transformers is wanted"
        )


def _candidates(linear: nn.Linear, hf_config: PreTrainedConfig) -> Iterator[Head]:
    """What the config may mean, the plainest first."""
    text = hf_config.get_text_config()
    factors = [getattr(text, name, None) for name in FACTORS]
    stated = [float(factor) for factor in factors if isinstance(factor, int | float) and factor]
    for cap in dict.fromkeys([getattr(text, CAP, None) or None, None]):
        for scale in (1.0, *stated, *(1 / factor for factor in stated)):
            yield Head(linear, scale, cap)


@dataclass
class Taken:
    """What a forward gave at the head, once it has run: the ``objective`` to be differentiated, the ``total`` loss and,
    beside a teacher, the total ``divergence`` from it, in nats, scalars in fp32; without gradients ``losses`` of each
    position, fp32, in the shape of the targets."""

    objective: torch.Tensor | None = None
    total: torch.Tensor | None = None
    divergence: torch.Tensor | None = None
    losses: torch.Tensor | None = field(default=None, repr=False)


@contextlib.contextmanager
def losses_at(head: Head, targets: torch.Tensor, factor: float = 1.0, lesson: Lesson | None = None) -> Iterator[Taken]:
    """Within the context one forward of the head's model gives losses, and no logits; gives what it took.

    ``targets`` (rows, T) int64 is the token that each position is to predict, or NO_TARGET. The objective is the total
    loss, or what a ``lesson`` for these positions makes of it, times ``factor``. The model's ``logits`` have a last
    axis of 1, and mean nothing.

    ZeRO 3 has the head's weight whole while the head's own forward runs, and looks for its backward between what goes
    in and what comes out: so all is done there, and the objective comes out as the head's output, behind its hooks.
    """
    taken, linear = Taken(), head.linear

    def forward(states: torch.Tensor) -> torch.Tensor:
        flat, wanted = states.reshape(-1, states.shape[-1]), targets.reshape(-1).to(states.device)
        if not torch.is_grad_enabled():
            taken.losses = _token_losses(flat, wanted, head).view(targets.shape)
            return taken.losses
        objective, taken.total, taken.divergence = _SummedLoss.apply(
            flat, linear.weight, linear.bias, wanted, head, factor, lesson
        )
        return objective

    def take(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            taken.objective = output
        (states,) = inputs
        return states.new_zeros(*states.shape[:-1], 1)

    handle = linear.register_forward_hook(take)
    try:
        with own_forward(linear, forward):
            yield taken
    finally:
        handle.remove()


@contextlib.contextmanager
def states_at(head: Head) -> Iterator[list[torch.Tensor]]:
    """Within the context the head's model gives no logits; gives the states (..., width) that came to its head."""
    taken: list[torch.Tensor] = []

    def forward(states: torch.Tensor) -> torch.Tensor:
        taken.append(states)
        return states[..., :1]

    with own_forward(head.linear, forward):
        yield taken


def chunk_length(tokens: int, vocabulary: int, each: int = PLAIN) -> int:
    """Tokens of a chunk: the largest number that divides ``tokens`` and fits into CHUNK bytes, at ``each`` an entry."""
    most = max(1, min(tokens, CHUNK // (each * vocabulary)))
    fitting = next(length for length in range(most, 0, -1) if tokens % length == 0)
    # A number with few divisors: then the last chunk is shorter.
    return fitting if 2 * fitting > most else most


def _token_losses(states: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """(N,) fp32 from states (N, width) and targets (N,): zero where there is no target."""
    length = chunk_length(len(states), head.linear.out_features)
    weight, bias = head.linear.weight, head.linear.bias
    parts = [
        F.cross_entropy(head.logits(F.linear(some, weight, bias)), wanted, ignore_index=NO_TARGET, reduction="none")
        for some, wanted in zip(states.split(length), targets.split(length), strict=True)
    ]
    return torch.cat(parts)


class _SummedLoss(torch.autograd.Function):
    """(factor x objective, loss, divergence) of states (N, width) fp or bf, summed; the last two have no gradient,
    and the divergence is zero without a lesson.

    Products are in the states' dtype, or in autocast's; softmax, losses, and the sums over chunks in fp32.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        factor: float,
        lesson: Lesson | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kind = states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        each = (PLAIN if head.judge is with_gradient else COMPILED) + (0 if lesson is None else lesson.entry_bytes)
        length = chunk_length(len(states), len(weight), each)
        # A number would be compiled anew with every value.
        scaled = torch.full((), factor * head.scale, device=states.device)
        total, divergence = (torch.zeros((), device=states.device) for _ in range(2))
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_weight: torch.Tensor | None = None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(kind, enabled=False):
            rows = weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            for start in range(0, len(states), length):
                some = states[start : start + length].to(dtype)
                wanted = targets[start : start + length]
                product = F.linear(some, rows, offset)
                if lesson is None:
                    losses, gradient = head.judge(product, wanted, head, scaled)
                else:
                    losses, away, gradient = lesson.judged(product, wanted, head, scaled, start)
                    divergence += away.sum()
                total += losses.sum()
                if of_bias is not None:
                    of_bias += gradient.sum(dim=0, dtype=torch.float32)
                if of_states is not None:
                    of_states[start : start + length] = gradient @ rows
                if ctx.needs_input_grad[1]:
                    part = gradient.T @ some
                    # What one chunk gives is all there is, and needs no sum.
                    of_weight = part if of_weight is None else of_weight.float().add_(part)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(total, divergence)
        objective = total if lesson is None else lesson.objective(total, divergence)
        return objective * factor, total, divergence

    @staticmethod
    def backward(ctx: FunctionCtx, above: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_states, of_weight, of_bias = ctx.saved_tensors
        dtypes = (None if of_states is None else of_states.dtype, *ctx.dtypes)
        # Where a look costs no wait: the objective is differentiated as it is.
        plain = above.device.type == "cpu" and above.item() == 1
        made = (
            None if gradient is None else (gradient if plain else gradient * above).to(dtype)
            for gradient, dtype in zip((of_states, of_weight, of_bias), dtypes, strict=True)
        )
        return (*made, None, None, None, None)
