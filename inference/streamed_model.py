"""The transformers model of a checkpoint, whose layers load their weights when they are called. Imports torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from mconv.convert.errors import MappingError, SourceError
from mconv.convert.families import family_named
from mconv.convert.layouts.hf.names import CONFIG
from mconv.convert.model.checkpoint import Checkpoint
from mconv.inference.streamed_weights import Weights

PASS_TOKENS = 1024  # tokens that a layer processes at once
MLP_TOKENS = 512  # tokens that its MLP, the widest part of a layer, processes at once
HEAD_BYTES = 64 << 20  # bytes of the output matrix that are read at once
_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm."


class StreamedModel:
    """The text model of a checkpoint, computing in float32.

    Attributes:
        in_memory: whether all of its weights stay in memory once they have been read.

    Args:
        checkpoint: a checkpoint with float weights, in any layout.
        weights: where its parameters come from.

    Raises:
        SourceError: transformers cannot build the model.
        MappingError: a tensor of the checkpoint is not in the model, or the other way round.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Weights) -> None:
        self._weights = weights
        self._vocab = checkpoint.spec.vocab
        self._head = _HEAD if _HEAD in checkpoint.tensors or not checkpoint.spec.tied else _EMBEDDING
        self._model = _build(checkpoint)
        used = {_EMBEDDING, self._head, f"{_NORM}weight"}
        values = self._vocab * checkpoint.spec.hidden
        for number, layer in enumerate(self._model.layers):
            streamed = _StreamedLayer(layer, f"model.layers.{number}.", weights)
            self._model.layers[number] = streamed
            used |= streamed.parameter_names
            values += streamed.values
        self.in_memory = weights.have_room(4 * values)
        weights.check_coverage(used)
        self._model.norm.load_state_dict(weights.parameters(_NORM, _shapes(self._model.norm)), assign=True)

    def load(self) -> None:
        """Read the weights that fit into memory, so that the next call does not wait for the disk."""
        hidden = self.hidden(np.zeros((1, 1), np.int32))
        self.logits(hidden, np.empty((1, self._vocab), np.float32))

    def new_cache(self) -> Any:
        """An empty key-value cache for a new sequence."""
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def hidden(self, tokens: np.ndarray, cache: Any = None) -> torch.Tensor:
        """The hidden states of some chunks after the last layer.

        Args:
            tokens: int32[chunks, length].
            cache: from `new_cache`: the earlier tokens of one chunk, to which these tokens are added.

        Returns:
            float32[chunks, length, hidden].
        """
        with torch.inference_mode():
            embedded = self._weights.gather(_EMBEDDING, tokens)
            read = self._model(inputs_embeds=embedded, past_key_values=cache, use_cache=cache is not None)
            return read.last_hidden_state

    def logits(self, hidden: torch.Tensor, out: np.ndarray) -> np.ndarray:
        """The logits of some positions.

        Args:
            hidden: float32[chunks, rows, hidden].
            out: float32[at least chunks * rows, vocabulary], filled by this call.

        Returns:
            float32[chunks, rows, vocabulary], a view of the start of `out`.
        """
        chunks, rows, width = hidden.shape
        found = torch.from_numpy(out[: chunks * rows])
        step = max(1, HEAD_BYTES // (4 * width))
        with torch.inference_mode():
            flat = hidden.reshape(-1, width)
            for start in range(0, self._vocab, step):
                stop = min(start + step, self._vocab)
                found[:, start:stop] = flat @ self._weights.rows(self._head, start, stop).T
        return found.numpy().reshape(chunks, rows, self._vocab)


class _StreamedLayer(nn.Module):
    """A decoder layer that holds its weights only during a call, and processes a few chunks at a time."""

    def __init__(self, layer: Any, prefix: str, weights: Weights) -> None:
        super().__init__()
        self._layer = layer
        self._prefix = prefix
        self._weights = weights
        self._parameter_shapes = _shapes(layer)
        layer.mlp.forward = _in_parts(layer.mlp.forward)

    @property
    def values(self) -> int:
        """Number of values in its parameters."""
        return sum(map(math.prod, self._parameter_shapes.values()))

    @property
    def parameter_names(self) -> set[str]:
        """The names of its parameters in the checkpoint."""
        return {self._prefix + name for name in self._parameter_shapes}

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any) -> torch.Tensor:
        """Apply the layer to the hidden states of all chunks, float32[chunks, length, hidden], in place."""
        parameters = self._weights.parameters(self._prefix, self._parameter_shapes)
        step = max(1, PASS_TOKENS // hidden.shape[1])
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            mask = attention_mask if attention_mask is None or len(attention_mask) == 1 else attention_mask[part]
            arguments = {"attention_mask": mask, **others}
            hidden[part] = functional_call(self._layer, dict(parameters), (hidden[part],), arguments)
        return hidden


def _in_parts(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """An MLP that processes a few tokens at a time; tokens are independent of each other, so the result is the same."""

    def forward_in_parts(hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([forward(part) for part in hidden.split(MLP_TOKENS, dim=1)], dim=1)

    return forward_in_parts


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _build(checkpoint: Checkpoint) -> Any:
    """The base model (without the output matrix), without weights."""
    from transformers import CONFIG_MAPPING, AutoModel

    members = _config(checkpoint)
    try:
        config = CONFIG_MAPPING[members["model_type"]].from_dict(members).get_text_config()
        with torch.device("meta"):
            model = AutoModel.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="eager"
            )
        # Its frequencies are not weights: they are computed from the configuration, so not on the meta device.
        model.rotary_emb = type(model.rotary_emb)(config=model.config)
    except Exception as error:  # transformers and its checks of a configuration raise various errors
        raise SourceError(
            f"{checkpoint.path}: transformers cannot build the model: {error}",
            "check config.json against the original",
        ) from error
    return model.eval()


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json of the checkpoint; if it has none, a configuration made from its settings.

    Raises:
        MappingError: transformers has no configuration for such a model.
    """
    found = checkpoint.sidecars().get(CONFIG)
    if found is not None:
        return dict(json.loads(found))
    write = family_named(checkpoint.spec.family).write_config
    if write is None:
        raise MappingError(
            f"{checkpoint.path}: no configuration can be written for the {checkpoint.spec.family} family",
            "give --hf-config the folder with the config.json of the model",
        )
    return write(checkpoint.spec, "")
