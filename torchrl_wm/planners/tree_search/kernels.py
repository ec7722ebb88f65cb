"""The compiled loops over trees: zero-copy views of the tensors, one row after the other.

Whatever rounds is written in the order of :mod:`~torchrl_wm.planners.tree_search.reference`, in single
precision, and sums over actions are taken in double precision: the trees are equal to the bit.
Everything that is compiled is in this file, because numba's cache does not see changes in others.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from tensordict import TensorDictBase

from torchrl_wm.planners.tree_search.evaluation import Evaluation
from torchrl_wm.planners.tree_search.exponential import (
    COEFFICIENTS,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOWEST,
)
from torchrl_wm.planners.tree_search.tree import CHANCE, DECISION, NO_CHILD, TERMINAL, memory

# Without NaN and signed zeros in view, loops over actions use vector instructions; results are the same.
compiled = numba.njit(cache=True, error_model="numpy", fastmath={"nnan", "nsz"})
careful = numba.njit(cache=True, error_model="numpy")
inlined = numba.njit(error_model="numpy", fastmath={"nnan", "nsz"}, inline="always")

ZERO, ONE, HALF, TINY = (np.float32(x) for x in (0.0, 1.0, 0.5, np.finfo(np.float32).tiny))
MINUS_INFINITY, LOWEST_ARGUMENT = np.float32(-np.inf), np.float32(LOWEST)
LOWEST_LOGIT = np.float32(np.finfo(np.float32).min)
C0, C1, C2, C3, C4, C5 = COEFFICIENTS
EXPONENT_BIAS, EXPONENT_SHIFT = np.int32(127), np.int32(23)

NOTHING = -1
PARENT, ACTION, VISITS, KIND, CHILD = range(5)
NODE_VALUE, RAW_VALUE, REWARD, DISCOUNT, Q_VALUE = range(5)
LOW, HIGH = range(2)
PARENT_AND_SIBLINGS, TREE_WIDE, FIXED_BOUNDS = 0, 1, 2


class TreeArrays(NamedTuple):
    """The memory of a tree, see :func:`~torchrl_wm.planners.tree_search.tree.memory`.

    ``links`` and ``numbers`` hold four fields of each node, then the fields of its edges; the offsets of
    those that do not come first follow.
    """

    links: np.ndarray
    numbers: np.ndarray
    bounds: np.ndarray
    num_actions: int
    edge_visits: int
    prior: int
    logit: int


class Progress(NamedTuple):
    """How far each row is, and which leaf below each action of its root is evaluated, ``[B, A]``."""

    simulations: np.ndarray
    slots: np.ndarray
    parents: np.ndarray
    edges: np.ndarray
    states: np.ndarray

    @classmethod
    def begin(cls, rows: int, num_simulations: int, num_actions: int) -> Progress:
        """No visits; the latents of the roots are stored first."""
        states = np.zeros((rows, num_simulations + 1), np.int64)
        states[:, 0] = np.arange(rows)
        slots = np.full((rows, num_actions), NOTHING, np.int64)
        return cls(np.zeros(rows, np.int64), slots, slots.copy(), slots.copy(), states)


def tree_arrays(tree: TensorDictBase) -> TreeArrays:
    """Views of a tree on the CPU."""
    edges, count = 4, tree["priors"].shape[-1]
    arrays = (x.numpy() for x in memory(tree))
    return TreeArrays(*arrays, count, edges + count, edges + count, edges + 2 * count)


def evaluation_array(evaluation: Evaluation) -> np.ndarray:
    """View of an evaluation, copied only where it is on another device or of another precision."""
    packed = evaluation.packed
    if packed.device.type != "cpu" or packed.dtype != torch.float32:
        packed = packed.to("cpu", torch.float32)
    return packed.numpy()


# -- growing and backing up --------------------------------------------------------------------------


@careful
def is_sound(found):
    """Whether all of ``reward, value, logits, ...`` are numbers; minus infinity may be among them."""
    sound = np.isfinite(found[0]) and np.isfinite(found[1])
    for x in found:
        sound = sound and x < np.float32(np.inf)
    return sound


@inlined
def exp(x):
    """The polynomial of :mod:`~torchrl_wm.planners.tree_search.exponential`."""
    x = max(x, LOWEST_ARGUMENT)
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN2_HIGH
    r = r - n * LN2_LOW
    series = C0 * r + C1
    series = series * r + C2
    series = series * r + C3
    series = series * r + C4
    series = series * r + C5
    power = np.int32((np.int32(n) + EXPONENT_BIAS) << EXPONENT_SHIFT).view(np.float32)
    return (series * r * r + r + ONE) * power


@inlined
def expand(tree, row, node, parent, action, found, constant):
    """Makes what the model said (a row of a packed evaluation) the node of its row."""
    num_actions = tree.num_actions
    tree.links[row, node, PARENT] = parent
    tree.links[row, node, ACTION] = action
    tree.numbers[row, node, NODE_VALUE] = found[1]
    tree.numbers[row, node, RAW_VALUE] = found[1]
    tree.numbers[row, node, REWARD] = found[0]
    kind, discount = np.int32(DECISION), np.float32(constant)
    if found.shape[0] > 2 + num_actions:
        discount, kind = found[2 + num_actions], np.int32(found[3 + num_actions])
    tree.numbers[row, node, DISCOUNT] = discount
    largest_logit = MINUS_INFINITY
    for a in range(num_actions):
        tree.numbers[row, node, tree.logit + a] = found[2 + a]
        largest_logit = max(largest_logit, found[2 + a])
    tree.links[row, node, KIND] = TERMINAL if largest_logit == MINUS_INFINITY else kind
    tree.links[row, parent, CHILD + action] = node
    total, lowest = 0.0, max(largest_logit, LOWEST_LOGIT)
    for a in range(num_actions):
        weight = exp(found[2 + a] - lowest) if found[2 + a] > MINUS_INFINITY else ZERO
        tree.numbers[row, node, tree.prior + a] = weight
        total += np.float64(weight)
    normaliser = max(np.float32(total), TINY)
    for a in range(num_actions):
        prior = max(tree.numbers[row, node, tree.prior + a] / normaliser, TINY)
        tree.numbers[row, node, tree.prior + a] = prior if found[2 + a] > MINUS_INFINITY else ZERO


@inlined
def back_up(tree, row, leaf, value):
    """Adds a visit with ``value`` to the leaf and everything above it."""
    tree.links[row, leaf, VISITS] += 1
    node = leaf
    parent = tree.links[row, node, PARENT]
    while parent != NO_CHILD:
        action = tree.links[row, node, ACTION]
        reward, discount = tree.numbers[row, node, REWARD], tree.numbers[row, node, DISCOUNT]
        value = reward + discount * value
        visits = np.float32(tree.links[row, parent, VISITS])
        total = tree.numbers[row, parent, NODE_VALUE] * visits + value
        tree.numbers[row, parent, NODE_VALUE] = total / (visits + ONE)
        tree.links[row, parent, VISITS] += 1
        q_value = reward + discount * tree.numbers[row, node, NODE_VALUE]
        tree.numbers[row, parent, Q_VALUE + action] = q_value
        tree.links[row, parent, tree.edge_visits + action] += 1
        tree.bounds[LOW, row] = min(tree.bounds[LOW, row], q_value)
        tree.bounds[HIGH, row] = max(tree.bounds[HIGH, row], q_value)
        node = parent
        parent = tree.links[row, node, PARENT]


# -- choosing an edge --------------------------------------------------------------------------------


@inlined
def largest(tree, row, node, scores):
    """Index of the largest score of an allowed action, the first of several."""
    best, best_score = 0, MINUS_INFINITY
    for a in range(scores.shape[0]):
        if tree.numbers[row, node, tree.prior + a] > ZERO and scores[a] > best_score:
            best, best_score = a, scores[a]
    return best


@inlined
def chance_edge(tree, row, node, scores):
    """Outcomes are visited in proportion to their probability."""
    for a in range(scores.shape[0]):
        visits = np.float32(tree.links[row, node, tree.edge_visits + a])
        scores[a] = tree.numbers[row, node, tree.prior + a] / (visits + ONE)
    return largest(tree, row, node, scores)


@inlined
def stops(tree, row, child, depth, max_depth):
    """Whether a descent ends at the edge to ``child``, reached at ``depth``."""
    return child == NO_CHILD or depth == max_depth or tree.links[row, child, KIND] == TERMINAL


# -- MuZero ------------------------------------------------------------------------------------------


@inlined
def value_range(tree, row, node, normalization):
    """The range of values by which those of a node are normalised."""
    where, low, high = normalization[0], np.float32(normalization[2]), np.float32(normalization[3])
    if where == TREE_WIDE:
        if tree.bounds[LOW, row] <= tree.bounds[HIGH, row]:
            low, high = tree.bounds[LOW, row], tree.bounds[HIGH, row]
        else:
            low, high = ZERO, ZERO
    elif where == PARENT_AND_SIBLINGS:
        value = tree.numbers[row, node, NODE_VALUE]
        low, high = value, value
        for a in range(tree.num_actions):
            q_value = tree.numbers[row, node, Q_VALUE + a]
            q_value = q_value if tree.links[row, node, tree.edge_visits + a] > 0 else value
            low, high = min(low, q_value), max(high, q_value)
    return low, high


@inlined
def muzero_edge(tree, row, node, bounds, normalization, scores):
    """The edge with the largest upper confidence bound."""
    low, high = value_range(tree, row, node, normalization)
    span = max(high - low, np.float32(normalization[1]))
    bound = bounds[tree.links[row, node, VISITS]]
    for a in range(scores.shape[0]):
        edge_visits = tree.links[row, node, tree.edge_visits + a]
        value = (tree.numbers[row, node, Q_VALUE + a] - low) / span
        value = value if edge_visits > 0 else ZERO
        explore = bound * tree.numbers[row, node, tree.prior + a]
        scores[a] = value + explore / (ONE + np.float32(edge_visits))
    return largest(tree, row, node, scores)


@compiled
def grow_muzero(tree, leaves, found, constant, new_node, bounds, normalization, max_depth, scores):
    """Adds an evaluation of all leaves as ``new_node``, then finds the next ones.

    ``leaves [3, B]`` holds parents, actions and where the parents' latents are stored. Without an
    evaluation (``new_node == 0``) it only finds them. Returns the row of a leaf that is not finite, or
    -1.
    """
    rows = leaves.shape[1]
    for row in range(rows):
        if new_node > 0:
            parent, action = leaves[0, row], leaves[1, row]
            node = tree.links[row, parent, CHILD + action]
            if node == NO_CHILD:
                if not is_sound(found[row]):
                    return row
                node = new_node
                expand(tree, row, node, parent, action, found[row], constant)
            back_up(tree, row, node, tree.numbers[row, node, RAW_VALUE])
        node, depth = 0, 0
        while True:
            if tree.links[row, node, KIND] == CHANCE:
                action = chance_edge(tree, row, node, scores)
            else:
                action = muzero_edge(tree, row, node, bounds, normalization, scores)
            child = tree.links[row, node, CHILD + action]
            depth += 1
            if stops(tree, row, child, depth, max_depth):
                break
            node = child
        leaves[0, row], leaves[1, row], leaves[2, row] = node, action, node * rows + row
    return -1


# -- Gumbel ------------------------------------------------------------------------------------------


@inlined
def mixed_value(tree, row, node):
    """The worth of actions not yet visited."""
    total, weighted, visits = 0.0, 0.0, 0
    for a in range(tree.num_actions):
        edge_visits = tree.links[row, node, tree.edge_visits + a]
        weight = (
            np.float64(max(tree.numbers[row, node, tree.prior + a], TINY))
            if edge_visits > 0
            else 0.0
        )
        total += weight
        weighted += weight * np.float64(tree.numbers[row, node, Q_VALUE + a])
        visits += edge_visits
    mean = weighted / (total if total > 0.0 else 1.0)
    return np.float32(
        (np.float64(tree.numbers[row, node, RAW_VALUE]) + visits * mean) / (visits + 1)
    )


@inlined
def transformed_q(tree, row, node, transform, out):
    """What is added to the logits; ``transform`` holds scale, visits, two switches and the epsilon."""
    filler = mixed_value(tree, row, node) if transform[3] else tree.numbers[row, node, RAW_VALUE]
    low, high = np.float32(np.inf), MINUS_INFINITY
    most = np.int32(0)
    for a in range(out.shape[0]):
        edge_visits = tree.links[row, node, tree.edge_visits + a]
        completed = tree.numbers[row, node, Q_VALUE + a] if edge_visits > 0 else filler
        out[a] = completed
        low, high, most = min(low, completed), max(high, completed), max(most, edge_visits)
    scale = (np.float32(most) + np.float32(transform[1])) * np.float32(transform[0])
    if transform[2]:
        span = max(high - low, np.float32(transform[4]))
        for a in range(out.shape[0]):
            out[a] = (out[a] - low) / span
    for a in range(out.shape[0]):
        out[a] = scale * out[a]


@inlined
def gumbel_edge(tree, row, node, transform, scores):
    """The edge whose visits lag most behind the improved policy."""
    transformed_q(tree, row, node, transform, scores)
    largest_logit, visits = MINUS_INFINITY, 0
    for a in range(scores.shape[0]):
        scores[a] = tree.numbers[row, node, tree.logit + a] + scores[a]
        largest_logit = max(largest_logit, scores[a])
        visits += tree.links[row, node, tree.edge_visits + a]
    total = 0.0
    for a in range(scores.shape[0]):
        weight = exp(scores[a] - largest_logit)
        weight = weight if tree.numbers[row, node, tree.prior + a] > ZERO else ZERO
        scores[a] = weight
        total += np.float64(weight)
    normaliser = max(np.float32(total), TINY)
    for a in range(scores.shape[0]):
        share = np.float32(tree.links[row, node, tree.edge_visits + a]) / np.float32(1 + visits)
        scores[a] = scores[a] / normaliser - share
    return largest(tree, row, node, scores)


@compiled
def gumbel_root_scores(tree, row, considered, noise, transform, scores):
    """Scores of the root's actions that were visited ``considered`` times; others minus infinity."""
    transformed_q(tree, row, 0, transform, scores)
    largest_logit = MINUS_INFINITY
    for a in range(scores.shape[0]):
        largest_logit = max(largest_logit, tree.numbers[row, 0, tree.logit + a])
    for a in range(scores.shape[0]):
        logit = noise[row, a] + (tree.numbers[row, 0, tree.logit + a] - largest_logit)
        score = max(logit + scores[a], np.float32(-1e9))
        scores[a] = (
            score if tree.links[row, 0, tree.edge_visits + a] == considered else MINUS_INFINITY
        )


