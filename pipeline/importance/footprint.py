"""What a sweep by block takes, in bytes, before it is started: states between the blocks, and room on the device."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.importance.sweep import HEAD_ROWS


@dataclass(frozen=True)
class SweepShape:
    """One process's sweep: ``sequences`` of ``length`` tokens, ``micro_batch`` at a time, through ``blocks`` blocks.

    A token's state is ``width`` values of ``value_bytes``. ``losses``: variants without each block go along, and
    without each of ``windows`` windows of neighbours (batch-major alone). ``distances``: dense states are kept for
    them.
    """

    blocks: int
    sequences: int
    length: int
    width: int
    value_bytes: int
    micro_batch: int
    losses: bool = True
    windows: int = 0
    distances: bool = True

    def states(self) -> int:
        """Bytes of the states in files at their peak; exact.

        It is reached when the last micro-batch enters the last block: each sequence then has its blocks' variants and,
        for the distances, the dense states before.
        """
        micro_batch = min(self.micro_batch, self.sequences)
        if not self.losses:
            states = self.sequences * (self.blocks - 1)
        elif self.blocks > 2:
            kept = self.blocks - 2 if self.distances else 0
            # All but one micro-batch have their newest file; that one has the new file and the whole one before it.
            states = self.sequences * (self.blocks + kept)
            states += micro_batch * (self.blocks - 1 - (1 if self.distances else 0))
        else:
            states = self.sequences * self.blocks if self.blocks == 2 else 0
        return states * self._state()

    def device(
        self, *, block_bytes: int, outside_bytes: int, vocabulary: int, intermediate: int | None = None
    ) -> dict[str, int]:
        """Bytes on the device, by item; an estimate, without attention's own work space.

        ``block`` (the largest one), ``outside`` (what is not in blocks), ``chunk`` (the states of one micro-batch with
        its variants as they enter, leave and are put together, and the three widest tensors of a gated MLP of
        ``intermediate``, default 4 x width) and ``logits`` (of so many rows as are made at a time, in the model's
        precision and twice in fp32).
        """
        micro_batch = min(self.micro_batch, self.sequences)
        rows = micro_batch * (self.blocks + 1 + self.windows if self.losses else 1)
        wide = self.length * (intermediate or 4 * self.width) * self.value_bytes
        logits = max(HEAD_ROWS, micro_batch) * self.length * vocabulary * (self.value_bytes + 8)
        return {
            "block": block_bytes,
            "outside": outside_bytes,
            "chunk": 3 * rows * (self._state() + wide),
            "logits": logits if self.losses else 0,
        }

    def _state(self) -> int:
        return self.length * self.width * self.value_bytes
