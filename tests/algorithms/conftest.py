"""Recorded draws in place of fresh ones, for the algorithms against the reference codes."""

from __future__ import annotations

import pytest
from torch import nn


class RecordedPolicy:
    """A distribution whose next sample is given; everything else is the wrapped one's."""

    def __init__(self, distribution, draw):
        self.distribution, self.draw = distribution, draw

    def rsample(self):
        return self.draw(self.distribution)


class RecordedActor(nn.Module):
    """Wraps an actor; ``draws``, functions of its distribution, give the samples step by step."""

    def __init__(self, actor, draws):
        super().__init__()
        self.actor, self.draws = actor, iter(draws)

    def raw(self, features):
        return self.actor.raw(features)

    def output(self, raw):
        return RecordedPolicy(self.actor.output(raw), next(self.draws))


class RecordedImagination(nn.Module):
    """Wraps an algorithm's imagination: recorded noise and actions, and the trajectory kept."""

    def __init__(self, imagination):
        super().__init__()
        self.imagination, self.actor = imagination, imagination.actor

    def record(self, noise, draws):
        """``noise [N, H, S]`` of the model, ``draws`` of the actor, one for each of the H steps."""
        self.noise = noise
        self.imagination.actor = RecordedActor(self.actor, draws)

    def forward(self, latents, **options):
        self.trajectory = self.imagination(latents, noise=self.noise, **options)
        return self.trajectory


@pytest.fixture
def recorded():
    """Puts recorded draws into an algorithm: ``recorded(algorithm).record(noise, draws)``."""

    def wrap(algorithm):
        algorithm.imagination = RecordedImagination(algorithm.imagination)
        return algorithm.imagination

    return wrap


@pytest.fixture
def gradients():
    """Follows an algorithm's optimisers: ``{parameter: gradient}``, the first since it was cleared."""

    def follow(algorithm):
        latest = {}

        def keep(optimizer, *_):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None and parameter not in latest:
                        latest[parameter] = parameter.grad.clone()

        for optimizer in algorithm.optimizers.values():
            optimizer.register_step_pre_hook(keep)
        return latest

    return follow
