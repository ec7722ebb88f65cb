"""World models for TorchRL.

==================  ===========================================================================
``world_models``    models that filter observations and predict latents: RSSM, identity, MuZero
``algorithms``      PlaNet, Dreamer v1, v2 and v3, MuZero, each assembled from the other parts
``objectives``      losses of world models, actors and critics, as TorchRL LossModules
``planners``        CEM, iCEM, MPPI and a batched tree search
``policies``        policies for TorchRL collectors, which filter with a world model and act
``data``            a replay of step records, sequence and prioritised sampling, targets
``envs``            gymnasium, dm_control, Atari, board games; a world model as an environment
``modules``         networks, recurrent cells, stochastic latents, encoders, decoders, heads
``functional``      equations on plain tensors
``training``        the loop, evaluation, checkpoints and logs
``keys``            the names of TensorDict entries
==================  ===========================================================================
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_PARTS = (
    "algorithms",
    "data",
    "envs",
    "functional",
    "keys",
    "modules",
    "objectives",
    "planners",
    "policies",
    "training",
    "world_models",
)


def __getattr__(name: str) -> ModuleType:
    """Imports a part when it is first asked for."""
    if name in _PARTS:
        return import_module(f"torchrl_wm.{name}")
    raise AttributeError(f"torchrl_wm has no {name!r}; its parts are {', '.join(_PARTS)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS})
