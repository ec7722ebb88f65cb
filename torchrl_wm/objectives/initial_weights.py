"""Why the parameters of a loss are not initialised a second time."""

from __future__ import annotations

from typing import NoReturn


class InitialWeights:
    """Mixed into a LossModule whose networks have initialisers of their own.

    TorchRL's ``reset_parameters_recursive`` calls torch's ``reset_parameters`` of each layer, which knows
    neither the initialisers of the papers nor the scales of output layers, and passes over parameters that
    belong to no layer of torch, such as those of block cells.
    """

    def reset_parameters_recursive(self) -> NoReturn:
        """Not supported.

        Raises:
            NotImplementedError: always; the message says what to do instead.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not reset its parameters: torch would draw them otherwise than the "
            "networks were initialised, and leave some as they are. Make networks and loss anew, or keep "
            "the first weights, first = copy.deepcopy(loss.state_dict()), and load_state_dict(first)."
        )