@compiled
def descend_gumbel(tree, row, action, transform, max_depth, scores):
    """The leaf below an action of the root: its parent and the action that leads to it."""
    node, depth = 0, 1
    child = tree.links[row, 0, CHILD + action]
    while not stops(tree, row, child, depth, max_depth):
        node = child
        if tree.links[row, node, KIND] == CHANCE:
            action = chance_edge(tree, row, node, scores)
        else:
            action = gumbel_edge(tree, row, node, transform, scores)
        child = tree.links[row, node, CHILD + action]
        depth += 1
    return node, action


# -- rounds of Gumbel's rule, see rounds.py -----------------------------------------------------------


@careful
def first_unsound(found):
    """The first leaf of an evaluation that is not finite, or -1."""
    for i in range(found.shape[0]):
        if not is_sound(found[i]):
            return i
    return -1


@compiled
def advance(
    tree, progress, ready, schedule, noise, transform, max_depth, constant, requests, used, scratch
):
    """Visits all that is ready; then writes the requests and returns their number."""
    count, total = 0, schedule.shape[1]
    for row in range(schedule.shape[0]):
        simulation = progress.simulations[row]
        while simulation < total:
            considered = schedule[row, simulation]
            gumbel_root_scores(tree, row, considered, noise, transform, scratch[0])
            action = largest(tree, row, 0, scratch[0])
            if not visit(
                tree,
                row,
                action,
                simulation,
                progress,
                ready,
                constant,
                transform,
                max_depth,
                scratch,
            ):
                break
            simulation += 1
        progress.simulations[row] = simulation
        if simulation < total:
            left = 1
            while simulation + left < total and schedule[row, simulation + left] == considered:
                left += 1
            count = request(
                tree, row, left, progress, transform, max_depth, requests, used, count, scratch
            )
    return count


