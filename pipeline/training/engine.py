"""The engine: a DeepSpeed ZeRO engine around a model, made the way the loop needs it.

Four defaults of DeepSpeed are set otherwise: gradients are accumulated in fp32 (its default is the model's dtype,
and bf16 loses small gradients over 32 micro-batches), they are summed over processes in fp32 (its default is bf16
again, a relative error of 2e-3), its shared-memory operation is left out (it serves inference alone and would need a
compiler on a CPU), and communication does not overlap until a parity test says it may.

So on every stage: products, and what a micro-batch's backward gives, in bf16; sums over micro-batches and processes,
master weights and moments in fp32. ZeRO 0 has no fp32 accumulation for bf16 weights: there the weights stay in fp32,
and the blocks compute in bf16 under torch's autocast. ZeRO 2 and 3 sum over processes in every micro-batch, and so
send twice the bytes that bf16 would take.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.launch import World
from pipeline.model.attention import attention_of, document_arguments
from pipeline.model.loss import document_targets, next_token_losses

#: Values in a bucket of gradients that are reduced together: DeepSpeed's default.
BUCKET = 500_000_000


def decay_groups(model: nn.Module, weight_decay: float, no_decay: Iterable[str]) -> list[dict[str, Any]]:
    """Two AdamW groups: parameters with weight decay, and the kinds named in ``no_decay`` without it.

    Kinds: ``bias`` (names ending in bias), ``norm`` (other parameters of one axis), ``embedding`` (input embedding,
    and the head when it is tied to it).
    """
    kinds = set(no_decay)
    embedding = model.get_input_embeddings().weight if "embedding" in kinds else None

    def spared(name: str, parameter: nn.Parameter) -> bool:
        is_bias = name.endswith("bias")
        # Under ZeRO-3 a parameter is a shard; DeepSpeed keeps its real shape in ds_shape.
        axes = len(getattr(parameter, "ds_shape", parameter.shape))
        return (
            (is_bias and "bias" in kinds) or (axes == 1 and not is_bias and "norm" in kinds) or (parameter is embedding)
        )

    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for n, p in named if not spared(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if spared(n, p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Engine:
    """A model under DeepSpeed with AdamW: micro-batches in, one update at the end of ``accumulation`` of them.

    ``model`` is in bf16 (fp32 master weights and moments) or fp32. Every process constructs it, with the same
    weights. Gradients are those of the loss that ``backward`` was given, summed over micro-batches and processes.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        micro_batch: int,
        accumulation: int,
        zero_stage: int,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        no_decay: Iterable[str],
        clip: float,
        gradient_checkpointing: bool = False,
    ):
        deepspeed = _deepspeed()
        self.world = world
        self.accumulation = accumulation
        self.dtype = next(model.parameters()).dtype
        bf16 = self.dtype == torch.bfloat16 and zero_stage > 0
        self.autocast = self.dtype == torch.bfloat16 and zero_stage == 0
        if self.autocast:
            model.float()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        optimizer = torch.optim.AdamW(
            decay_groups(model, weight_decay, no_decay), lr=learning_rate, betas=betas, eps=eps, fused=True,
        )  # fmt: skip
        config = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": micro_batch * accumulation * world.size,
            "gradient_clipping": clip,
            "bf16": {"enabled": bf16, "immediate_grad_update": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_optimization": {
                "stage": zero_stage,
                "overlap_comm": False,
                "contiguous_gradients": True,
                # DeepSpeed makes its buckets as long as this, whatever the model's size: 2 GB at its default.
                "reduce_bucket_size": min(BUCKET, sum(parameter.numel() for parameter in model.parameters())),
                "stage3_gather_16bit_weights_on_model_save": True,
                # On one machine with small models nothing may stay unsharded by size, or stages would not differ.
                "stage3_param_persistence_threshold": 1e4,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
            "wall_clock_breakdown": False,
        }
        # DeepSpeed's bf16 optimizer prints memory figures at its start, whatever the log level.
        with contextlib.redirect_stdout(io.StringIO()):
            self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        if world.size == 1 and (zero_stage == 0 or (bf16 and zero_stage == 1)):
            # Alone there is nothing to sum, but DeepSpeed would copy every gradient to a buffer and back. (Elsewhere
            # the reduction also hands the gradients to the optimizer, and must stay.)
            self.engine.enable_backward_allreduce = False
        self.zero_stage = zero_stage
        self._plain_clip = clip if zero_stage == 0 else None

    @property
    def model(self) -> nn.Module:
        """The module that DeepSpeed wraps."""
        return self.engine.module

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next update, for every group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(
        self, input_ids: torch.Tensor, targets: int, documents: Sequence[np.ndarray] | None = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch (rows, T) int64; returns its summed token loss (fp32 scalar).

        ``targets`` is the number of target tokens of the global batch: the gradient is that of the sum of token
        losses divided by it, however the batch is split. DeepSpeed averages over processes, hence the factor.

        ``documents``, where documents begin in each row (cu_seqlens, int32, 0 ... T), makes each of them stand alone:
        its tokens see it alone, and its first is no target. None: a row is one text, and its tokens see all before.
        """
        inputs, counted = {"input_ids": input_ids}, None
        if documents is not None:
            inputs = document_arguments(input_ids, documents, attention_of(self.model))
            counted = document_targets(documents, input_ids.shape[1]).to(input_ids.device, non_blocking=True)
        with self.precision():
            logits = self.engine(**inputs, use_cache=False).logits
        total = next_token_losses(logits.view(*input_ids.shape, -1), input_ids, counted).sum()
        self.engine.backward(total * (self.world.size / targets), scale_wrt_gas=False)
        return total.detach()

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model computes as it trains: autocast for ZeRO 0 in bf16, else nothing."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.autocast)

    def step(self) -> None:
        """After each micro-batch: at the end of the accumulation DeepSpeed clips and updates the weights."""
        if self._plain_clip is not None and self.engine.is_gradient_accumulation_boundary():
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
        self.engine.step()

    def gradient_norm(self) -> float:
        """Global gradient norm of the last update, before clipping."""
        if self._plain_clip is not None:
            # Plain AdamW (ZeRO 0 in fp32): DeepSpeed clips but does not tell the norm.
            return self._norm
        norm = self.engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The whole model's weights, in its own dtype, on rank 0's CPU (None elsewhere); every process must call it."""
        if self.zero_stage == 3:
            gathered = self.engine._zero3_consolidated_16bit_state_dict()
            return gathered if self.world.rank == 0 else None
        if self.world.rank != 0:
            return None
        return {name: value.detach().to("cpu", self.dtype) for name, value in self.model.state_dict().items()}


def _deepspeed() -> Any:
    """DeepSpeed, quiet, without the operation that would be compiled on a CPU."""
    import deepspeed
    from deepspeed.utils import logger

    # It calls collectives by names that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

    logger.setLevel(logging.WARNING)
    # The dict that DeepSpeed consults before it builds the operation; setting it first also skips probing compilers.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    return deepspeed
