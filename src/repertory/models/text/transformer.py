"""Encoders and decoders of Hugging Face as encoders of texts given as bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.modes import evaluating
from repertory.core.texts import bytes_text
from repertory.errors import DataError, UserError, check_choice, check_number

_MOST_TOKENS = 512
_PROBE = ((1, 2, 3, 4), (1, 2, 3, 0))
"""Two texts of four tokens that differ in the last one."""


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each text's token states, those of the padding left out; zero for a text without tokens.

    Args:
        states: `(texts, tokens, width)`.
        mask: 1 for tokens, 0 for padding, wherever it stands, `(texts, tokens)`.

    Returns:
        `(texts, width)`, float32 or wider.

    >>> mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    kept = mask.to(wide.dtype)[..., None]
    # Padding may hold anything, and nothing times infinity is not nothing.
    return torch.where(kept > 0, wide, 0).sum(1) / kept.sum(1).clamp(min=1)


def bidirectional(model: nn.Module) -> nn.Module:
    """Let every token of a decoder see those after it too, in place, whichever attention kernel computes it.

    Args:
        model: a network of transformers, such as `AutoModel` gives.

    Returns:
        The network.

    Raises:
        UserError: if its tokens still do not see those after them.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise UserError(f"{type(model).__name__} has no config, so it is no network of transformers; give one of those")
    # The masks are made from the config; fused kernels that are given no mask go by the layer's own flag.
    config.is_causal = False
    for module in model.modules():
        if getattr(module, "is_causal", False):
            module.is_causal = False  # type: ignore[assignment]
    if not _sees_ahead(model):
        raise UserError(
            f"{type(model).__name__} reads from left to right whatever mask it is given, or this version of "
            "transformers cannot change it (5.0 or later can); leave out causal=false, or choose another network"
        )
    return model


@torch.no_grad()
def _sees_ahead(model: nn.Module) -> bool:
    tokens = torch.tensor(_PROBE, device=next(model.parameters()).device)
    with evaluating(model):
        states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    return not torch.equal(states[0, 0], states[1, 0])


class TransformerText(nn.Module):
    """Embed texts given as bytes by a network of transformers, with its own tokens.

    Args:
        encoder: the network; called with what the tokenizer gives.
        tokenizer: of the network.
        outputs: size of the embedding, by a linear layer of its own; None keeps the network's width.
        pooling: "mean" over tokens, "first" or "last" token.
        query_prefix: put before the first text of each example.
        passage_prefix: put before all other texts.
        max_tokens: longest text, special tokens included; None takes what the network allows, 512 at most.

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if the inputs are not texts.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        outputs: int | None = None,
        pooling: str = "mean",
        query_prefix: str = "",
        passage_prefix: str = "",
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, ("mean", "first", "last"))
        config: Any = encoder.config
        width = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0))
        most = min(_MOST_TOKENS, tokenizer.model_max_length, getattr(config, "max_position_embeddings", _MOST_TOKENS))
        if max_tokens is not None:
            check_number("max_tokens", max_tokens, minimum=1, integer=True)
        self.encoder = encoder
        self.pooling = pooling
        self.prefixes = (query_prefix, passage_prefix)
        self.max_tokens = most if max_tokens is None else max_tokens
        if outputs is None:
            # Nothing to learn: there so that methods find a last linear layer to replace.
            self.head = nn.Linear(width, width, bias=False).requires_grad_(False)
            nn.init.eye_(self.head.weight)
        else:
            check_number("outputs", outputs, minimum=1, integer=True)
            self.head = nn.Linear(width, outputs)
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        self._tokenizer = (tokenizer,)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings; those of empty texts are zero.

        Args:
            inputs: UTF-8 bytes, 0 after the end: `(batch, length)` of passages, or `(batch, texts, length)` of a query
                and passages.

        Returns:
            `(batch, outputs)` or `(batch, texts, outputs)`.
        """
        if inputs.ndim not in (2, 3):
            raise DataError(
                f"inputs of shape {tuple(inputs.shape)} are no texts: (batch, length) or (batch, texts, length)"
            )
        texts = inputs.flatten(0, -2)
        there = texts.any(1).nonzero().flatten()
        found = self.head(self._states(texts[there], there % inputs.shape[1] if inputs.ndim == 3 else there + 1))
        return found.new_zeros(len(texts), found.shape[1]).index_copy(0, there, found).unflatten(0, inputs.shape[:-1])

    def get_classifier(self) -> nn.Module:
        """Return the last layer, as timm's networks do."""
        return self.head

    def _states(self, texts: Tensor, places: Tensor) -> Tensor:
        if not len(texts):
            return self.head.weight.new_zeros(0, self.head.in_features)
        query, passage = self.prefixes
        written = [
            (passage if place else query) + text for text, place in zip(bytes_text(texts), places.clamp(max=1).tolist())
        ]
        tokens = self._tokenizer[0](
            written, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(texts.device)
        states: Tensor = self.encoder(**tokens).last_hidden_state
        mask: Tensor = tokens["attention_mask"]
        if self.pooling == "mean":
            return mean_pool(states, mask)
        last = mask.sum(1) - 1 if self.pooling == "last" else torch.zeros_like(mask[:, 0])
        return states[torch.arange(len(states), device=states.device), last]


def hugging_face(
    name: str,
    outputs: int | None = None,
    pooling: str = "mean",
    query_prefix: str = "",
    passage_prefix: str = "",
    causal: bool | None = None,
    max_tokens: int | None = None,
    pretrained: bool = True,
) -> TransformerText:
    """Load an encoder or decoder by name or from a folder; only weights in safetensors, and no code from there.

    Args:
        name: of a repository of the Hugging Face hub, or of a folder.
        outputs: size of the embedding, by a linear layer of its own; None keeps the network's width.
        pooling: "mean" over tokens, "first" or "last" token: what the network was trained with, "mean" for decoders.
        query_prefix: put before queries, as in "query: ", or an instruction.
        passage_prefix: put before passages.
        causal: False lets the tokens of a decoder see those after them too; None leaves the network as it is.
        max_tokens: longest text; None takes what the network allows, 512 at most.
        pretrained: whether to load the weights, or start from random ones.

    Raises:
        OptionError: if an option is outside its range.
        UserError: if transformers is not installed, or there is no such network that can be loaded safely.
    """
    check_choice("causal", causal, (None, False))
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    except ImportError:
        raise UserError(f'hf:{name} needs transformers; install it with: pip install "repertory[text]"') from None
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        config.use_cache = False
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if pretrained:
            encoder = AutoModel.from_pretrained(name, config=config, trust_remote_code=False, use_safetensors=True)
        else:
            encoder = AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"hf:{name} cannot be loaded: {reason}; give a repository of the hub or a folder with config.json, a "
            "tokenizer and weights in safetensors, which needs no code of its own"
        ) from error
    if config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    encoder = encoder.float()
    if getattr(encoder, "pooler", None) is not None:
        # It has no part in the embedding, and several processes would wait for its gradient.
        encoder.pooler.requires_grad_(False)
    if causal is False:
        encoder = bidirectional(encoder)
    return TransformerText(encoder, tokenizer, outputs, pooling, query_prefix, passage_prefix, max_tokens)
