"""Groups of parameters under which a Gram matrix is reported: by layer, by kind of module, or each parameter alone."""

import re
from collections.abc import Callable
from typing import Literal

from torch import nn

Split = Literal["layer", "kind", "parameter"]

# The first pattern that occurs in the path of a parameter's module decides.
KINDS = {
    "norm": re.compile(r"norm|ln_|layernorm|lnorm", re.I),
    "attention": re.compile(r"attn|attention", re.I),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|expert|moe|\bfc|dense_|gate", re.I),
    "embedding": re.compile(r"emb|wte|wpe", re.I),
}


def grouping(model: nn.Module, split: Split | None) -> Callable[[str], str]:
    """Parameter name -> group. A tied matrix belongs to the first module that owns it, the embedding."""
    if split is None:
        return lambda name: "all"
    if split == "parameter":
        return lambda name: name
    if split not in ("layer", "kind"):
        raise ValueError(f"split={split!r}: allowed are 'layer', 'kind', 'parameter' and None")
    heads = {id(p) for p in _head_parameters(model)}
    kinds = {name: "head" if id(p) in heads else kind_of(name, model) for name, p in model.named_parameters()}
    if split == "kind":
        return kinds.__getitem__
    return lambda name: f"layer {match[1]}" if (match := re.search(r"\.(\d+)\.", name)) else kinds[name]


def kind_of(name: str, model: nn.Module) -> str:
    """norm, attention, mlp, embedding or other, from the owning module's class and path."""
    path = name.rpartition(".")[0]
    owner = model.get_submodule(path)
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if KINDS["norm"].search(type(owner).__name__):
        return "norm"
    return next((kind for kind, pattern in KINDS.items() if pattern.search(path)), "other")


def _head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the output layer that the input embedding does not share."""
    get_head, get_table = (getattr(model, f"get_{end}_embeddings", lambda: None) for end in ("output", "input"))
    head, table = get_head(), get_table()
    shared = {id(p) for p in table.parameters()} if table is not None else set()
    return [p for p in head.parameters() if id(p) not in shared] if head is not None else []
