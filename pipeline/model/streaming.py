"""A model of which one block at a time is in memory: for models that are larger than the device.

What lies outside the blocks (embeddings, final norm, head, rotary tables) is loaded once and stays. A block's weights
are read from the folder's safetensors when it is entered and are gone when it is left, so that memory grows with the
block and not with the model. Names and layouts of a checkpoint are turned into those of the modules by transformers'
own loading (it fuses the experts of Mixtral, for one), called with the weights of one block; nothing is guessed here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import RegrowError, first_line
from pipeline.files import hash_json
from pipeline.model.files import require_finite, weight_files
from pipeline.model.headers import conversions, is_old_mask, opened, read_headers
from pipeline.model.hollow import buffers_to, without_weights
from pipeline.model.load import attention_kernel, own_memory
from pipeline.model.structure import find_blocks, require_separate_blocks


class StreamedModel:
    """The causal language model of a local folder, in evaluation mode, with its blocks on disk.

    ``model`` is whole but for the blocks, whose parameters are on the meta device outside ``block``; ``blocks`` is its
    list of them. ``loads`` counts how often each was read. ``block_bytes`` (for each block) and ``outside_bytes`` are
    the bytes of parameters and buffers in ``dtype``. While a block is read on the CPU, or its layout is converted, its
    largest parameters stand twice in memory.

    Raises RegrowError when the folder has no safetensors, when weights are missing, left over or of another shape
    (all blocks are checked at the start, from the files' headers), when the weights are quantised, or when the blocks
    of this model depend on each other.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str | torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        attention: str = "auto",
        trust_remote_code: bool = False,
    ):
        self.folder, self.device = Path(folder), torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        kernel = attention_kernel(attention, self.device, self.dtype)
        self.model = without_weights(self.folder, self.dtype, kernel, trust_remote_code)
        self.blocks = find_blocks(self.model)
        require_separate_blocks(self.model, self.blocks)
        path = next(name for name, module in self.model.named_modules() if module is self.blocks)
        self._prefixes = [f"{path}.{index}." for index in range(len(self.blocks))]
        self._entries = read_headers(self.model, self._files())
        self._check_shapes()
        self._load_outside()
        self.loads = [0] * len(self.blocks)
        self.block_bytes = [_bytes(block) for block in self.blocks]
        self.outside_bytes = _bytes(self.model) - sum(self.block_bytes)

    @contextlib.contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Within the context block ``index`` has its weights, on the device; afterwards they are gone.

        Raises RegrowError when they cannot be read.
        """
        block = self.blocks[index]
        empty = [(module, dict(module._parameters), dict(module._buffers)) for module in block.modules()]
        try:
            self._load(self._prefixes[index], f"block {index}")
            buffers_to(block, self.device)
            self.loads[index] += 1
            yield block
        finally:
            for module, parameters, buffers in empty:
                module._parameters.update(parameters)
                module._buffers.update(buffers)
            if self.device.type == "cpu":
                _give_back()

    def identity(self) -> dict[str, Any]:
        """What decides the states, as JSON: the config, the dtype, the attention kernel, and the files of weights."""
        files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self._files()]
        config = self.model.config
        return {
            "config": hash_json(json.loads(config.to_json_string(use_diff=False))),
            "weights": hash_json(files),
            "dtype": str(self.dtype),
            "attention": config._attn_implementation,
        }

    def _files(self) -> list[Path]:
        """The safetensors files that a loader would read."""
        files = weight_files(self.folder)
        if files[0].suffix != ".safetensors":
            raise RegrowError(
                f"{self.folder}: no model.safetensors and no index of them; blocks can be read one by one from "
                "safetensors alone. Save the model anew: "
                "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
            )
        return files

    def _check_shapes(self) -> None:
        """Refuse now what would be found hours later, as far as headers tell."""
        own = self.model.state_dict()
        for key, entry in self._entries.items():
            wanted = own.get(entry.target)
            if wanted is not None and not entry.converted and tuple(wanted.shape) != entry.shape:
                raise RegrowError(
                    f"{entry.file}: {key} has shape {entry.shape}, and {entry.target} wants {tuple(wanted.shape)}; "
                    "weights and config do not fit"
                )

    def _load_outside(self) -> None:
        """Load all but the blocks, tie what is tied, move the buffers; see that nothing is missing or left over."""
        info = self._load(None, "the part outside the blocks")
        self.model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        own = self.model.state_dict()
        info.missing_keys -= {entry.target for entry in self._entries.values()}
        # A conversion may make several parameters of one tensor: what such a block lacks is seen when it is loaded.
        converting = {
            prefix
            for prefix in self._prefixes
            if any(e.converted and e.target.startswith(prefix) for e in self._entries.values())
        }
        info.missing_keys -= {name for name in info.missing_keys if name.startswith(tuple(converting))}
        info.unexpected_keys |= {
            entry.target for entry in self._entries.values() if entry.target not in own and not entry.converted
        }
        # As in from_pretrained: some models have weights that may be missing, and files tensors that nobody wants.
        self.model._adjust_missing_and_unexpected_keys(info)
        info.unexpected_keys = {name for name in info.unexpected_keys if not is_old_mask(name)}
        if info.missing_keys:
            self._refuse_missing(info.missing_keys)
        if info.unexpected_keys:
            names = sorted(info.unexpected_keys)
            raise RegrowError(
                f"{self.folder}: weights and config do not fit, there is no place for {', '.join(names[:3])}"
            )
        inside = {id(module) for block in self.blocks for module in block.modules()}
        for module in self.model.modules():
            if id(module) not in inside:
                buffers_to(module, self.device, recurse=False)

    def _refuse_missing(self, names: set[str]) -> None:
        files = [path.name for path in self._files()]
        among = ", ".join([*files[:3], *(["..."] if len(files) > 3 else [])])
        raise RegrowError(
            f"{self.folder}: weights and config do not fit, {', '.join(sorted(names)[:3])} missing in its files "
            f"({among})"
        )

    def _load(self, prefix: str | None, what: str) -> Any:
        """Put the weights under ``prefix`` (None: all outside the blocks) into their modules, on the device."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        blocks = tuple(self._prefixes)
        wanted = {
            key: entry
            for key, entry in self._entries.items()
            if (entry.target.startswith(prefix) if prefix else not entry.target.startswith(blocks))
        }
        how = LoadStateDictConfig(
            device_map={"": str(self.device)},
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=conversions(self.model),
        )
        with contextlib.ExitStack() as stack:
            files = {file: stack.enter_context(opened(file)) for file in {entry.file for entry in wanted.values()}}
            slices = {key: files[entry.file].get_slice(key) for key, entry in wanted.items()}
            stack.enter_context(_in_this_thread())
            try:
                info, _ = convert_and_load_state_dict_in_model(self.model, slices, how)
            except Exception as error:
                raise RegrowError(f"{self.folder}: {what} cannot be read ({first_line(error)})") from error
        for name, found, expected in info.mismatched_keys:
            keys = [f"{entry.file.name}: {key}" for key, entry in wanted.items() if entry.target == name]
            raise RegrowError(
                f"{self.folder}: {', '.join(keys) or name} gives {name} of shape {tuple(found)}, and "
                f"{tuple(expected)} is wanted; weights and config do not fit"
            )
        if info.conversion_errors:
            name, reason = next(iter(info.conversion_errors.items()))
            raise RegrowError(f"{self.folder}: {what}: {name} cannot be converted ({reason.strip().splitlines()[-1]})")
        if prefix is not None:
            self.model._adjust_missing_and_unexpected_keys(info)
            missing = {name for name in info.missing_keys if name.startswith(prefix)}
            if missing:
                self._refuse_missing(missing)
        require_finite(self.model.named_parameters(), self.folder)
        if self.device.type == "cpu":
            own_memory(self.model)
        return info


@contextlib.contextmanager
def _in_this_thread() -> Iterator[None]:
    """Within the context transformers reads weights one after another, by its own switch.

    Its threads would each keep freed memory in an arena of theirs: some blocks more on a CPU, in the end.
    """
    switch = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def _give_back() -> None:
    """Have the C library hand freed memory to the system: left to itself glibc keeps what was freed between others."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _bytes(module: nn.Module) -> int:
    """Bytes of parameters, tied ones once, and of buffers."""
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
