"""Hand-countable experience: every observation, action and reward is a different number."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict


class Streams:
    """Environments that count, and a log of the records that their experience consists of.

    Observation k of environment e is ``1000 e + k``, the action there 0.5 more, the reward that
    arrives with it 0.25 more, and the belief that the policy notes there its negative.
    """

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        self.log: list[list[dict]] = [[] for _ in range(num_envs)]
        self.count = [0] * num_envs
        self.carried = [None] * num_envs  # (previous action, previous reward) of a running episode

    def batch(self, done, terminated=None) -> TensorDict:
        """Transitions ``[E, T]`` for rows of 0 and 1 that say where episodes end."""
        terminated = done if terminated is None else terminated
        rows = [
            [
                self._step(e, bool(d), bool(d and t))
                for d, t in zip(done[e], terminated[e], strict=True)
            ]
            for e in range(self.num_envs)
        ]
        return torch.stack([torch.stack(row) for row in rows]).contiguous()

    def _step(self, e: int, done: bool, terminated: bool) -> TensorDict:
        previous = self.carried[e]
        own = self._observed(e, previous)
        action = own["observation"] + 0.5
        note = -own["observation"].expand(2).clone()
        self._record(e, own, previous is None, False, False, action, note)
        self.count[e] += 1
        reward = 1000.0 * e + self.count[e] + 0.25
        after = self._observed(e, (action, reward))
        if done:
            self._record(e, after, False, True, terminated, action * 0, note * 0)
            self.count[e] += 1
        self.carried[e] = None if done else (action, reward)
        flags = {"done": done, "terminated": terminated, "truncated": done and not terminated}
        flags = {key: torch.tensor([value]) for key, value in flags.items()}
        return TensorDict(
            {
                **own,
                "is_init": torch.tensor([previous is None]),
                "action": action,
                "belief": note,
                "next": {**after, **flags, "reward": torch.tensor([reward])},
            }
        )

    def _observed(self, e: int, previous) -> dict:
        number = 1000.0 * e + self.count[e]
        action, reward = (torch.zeros(1), 0.0) if previous is None else previous
        return {
            "observation": torch.tensor([number]),
            "camera": {"pixels": torch.full((1, 2, 2), self.count[e] % 256, dtype=torch.uint8)},
            "previous_action": action,
            "previous_reward": torch.tensor([reward]),
        }

    def _record(self, e, observed, is_init, is_last, terminated, action, belief) -> None:
        self.log[e].append(
            {
                "observation": observed["observation"],
                ("camera", "pixels"): observed["camera"]["pixels"],
                "is_init": torch.tensor([is_init]),
                "is_last": torch.tensor([is_last]),
                "terminated": torch.tensor([terminated]),
                "previous_action": observed["previous_action"],
                "reward": observed["previous_reward"],
                "action": action,
                "belief": belief,
            }
        )

    def records(self, e: int) -> TensorDict:
        """All records of an environment so far."""
        return torch.stack([TensorDict({}).update(_nest(record)) for record in self.log[e]])


def _nest(record: dict) -> TensorDict:
    out = TensorDict({})
    for key, value in record.items():
        out.set(key, value)
    return out


@pytest.fixture
def streams():
    return Streams


@pytest.fixture
def assert_same():
    """Every entry of ``expected`` is in ``got``, with equal values and dtypes."""

    def check(got, expected) -> None:
        for key, value in expected.items(True, True):
            torch.testing.assert_close(
                got.get(key), value, rtol=0, atol=0, msg=lambda m, k=key: f"{k}: {m}"
            )

    return check


@pytest.fixture
def random_ends():
    """Random rows of 0 and 1, ``[E][T]``, from a seed."""

    def draw(num_envs: int, steps: int, probability: float, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(num_envs, steps, generator=generator) < probability).long().tolist()

    return draw
