"""Forward hooks on every layer that owns a trainable parameter, so that one backward pass gives each layer's part of each score.

The parameters themselves are frozen meanwhile: the backward pass computes gradients of activations only, and the work that a
training step spends on weight gradients is spent on the Gram matrix instead.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from analysis.score_gram.layers import Call, Contribution, Outer, Rule, linear, rule_by_values, rule_of

# body and head: up to the decoder's last hidden state and after it; again: a layer of the body that is recomputed; discovery: only
# note which layers run.
Mode = Literal["off", "discovery", "body", "again", "head"]


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No parameter gradients are computed inside."""
    parameters = list(parameters)
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the module's forward; one that was set on the instance is restored."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


class Capture:
    """Collects the contributions to each parameter's gradients and passes them to `emit(parameter, contributions)` when complete.

    `num_responses` and `length` describe the batch that is in the model now; `first` is the index of its first response.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[nn.Parameter, str],
        dtype: torch.dtype,
        emit: Callable[[nn.Parameter, Sequence[Contribution]], None],
    ) -> None:
        self.dtype, self.emit = dtype, emit
        self.names = {module: name for name, module in model.named_modules()}
        self.owners: dict[nn.Module, dict[str, nn.Parameter]] = defaultdict(dict)
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, module in model.named_modules():
            for local, p in module.named_parameters(recurse=False):
                if p not in parameters:
                    continue
                path, key = name, local
                while type(modules[path]).forward is nn.Module.forward:  # containers run no forward; their parent does
                    path, _, last = path.rpartition(".")
                    key = f"{last}.{key}"
                self.owners[modules[path]][key] = p
        self.num_responses = self.length = self.first = 0
        self.shared = 0  # tokens that all responses in the model begin with
        self.mode: Mode = "off"
        self.discovered: set[nn.Module] = set()  # layers that ran after the decoder
        self.recomputed: set[nn.Module] = set()  # heads whose weight is dealt with by slices of the vocabulary
        self.expected: dict[nn.Parameter, int] = defaultdict(int)
        self.waiting: set[nn.Parameter] = set()  # used by the head too: complete only at the end
        self.contributions: dict[nn.Parameter, list[Contribution]] = defaultdict(list)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        try:
            for module in self.owners:
                handles.append(module.register_forward_hook(self._called, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def batch(self, num_responses: int, length: int, first: int = 0, mode: Mode = "body") -> Iterator[None]:
        """Record calls on these responses. Contributions by the head wait for `flush`, since others of the same parameter follow."""
        self.num_responses, self.length, self.first, self.mode = num_responses, length, first, mode
        try:
            yield
        finally:
            self.mode = "off"

    def discover_head(self) -> None:
        """From here on only record which layers run (the head's)."""
        self.mode = "discovery"

    def flush(self, parameters: Iterable[nn.Parameter]) -> None:
        for p in list(parameters):
            if contributions := self.contributions.pop(p, None):
                self.emit(p, contributions)

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.mode == "discovery":
            self.discovered.add(module)
        if self.mode in ("off", "discovery"):
            return None
        owned = self.owners[module]
        if self.mode == "head" and module in self.recomputed:
            owned = {local: p for local, p in owned.items() if local != "weight"}
        leaves, spec = tree_flatten(output)
        is_float = [isinstance(x, Tensor) and x.is_floating_point() for x in leaves]
        if not owned or not any(is_float):
            return None
        if self.mode == "head":
            self.waiting.update(owned.values())
        elif self.mode == "body":
            for p in owned.values():
                self.expected[p] += 1
        if not torch.is_grad_enabled():  # a layer that will be recomputed
            return None
        if not any(x.requires_grad for x, f in zip(leaves, is_float, strict=True) if f):
            # Nothing trainable came before, so the graph begins here; a clone because later layers may write in place.
            roots = [x.detach().requires_grad_() if f else x for x, f in zip(leaves, is_float, strict=True)]
            output = tree_unflatten([x.clone() if f else x for x, f in zip(roots, is_float, strict=True)], spec)
            leaves = roots
        hooked_outputs = [f and x.requires_grad for x, f in zip(leaves, is_float, strict=True)]
        if sum(hooked_outputs) > 1:
            # One output may be computed from another; clones receive only the gradient that comes from outside the layer.
            leaves = [x.clone() if h else x for x, h in zip(leaves, hooked_outputs, strict=True)]
            output = tree_unflatten(leaves, spec)
        call = Call(module, (args, kwargs), hooked_outputs, self.num_responses, self.length)
        self._attach([x for x, h in zip(leaves, hooked_outputs, strict=True) if h], call, owned)
        return output

    def _attach(self, outputs: list[Tensor], call: Call, owned: dict[str, nn.Parameter]) -> None:
        """When the gradients of these outputs arrive, keep what the call contributed to each owned parameter."""
        rule, args = rule_of(call.module), call.arguments[0]
        if rule is None and len(outputs) == 1 and set(owned) == {"weight"} and args:
            rule = rule_by_values(call.module, args[0], outputs[0])
        first, mode, shared = self.first, self.mode, self.shared if self.mode != "head" else 0
        saved, versions = (
            [call],
            call.versions(),
        )  # a cell, emptied when the gradient arrives: the graph outlives what it saved

        def arrived(grads: Iterable[Tensor | None]) -> None:
            call = saved.pop()
            if versions != call.versions():
                raise ValueError(
                    f"{self.names[call.module]}: its input is overwritten in place later; use method='loop'"
                )
            contributions = self._contributions(call, rule, list(grads), owned)
            for local, p in owned.items():
                contribution = contributions[local]
                contribution.first = first
                if (
                    isinstance(contribution, Outer)
                    and rule is linear
                    and contribution.right_NTC.shape[1] == call.length
                ):
                    contribution.shared = shared
                self.contributions[p].append(contribution)
                if mode != "head":
                    self.expected[p] -= 1
                    if not self.expected[p] and p not in self.waiting:
                        self.flush([p])

        if len(outputs) == 1:
            outputs[0].register_hook(lambda grad: arrived([grad]))
        else:
            torch.autograd.graph.register_multi_grad_hook(outputs, arrived)

    def _contributions(
        self, call: Call, rule: Rule | None, grads: list[Tensor | None], owned: dict[str, nn.Parameter]
    ) -> dict[str, Contribution]:
        """By the layer's closed form, else by running it again."""
        kept = [g for g in grads if g is not None]
        if rule is None:
            for grad in kept:
                self._check_layout(grad, call)
            flags = iter(g is not None for g in grads)
            reached = replace(call, is_output=[hooked_outputs and next(flags) for hooked_outputs in call.is_output])
            detached = {local: p.detach() for local, p in owned.items()}
            try:
                return reached.contributions(detached, kept, self.dtype)
            except (RuntimeError, IndexError) as error:  # it remembers the batch that it was called with
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                said = str(error).partition("\n")[0]
                raise ValueError(
                    f"{self.names[call.module]}: it does not run for one response alone ({said}); use method='loop'"
                ) from error
        args, kwargs = call.arguments
        x = args[0] if args else next(iter(kwargs.values()))
        return rule(call.module, self._by_response(x, call), self._by_response(kept[0], call))

    def _by_response(self, x: Tensor, call: Call) -> Tensor:
        """(N, T, features), or (N, T) for token ids, whatever dimensions lie between."""
        self._check_layout(x, call)
        if not x.is_floating_point():
            return x.reshape(call.num_responses, -1)
        return x.detach().to(self.dtype).reshape(call.num_responses, -1, x.shape[-1])

    def _check_layout(self, x: Tensor, call: Call) -> None:
        """Responses come first, alone or with what follows (tokens, heads) folded into the same dimension."""
        n, length = call.num_responses, call.length
        if n > 1 and x.shape[0] != n and x.shape[0] % (n * length):
            raise ValueError(
                f"{self.names[call.module]}: its input or output of shape {tuple(x.shape)} is not laid out by response "
                f"(first dimension {n} or a multiple of {n * length}); use method='loop'"
            )
