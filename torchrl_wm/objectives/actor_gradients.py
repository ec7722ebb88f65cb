"""How an imagined return trains an actor: through the dynamics, by REINFORCE, or by both."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution


class ThroughDynamics(nn.Module):
    """The return itself, differentiated through the world model (Dreamer v1, arXiv:1912.01603)."""

    through_dynamics = True

    def forward(
        self, policy: Distribution, action: Tensor, target: Tensor, advantage: Tensor
    ) -> Tensor:
        """The objective ``[...]`` to maximise, from ``target [..., 1]``.

        Raises:
            ValueError: where the return has no graph, since the actor would not be trained.
        """
        if not target.requires_grad:
            raise ValueError(
                "The actor is trained through the dynamics, but the imagined return has no gradient: "
                "imagine with through_dynamics=True, or use Reinforce()."
            )
        return target.squeeze(-1)


class Reinforce(nn.Module):
    """Log-probability of the imagined action times its advantage (Williams, 1992)."""

    through_dynamics = False

    def forward(
        self, policy: Distribution, action: Tensor, target: Tensor, advantage: Tensor
    ) -> Tensor:
        """The objective ``[...]`` to maximise, from ``action [..., A]`` and ``advantage [..., 1]``."""
        return policy.log_prob(action.detach()) * advantage.detach().squeeze(-1)


class Mixed(nn.Module):
    """A share through the dynamics, the rest by REINFORCE (Dreamer v2, arXiv:2010.02193).

    Args:
        share (float): weight of the gradient through the dynamics, between 0 and 1.

    Raises:
        ValueError: for a share outside [0, 1]; when called, where the return has no graph.
    """

    through_dynamics = True

    def __init__(self, share: float):
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} must lie between 0 and 1.")
        self.share = share
        self.dynamics, self.reinforce = ThroughDynamics(), Reinforce()

    def forward(
        self, policy: Distribution, action: Tensor, target: Tensor, advantage: Tensor
    ) -> Tensor:
        """The objective ``[...]`` to maximise, from the arguments of both gradients.

        Raises:
            ValueError: where the return has no graph.
        """
        inputs = (policy, action, target, advantage)
        return self.share * self.dynamics(*inputs) + (1 - self.share) * self.reinforce(*inputs)


ActorGradient = ThroughDynamics | Reinforce | Mixed


def make_actor_gradient(name: str, mix: float = 0.1) -> ActorGradient:
    """The gradient called ``"dynamics"``, ``"reinforce"`` or ``"mixed"`` (with the share ``mix``).

    Raises:
        ValueError: for an unknown name; the message lists the valid ones. Or for a ``mix`` outside [0, 1].

    Examples:
        >>> make_actor_gradient("reinforce")
        Reinforce()
    """
    if name == "mixed":
        return Mixed(mix)
    gradients = {"dynamics": ThroughDynamics, "reinforce": Reinforce}
    if name not in gradients:
        raise ValueError(
            f"Unknown actor_gradient {name!r}; expected one of {sorted([*gradients, 'mixed'])}."
        )
    return gradients[name]()
