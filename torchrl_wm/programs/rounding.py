"""Instructions whose matrix products round their numbers to bfloat16."""

from __future__ import annotations

import numpy as np

from torchrl_wm.programs.instructions import FIELDS, Code, Network
from torchrl_wm.programs.products import PANEL

_SHALLOWEST = 16  # numbers in a sum for which rounding them first takes less time than it saves


def in_pairs(network: Network) -> tuple[Network, np.ndarray]:
    """The network with products of pairs, and how to pack these, for :func:`~.bfloat16.pack`.

    Both kinds of weights are kept; those of pairs follow. Sums of few numbers, or of an odd number of
    them, stay in single precision.

    Examples:
        >>> weights, scratch = np.zeros(33 * 16, np.float32), np.zeros((32, 48), np.float32)
        >>> product = np.array([[Code.LINEAR, 0, 16, 16, 0, 0, 32]])
        >>> network, layout = in_pairs(Network(product, weights, scratch, 0, np.zeros(0, np.float32)))
        >>> [Code(line[0]).name for line in network.code], layout.tolist()
        (['ROUND_PAIRS', 'LINEAR_OF_PAIRS'], [[0, 528, 1, 16]])
    """
    memory, room = network.weights.size, network.scratch.shape[1]
    code, layout, rounded = [], [], {}
    for line in network.code.tolist():
        kind, target, width, source, offset, relu, depth = line
        if kind == Code.LINEAR and depth % 2 == 0 and depth >= _SHALLOWEST:
            half = depth // 2
            if (source, depth) not in rounded:
                rounded[source, depth] = room
                code.append([Code.ROUND_PAIRS, room, half, source, 0, 1, 0])
                room += -(-half // PANEL) * PANEL  # whole chunks are written
            pairs = rounded[source, depth]
            line = [Code.LINEAR_OF_PAIRS, target, width, pairs, memory, relu, half]
            layout.append([offset, memory, width // PANEL, half])
            memory += width * (half + 1)
        code.append(line)
        rounded = {
            columns: pairs for columns, pairs in rounded.items() if not _writes(line, *columns)
        }
    network = network._replace(
        code=np.array(code, np.int64).reshape(-1, FIELDS),
        weights=np.zeros(memory, np.float32),
        scratch=np.zeros((len(network.scratch), room + PANEL), np.float32),  # and read
    )
    return network, np.array(layout, np.int64).reshape(-1, 4)


def _writes(line: list[int], source: int, depth: int) -> bool:
    """Whether an instruction may change these columns."""
    kind, target, width = line[:3]
    return (
        kind not in (Code.STORE, Code.ADD_OUTER)
        and target < source + depth
        and source < target + width
    )
