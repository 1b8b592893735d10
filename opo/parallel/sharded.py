"""FSDP2: weights, gradients and optimizer state are cut over the ranks; each layer is gathered while it is used.

Gradients are summed, not averaged, since token weights carry the scale of the whole batch. What samples and what is saved is a whole
copy (`ShardedPolicy.whole`), brought up to date by all ranks together.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from opo.batch import Rollouts
from opo.model.forward import Microbatch
from opo.model.logprobs import Head
from opo.model.policy import Policy, TokenScores


def gathered(tensor: Any) -> Tensor:
    """The whole of a tensor; all ranks have to ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(whole: Tensor, parameter: Any) -> Any:
    """A whole tensor, cut as the parameter is."""
    if not isinstance(parameter, DTensor) or whole.dim() == 0:
        return whole
    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)


@dataclass(frozen=True)
class ShardedPolicy(Policy):
    """A policy whose model is cut over the ranks, with a whole copy of it for sampling and for checkpoints."""

    copy: Any = None

    def parts(self, rollouts: Rollouts, prompts: list[int]) -> Iterator[Microbatch]:
        """As many micro-batches on every rank, since all gather the weights for each; the last ones may be idle."""
        own = list(super().parts(rollouts, prompts))
        idle = Microbatch([0], torch.tensor([0]), torch.tensor([0]), idle=True)
        return iter(own + [idle] * (self.world.most(len(own)) - len(own)))

    def scores(
        self, rollouts: Rollouts, part: Microbatch, *, entropy_grad: bool = False, energy: bool = False
    ) -> TokenScores:
        """See `Policy.scores`; run as a forward of the root, which gathers the weights.

        The root keeps what it gathered for the backward pass, and gives its whole weights as parameters until then; without one they
        are cut again here, so that a batch without a gradient leaves the parameters as they are.
        """
        scores = TokenScores(*self.causal_lm.opo_scores(self, rollouts, part, entropy_grad, energy))
        if not torch.is_grad_enabled():
            self.causal_lm.reshard()
        return scores

    def add_gradients(self) -> None:
        """Summed already, where each layer's gradient was cut."""

    @torch.no_grad()
    def whole(self) -> Any:
        """The copy with the weights of this moment; all ranks have to ask for it together."""
        for own, cut in zip(self.copy.parameters(), self.model.parameters(), strict=True):
            own.copy_(gathered(cut))
        return self.copy

    @torch.no_grad()
    def take(self, model: Any) -> None:
        """The weights of a whole model of the same shape."""
        for cut, own in zip(self.model.parameters(), model.parameters(), strict=True):
            cut.copy_(cut_like(own.detach(), cut))


def shard(policy: Policy) -> ShardedPolicy:
    """Cut the policy's model over the ranks of its world, layer by layer and then the rest."""
    whole, model, head = copy.deepcopy(policy.model).requires_grad_(False), policy.causal_lm, policy.head
    policy.__dict__.pop("head")  # its weight would keep the file of all weights in memory
    scale, softcap = head.scale, head.softcap
    del head
    mesh = init_device_mesh(model.device.type, (policy.world.size,))
    for layer in _layers(policy):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):  # reaches one module each, not those below it
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no product with a factor before its sum

    def opo_scores(self: Any, asked: Policy, rollouts: Rollouts, part: Microbatch, grad: bool, energy: bool) -> Any:
        out = self.get_output_embeddings()
        asked.__dict__["head"] = Head(out.weight, out.bias, scale, softcap)  # the whole weight of this moment
        scores = Policy.scores(asked, rollouts, part, entropy_grad=grad, energy=energy)
        return scores.logprobs_MT, scores.entropies_MT, scores.energies_MT, scores.mask_MT

    model.opo_scores = MethodType(opo_scores, model)
    register_fsdp_forward_method(model, "opo_scores")
    return ShardedPolicy(**{f.name: getattr(policy, f.name) for f in fields(Policy)}, copy=whole)


def _layers(policy: Policy) -> list[nn.Module]:
    """The decoder's list of layers, the longest one that it has."""
    lists = [m for m in policy.decoder.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []
