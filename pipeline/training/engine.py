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
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.model.attention import attention_of, document_arguments, documents_known, on_its_way
from pipeline.model.costs import Checkpointing
from pipeline.model.head import Taken, find_head, losses_at
from pipeline.model.loss import next_tokens, router_coefficient, token_losses
from pipeline.model.sampled import Sampled
from pipeline.training.dropping import drop_gradients, plain_norm, spoil_gradients
from pipeline.training.frozen import count_saved, left_out
from pipeline.training.library import load_deepspeed
from pipeline.training.optimisation import Optimisation, decay_groups
from pipeline.training.reach import probe, unreached
from pipeline.training.recalled import Recalled
from pipeline.training.recomputing import recompute
from pipeline.training.sums import sum_in_one_pass
from pipeline.training.teacher import Answer, Teaching
from pipeline.world import World

if TYPE_CHECKING:
    from pipeline.training.compiled import CompiledBlocks

#: Values in a bucket of gradients that are reduced together: DeepSpeed's default.
BUCKET = 500_000_000


class Engine:
    """A model under DeepSpeed with AdamW: micro-batches in, one update at the end of ``accumulation`` of them.

    ``model`` is in bf16 (fp32 master weights and moments) or fp32. Every process constructs it, with the same
    weights. Gradients are those of the loss that ``backward`` was given, summed over micro-batches and processes.
    Where adapters are trained (``frozen``), all else stays as it is, in no checkpoint. Parameters that text does not
    reach (``unreached``, by name) are not trained. ``narrowed`` names those that a model in bf16 keeps in fp32 and that
    are trained in bf16 all the same: ZeRO 1 to 3 cast every parameter. ``router_coefficient`` is that of the router's
    auxiliary loss, None where the config does not ask for it or the model computes none. ``head`` is None where what
    follows it is not known: then the loss is made from whole logits. ``compile_blocks``: at the first micro-batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        world: World,
        optimisation: Optimisation,
        *,
        micro_batch: int,
        accumulation: int,
        zero_stage: int,
        gradient_checkpointing: Checkpointing = "none",
        compile_blocks: bool = False,
    ):
        self.world, self.zero_stage = world, zero_stage
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.dtype = next(model.parameters()).dtype
        self.frozen = bool(left_out(model))
        self.parameters = count_saved(model)
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self._bf16 = self.dtype == torch.bfloat16 and zero_stage > 0
        self.autocast = self.dtype == torch.bfloat16 and zero_stage == 0
        if self.autocast:
            model.float()
        self._look_at(model)
        recompute(model, gradient_checkpointing)
        model.train()
        self._adamw = torch.optim.AdamW(
            decay_groups(model, optimisation.weight_decay, optimisation.no_decay),
            lr=optimisation.learning_rate,
            betas=optimisation.betas,
            eps=optimisation.eps,
            fused=True,
        )
        self._clip = optimisation.clip
        deepspeed, config = load_deepspeed(), self._settings(model)
        # DeepSpeed's bf16 optimizer prints memory figures at its start, whatever the log level.
        with contextlib.redirect_stdout(io.StringIO()):
            self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=self._adamw, config=config)
        if world.size == 1 and (zero_stage == 0 or (self._bf16 and zero_stage == 1)):
            # Alone there is nothing to sum, but DeepSpeed would copy every gradient to a buffer and back. (Elsewhere
            # the reduction also hands the gradients to the optimizer, and must stay.)
            self.engine.enable_backward_allreduce = False
        if self._bf16 and zero_stage == 1:
            sum_in_one_pass(self.optimizer)
        self.compiled: CompiledBlocks | None = _compiled(self.model) if compile_blocks else None
        if self.compiled is not None and self.head is not None:
            self.head = replace(self.head, judge=self.compiled.function(self.head.judge))
        self.teaching: Teaching | Recalled | None = None

    def learn_from(self, teaching: Teaching | Recalled) -> None:
        """From here on the loss is what ``teaching`` makes of it."""
        self.teaching = teaching if self.compiled is None else teaching.compiled(self.compiled.function)

    def _look_at(self, model: PreTrainedModel) -> None:
        """See what text reaches of the model; the rest is not trained."""
        with self.precision():
            output, self.head = probe(model), find_head(model)
        self.unreached = unreached(model, output)
        for parameter in self.unreached.values():
            parameter.requires_grad_(False)
        trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        self.narrowed = [name for name in trained if self._bf16 and self._dtypes[name] == torch.float32]
        computed = getattr(output, "aux_loss", None) is not None
        self.router_coefficient = router_coefficient(model.config) if computed else None

    def _settings(self, model: PreTrainedModel) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "train_batch_size": self.micro_batch * self.accumulation * self.world.size,
            # Without ZeRO the norm is known before DeepSpeed would compute it again.
            "gradient_clipping": 0.0 if self.zero_stage == 0 else self._clip,
            "bf16": {"enabled": self._bf16, "immediate_grad_update": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_optimization": {
                "stage": self.zero_stage,
                "overlap_comm": False,
                "contiguous_gradients": True,
                # DeepSpeed makes its buckets as long as this, whatever the model's size: 2 GB at its default.
                "reduce_bucket_size": min(BUCKET, self.parameters),
                "stage3_gather_16bit_weights_on_model_save": True,
                # On one machine with small models nothing may stay unsharded by size, or stages would not differ.
                "stage3_param_persistence_threshold": 1e4,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
            "wall_clock_breakdown": False,
        }

    @property
    def model(self) -> PreTrainedModel:
        """The module that DeepSpeed wraps."""
        return self.engine.module

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next update, for every group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(
        self,
        input_ids: torch.Tensor,
        targets: int,
        documents: Sequence[np.ndarray] | None = None,
        counted: torch.Tensor | None = None,
        known: Sampled | None = None,
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch (rows, T) int64.

        Returns (4,) fp32: its summed token loss; its router's auxiliary loss; and, of its tokens together, how far they
        are from a teacher's, and how far the states of its blocks: zero where there is no router or no teacher.

        ``targets`` is the number of target tokens of the global batch: the gradient is that of the sum of token
        losses divided by it, however the batch is split. DeepSpeed averages over processes, hence the factor.

        Where the model's config asks for it, its router's auxiliary loss is added, times the config's coefficient. It
        measures how evenly the tokens of one forward are spread, over all blocks together, hence it is that of a
        micro-batch, and is averaged over the micro-batches and processes of the global batch: unlike the token loss,
        it depends on how the batch is split.

        ``documents``, where documents begin in each row (cu_seqlens, int32, 0 ... T), makes each of them stand alone:
        its tokens see it alone. None: a row is one text, and its tokens see all before. ``counted`` (rows, T - 1) bool
        on the CPU: column t says whether token t + 1 is a target; None: all are. ``known`` is what ``teaching.known``
        gives of the rows.
        """
        inputs, attention = {"input_ids": input_ids}, attention_of(self.model)
        if documents is not None:
            inputs = document_arguments(input_ids, documents, attention)
        counted = None if counted is None else on_its_way(counted, input_ids.device)
        wanted, factor = next_tokens(input_ids, counted), self.world.size / targets
        teaching = self.teaching
        with contextlib.nullcontext() if teaching is None else teaching.asked(input_ids, documents, known) as answer:
            with documents_known(documents, attention, input_ids.device):
                taken, output = self._forward(inputs, wanted, factor, answer)
            objective = taken.objective
            auxiliary = disagreement = zero = torch.zeros_like(taken.total)
            if answer is not None and answer.states:
                disagreement = answer.disagreement(output.hidden_states, wanted)
                objective = objective + disagreement * (teaching.hidden * factor)
        if self.router_coefficient is not None:
            auxiliary = output.aux_loss.float()
            objective = objective + auxiliary * (self.router_coefficient / self.accumulation)
        self.engine.backward(objective, scale_wrt_gas=False)
        divergence = zero if taken.divergence is None else taken.divergence
        return torch.stack([taken.total, auxiliary, divergence, disagreement]).detach()

    def _forward(
        self, inputs: dict[str, Any], targets: torch.Tensor, factor: float, answer: Answer | None
    ) -> tuple[Taken, Any]:
        """What a forward gives at the head, by the teacher's answer where there is one, and the model's output."""
        lesson = None if answer is None else answer.lesson
        more = {"output_hidden_states": True} if answer is not None and answer.states else {}
        if self.head is not None:
            with losses_at(self.head, targets, factor, lesson) as taken, self.precision():
                output = self.engine(**inputs, **more, use_cache=False)
            return taken, output
        with self.precision():
            output = self.engine(**inputs, **more, use_cache=False)
        logits = output.logits.view(*targets.shape, -1)
        total, divergence = token_losses(logits, targets).sum(), None
        objective = total
        if lesson is not None:
            divergence = lesson.divergence(logits.flatten(0, 1), targets.flatten())
            objective = lesson.objective(total, divergence)
        return Taken(objective * factor, total.detach(), divergence), output

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model computes as it trains: autocast for ZeRO 0 in bf16, else nothing."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.autocast)

    def step(self, *, update: bool = True) -> None:
        """After each micro-batch: at the end of the accumulation DeepSpeed clips and updates the weights.

        Where the global gradient norm is not finite then, or no ``update`` is wanted, none is made: weights and moments
        stay as they are, and all gradients of the accumulation are dropped, on every process, each of which says so.
        """
        if not update and self.zero_stage > 0:
            spoil_gradients(self.optimizer)
        if self.zero_stage == 0 and self.engine.is_gradient_accumulation_boundary():
            trained, norm = plain_norm(self.model)
            self._norm = float(norm)
            if not (update and math.isfinite(self._norm)):
                drop_gradients(trained)
            elif self._clip:
                nn.utils.clip_grads_with_norm_(trained, self._clip, norm)
        self.engine.step()

    def gradient_norm(self) -> float:
        """Global gradient norm at the end of the last accumulation, before clipping; the same on every process."""
        if self.zero_stage == 0:
            return self._norm
        return float(self.engine.get_global_grad_norm())

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The whole model's weights, or where adapters are trained those alone, on rank 0's CPU (None
        elsewhere); every process must call it.

        Each has the dtype that it came with; ZeRO 3 gives parameters in the model's. Under ZeRO 1 to 3 the values of
        parameters are rounded to the model's dtype, also of those that are not trained.
        """
        if self.zero_stage == 3:
            gathered = self.engine._zero3_consolidated_16bit_state_dict(self.frozen)
            return gathered if self.world.rank == 0 else None
        if self.world.rank != 0:
            return None
        held = self.model.state_dict()
        return {name: value.detach().to("cpu", self._dtypes[name]) for name, value in held.items()}

    def close(self) -> None:
        """Give up weights, gradients and moments; the engine is of no use afterwards.

        DeepSpeed ties parameters, optimizer and modules into a knot that hangs on its own tables, and is never
        collected: what it keeps is taken out of it.
        """
        weights = list(self.model.parameters())
        if self.teaching is not None:
            self.teaching.close()
        self.engine.destroy()
        for optimizer in (self.optimizer, self._adamw):
            vars(optimizer).clear()
        for weight in weights:
            vars(weight).clear()
            weight.grad, weight.data = None, torch.empty(0, dtype=weight.dtype, device=weight.device)


def _compiled(model: nn.Module) -> CompiledBlocks:
    """The model's blocks, compiled. The compiler takes a second to import, and a CPU does without it."""
    from pipeline.training.compiled import CompiledBlocks

    return CompiledBlocks(model)
