"""How alike two networks represent the same examples, and which of their layers to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from repertory.core.activations import LayerOutputs
from repertory.errors import DataError, OptionError

Pairs = list[tuple[str, str]]
"""Names of a layer of the guide and of the layer of the network that is compared with it."""


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Return the linear centred kernel alignment of two representations of the same examples.

    With centred columns it is $\lVert Y^\top X \rVert_F^2 / (\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F)$:
    1 for representations equal up to rotation, scale and shift, 0 for those without linear relation, and for one that
    is the same for all examples. It compares how the examples lie to each other, so widths need not agree. Few
    examples in many dimensions look alike by chance: independent noise of 64 examples in 512 dimensions gives 0.9.

    It is evaluated from inner products of examples or of features, whichever takes fewer operations, in float32 or
    wider, also under autocast. What is not finite gives NaN.

    Args:
        x: `(examples, ...)`.
        y: `(examples, ...)`, with as many examples.

    Returns:
        0-d in [0, 1], with gradient.

    Raises:
        DataError: if the numbers of examples differ, or there are fewer than 2.

    >>> x = torch.tensor([[1.0], [0.0], [-1.0]])
    >>> round(float(linear_cka(x, 5 - 2 * x)), 4), round(float(linear_cka(x, torch.tensor([[1.0], [-2.0], [1.0]]))), 4)
    (1.0, 0.0)
    """
    count = len(x)
    if len(y) != count or count < 2:
        raise DataError(
            f"x has {count} examples and y has {len(y)}; linear_cka compares how the same examples lie to each other: "
            "give at least 2, the same in both"
        )
    with torch.autocast(x.device.type, enabled=False):
        x, y = _centred(x), _centred(y)
        width, other = x.shape[1], y.shape[1]
        if count * (width + other) <= width * other + width**2 + other**2:
            grams = x @ x.T, y @ y.T
            shared = (grams[0] * grams[1]).sum()
        else:
            grams = x.T @ x, y.T @ y
            shared = (y.T @ x).square().sum()
        # The length 1 of x and y bounds each norm from below by 1 / sqrt(examples), unless it is 0.
        return shared / (torch.linalg.vector_norm(grams[0]) * torch.linalg.vector_norm(grams[1])).clamp(min=1e-12)


def _centred(values: Tensor) -> Tensor:
    flat = values.reshape(len(values), -1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    centred = flat - flat.mean(0)
    with torch.no_grad():
        # The scale cancels in the end, also in the gradient; without it fourth powers overflow. A constant is not
        # exactly 0 after centring.
        length, whole = torch.linalg.vector_norm(centred), torch.linalg.vector_norm(flat)
        scale = torch.where(length <= 8 * torch.finfo(flat.dtype).eps * whole, 0.0, 1 / length)
    return centred * scale


def match_by_depth(guide: Sequence[str], network: Sequence[str]) -> Pairs:
    """Pair each layer of the guide with the layer of the network at the same relative depth.

    Layer `i` of `p` goes to layer `round(i * (q - 1) / (p - 1))` of `q`, a half rounded to the even number; several
    may share a layer of the network.

    Args:
        guide: names of the guide's layers in the order of their calls.
        network: names of the network's layers in the order of their calls.

    >>> match_by_depth(["a", "b", "c"], ["0", "1", "2", "3", "4"])
    [('a', '0'), ('b', '2'), ('c', '4')]
    """
    step = (len(network) - 1) / (len(guide) - 1) if len(guide) > 1 else 0.0
    return [(name, network[round(i * step)]) for i, name in enumerate(guide)]


def match_by_name(guide: Sequence[str], network: Sequence[str]) -> Pairs:
    """Pair the layers that have the same name in both.

    >>> match_by_name(["stem", "layer1", "head"], ["layer1", "head"])
    [('layer1', 'layer1'), ('head', 'head')]
    """
    there = set(network)
    return [(name, name) for name in guide if name in there]


def named_pairs(match: str | Mapping[str, str] | Sequence[str]) -> Pairs | None:
    """Return the pairs that `match` names, None where it says how to find them.

    Args:
        match: "depth", "name", a mapping `{guide layer: network layer}`, or a list of "guide layer=network layer".

    Raises:
        OptionError: if it is none of these.

    >>> named_pairs(["layer1=0", "layer2=3"])
    [('layer1', '0'), ('layer2', '3')]
    """
    if isinstance(match, str):
        if match in ("depth", "name"):
            return None
        pairs = []
    elif isinstance(match, Mapping):
        pairs = [tuple(pair) for pair in match.items()]
    else:
        pairs = [tuple(str(pair).split("=")) for pair in match]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise OptionError(
            f"match={match!r} is not allowed: match must be 'depth', 'name', a mapping "
            "{guide layer: network layer}, or a list such as [layer1=0,layer2=3]"
        )
    return pairs  # type: ignore[return-value]


def matched(match: str | Mapping[str, str] | Sequence[str], guide: Sequence[str], network: Sequence[str]) -> Pairs:
    """Return the pairs of layers to align, from what ran in each network.

    Unless layers are named, the last one of each network, which gives its output, takes no part.

    Args:
        match: as for `named_pairs`.
        guide: names of the guide's layers in the order of their calls.
        network: names of the network's layers in the order of their calls.

    Raises:
        OptionError: if nothing can be paired, or a named layer did not run.
    """
    pairs = named_pairs(match)
    if pairs is None:
        guide, network = guide[:-1], network[:-1]
        pairs = (match_by_depth if match == "depth" else match_by_name)(guide, network) if guide and network else []
        if not pairs:
            raise OptionError(
                f"match={match!r} pairs no layers: beside its output layer the guide has {_some(guide)}, the network "
                f"{_some(network)}; choose another guide, or name pairs: match=[guide layer=network layer]"
            )
    for whose, names, run in (("guide", [g for g, _ in pairs], guide), ("network", [n for _, n in pairs], network)):
        silent = sorted(set(names) - set(run))
        if silent:
            raise OptionError(
                f"match={match!r} names layer {silent[0]!r}, but in the {whose} it did not run, or gave no row an "
                "example; name another"
            )
    return pairs


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


@torch.no_grad()
def layer_alignment(
    network: nn.Module,
    guide: nn.Module,
    inputs: Tensor,
    match: str | Mapping[str, str] | Sequence[str] = "depth",
) -> dict[tuple[str, str], float]:
    """Return the CKA of each pair of layers of two networks, in the mode that they are in.

    Args:
        network: any network.
        guide: any other.
        inputs: a batch that both take `(batch, ...)`, of 64 or more.
        match: as in `Guidance`.

    Returns:
        From (guide layer, network layer) to the alignment in [0, 1].

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> layer_alignment(model, model, torch.randn(64, 4))[("0", "0")] > 0.999
    True
    """
    pairs = named_pairs(match)
    seen: list[dict[str, Tensor]] = []
    for model, place in ((guide, 0), (network, 1)):
        names = None if pairs is None else list(dict.fromkeys(pair[place].partition("@")[0] for pair in pairs))
        outputs = LayerOutputs(model, names, "match")
        try:
            with outputs.recorded(len(inputs)) as found:
                model(inputs)
        finally:
            outputs.remove()
        seen.append(found)
    theirs, own = seen
    return {(g, n): float(linear_cka(own[n], theirs[g])) for g, n in matched(match, list(theirs), list(own))}