@inlined
def visit(tree, row, action, simulation, progress, ready, constant, transform, max_depth, scratch):
    """One visit of an action of the root, if nothing has to be evaluated for it."""
    slot = progress.slots[row, action]
    if slot == NOTHING:
        # At the greatest depth and at ends of episodes a leaf is visited again: its value is known.
        parent, edge = descend_gumbel(tree, row, action, transform, max_depth, scratch[1])
        node = tree.links[row, parent, CHILD + edge]
        if node == NO_CHILD:
            return False
    else:
        node = simulation + 1
        parent, edge = progress.parents[row, action], progress.edges[row, action]
        expand(tree, row, node, parent, edge, ready[slot], constant)
        progress.states[row, node] = slot
        progress.slots[row, action] = NOTHING
    back_up(tree, row, node, tree.numbers[row, node, RAW_VALUE])
    return True


@inlined
def request(tree, row, left, progress, transform, max_depth, requests, used, count, scratch):
    """Asks for the leaves of the ``left`` best actions of the round; their scores are in ``scratch``."""
    for _ in range(left):
        action = largest(tree, row, 0, scratch[0])
        if scratch[0, action] == MINUS_INFINITY:
            break
        scratch[0, action] = MINUS_INFINITY
        if progress.slots[row, action] == NOTHING:
            parent, edge = descend_gumbel(tree, row, action, transform, max_depth, scratch[1])
            if tree.links[row, parent, CHILD + edge] == NO_CHILD:
                progress.slots[row, action] = used + count
                progress.parents[row, action], progress.edges[row, action] = parent, edge
                requests[0][count], requests[1][count] = progress.states[row, parent], edge
                count += 1
    return count
