"""The compiled loops over trees: zero-copy views of the tensors, one row after the other.

All operations that round follow the order of :mod:`~torchrl_wm.planners.tree_search.reference`, in single
precision, and sums over actions are taken in double precision, so the trees are bitwise equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_wm.planners.tree_search.tree import (
    CHANCE,
    DECISION,
    NO_CHILD,
    TERMINAL,
    tree_of,
)
from torchrl_wm.programs.arithmetic import (
    LOWEST_LOGIT,
    MINUS_INFINITY,
    ONE,
    TINY,
    ZERO,
    compiled,
    exp,
    inlined,
    maximum,
    minimum,
    reordered,
    softmax,
    total_of,
)
from torchrl_wm.programs.columns import columns
from torchrl_wm.programs.instructions import BLOCK, run

LOWEST_SCORE = np.float32(-1e9)
NOT_FINITE, MINUS_INFINITY_BITS = np.int32(0x7F800000), np.float32(-np.inf).view(np.int32)

NOTHING, FAR = -1, np.int32(2**30)
PARENT, ACTION, VISITS, KIND = range(4)
NODE_VALUE, RAW_VALUE, REWARD, DISCOUNT = range(4)
CHILD, EDGE_VISITS = range(2)
Q_VALUE, PRIOR, LOGIT = range(3)
LOW, HIGH = range(2)
PARENT_AND_SIBLINGS, TREE_WIDE, FIXED_BOUNDS = 0, 1, 2


class TreeArrays(NamedTuple):
    """The memory of a tree, see :func:`~torchrl_wm.planners.tree_search.tree.tree_of`."""

    node_links: np.ndarray
    node_numbers: np.ndarray
    edge_links: np.ndarray
    edge_numbers: np.ndarray
    bounds: np.ndarray


class Progress(NamedTuple):
    """How far each row ``[B]`` is in its schedule, and the evaluated leaf below each action of its root.

    ``levels`` are the logits of the root's actions below the largest, plus their noise, ``[B, A]``.
    """

    simulations: np.ndarray
    considered: np.ndarray
    awaited: np.ndarray
    slots: np.ndarray
    parents: np.ndarray
    edges: np.ndarray
    states: np.ndarray
    levels: np.ndarray

    @classmethod
    def new(cls, rows: int, num_simulations: int, num_actions: int) -> Progress:
        """Of trees that are not planted yet."""
        states = np.empty((rows, num_simulations + 1), np.int64)
        levels = np.empty((rows, num_actions), np.float32)
        leaves = np.empty((3, rows, num_actions), np.int64)
        return cls(*np.empty((3, rows), np.int64), *leaves, states, levels)


class Roots(NamedTuple):
    """Values ``[B]`` and logits ``[B, A]`` of roots."""

    values: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, value: Tensor, logits: Tensor) -> Roots:
        """On the CPU, in single precision."""
        return cls(array_of(value), array_of(logits))


def array_of(tensor: Tensor) -> np.ndarray:
    """On the CPU, in single precision; a view where it is that already."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def new_tree(rows: int, num_simulations: int, num_actions: int) -> tuple[TensorDict, TreeArrays]:
    """A tree on the CPU, in single precision, that is not planted yet, and its memory."""
    shape = rows, num_simulations + 1
    arrays = TreeArrays(
        np.empty((*shape, 4), np.int32),
        np.empty((*shape, 4), np.float32),
        np.empty((*shape, 2, num_actions), np.int32),
        np.empty((*shape, 3, num_actions), np.float32),
        np.empty((2, rows), np.float32),
    )
    return tree_of(*map(torch.from_numpy, arrays)), arrays


# -- growing and backing up --------------------------------------------------------------------------


@inlined
def is_finite(number):
    """By its bits: the compiler assumes that there is no NaN."""
    return np.float32(number).view(np.int32) & NOT_FINITE != NOT_FINITE


@inlined
def is_closed(logit):
    """Whether it is minus infinity."""
    return np.float32(logit).view(np.int32) == MINUS_INFINITY_BITS


@inlined
def is_sound(found, row):
    """Whether ``reward, value, logits, ...`` are finite; all but the first two may be minus infinity."""
    sound = True
    for a in range(found.shape[1]):
        sound &= is_finite(found[row, a]) | (is_closed(found[row, a]) & (a > 1))
    return sound


@inlined
def is_sound_root(roots, row):
    """Whether its numbers are finite, and an action is allowed."""
    sound, allowed = is_finite(roots.values[row]), False
    for a in range(roots.logits.shape[1]):
        logit = roots.logits[row, a]
        sound &= is_finite(logit) | is_closed(logit)
        allowed |= not is_closed(logit)
    return sound & allowed


@inlined
def write_priors(logits, first, rows, priors):
    """The priors of some rows of logits, which begin in column ``first``, see ``masked_priors``.

    One step for all rows after the other: within a row, each waits for the one before.
    """
    begin, end = rows
    num_actions = priors.shape[1]
    for i in range(end - begin):
        highest = LOWEST_LOGIT
        for a in range(num_actions):
            highest = maximum(highest, logits[begin + i, first + a])
        for a in range(num_actions):
            priors[i, a] = logits[begin + i, first + a] - highest
    weights = columns(priors, 0, 0, (end - begin) * num_actions)
    for k in range(weights.shape[0]):
        weight = exp(weights[k])
        weights[k] = weight if weights[k] > MINUS_INFINITY else ZERO
    for i in range(end - begin):
        weights = columns(priors, i, 0, num_actions)
        normaliser = max(np.float32(total_of(weights)), TINY)
        for a in range(num_actions):
            prior = maximum(weights[a] / normaliser, TINY)
            weights[a] = prior if weights[a] > ZERO else ZERO


@inlined
def expand(tree, row, node, parent, action, found, i, constant, priors):
    """Turns row ``i`` of a packed evaluation into a node of its row's tree."""
    num_actions = priors.shape[1]
    kind, discount = np.int32(DECISION), np.float32(constant)
    if found.shape[1] > 2 + num_actions:
        discount, kind = found[i, 2 + num_actions], np.int32(found[i, 3 + num_actions])
    logits = found[i, 2 : 2 + num_actions]
    set_node(tree, row, node, found[i, 1], kind, logits, priors[i])
    tree.node_numbers[row, node, REWARD] = found[i, 0]
    tree.node_numbers[row, node, DISCOUNT] = discount
    tree.node_links[row, node, PARENT] = parent
    tree.node_links[row, node, ACTION] = action
    tree.edge_links[row, parent, CHILD, action] = node


@inlined
def set_node(tree, row, node, value, kind, logits, priors):
    """Sets a node's own statistics."""
    tree.node_numbers[row, node, NODE_VALUE] = value
    tree.node_numbers[row, node, RAW_VALUE] = value
    largest_prior = ZERO
    for a in range(priors.shape[0]):
        tree.edge_numbers[row, node, LOGIT, a] = logits[a]
        tree.edge_numbers[row, node, PRIOR, a] = priors[a]
        largest_prior = maximum(largest_prior, priors[a])
    tree.node_links[row, node, KIND] = kind if largest_prior > ZERO else TERMINAL


@compiled
def plant(tree, roots, rows, priors):
    """Clears the memory of some rows and sets their roots, whose priors are written.

    ``rows`` are the first of them and the one after the last. Returns the row of a root that cannot be
    searched, or -1.
    """
    write_priors(roots.logits, 0, rows, priors)
    for row in range(rows[0], rows[1]):
        if not is_sound_root(roots, row):
            return row
        tree.node_numbers[row], tree.edge_numbers[row] = ZERO, ZERO
        tree.bounds[LOW, row], tree.bounds[HIGH, row] = np.float32(np.inf), MINUS_INFINITY
        for node in range(tree.node_links.shape[1]):
            tree.node_links[row, node, PARENT] = NO_CHILD
            tree.node_links[row, node, ACTION] = NO_CHILD
            tree.node_links[row, node, VISITS] = 0
            tree.node_links[row, node, KIND] = DECISION
            tree.edge_links[row, node, CHILD] = NO_CHILD
            tree.edge_links[row, node, EDGE_VISITS] = 0
        kind, place = np.int32(DECISION), row - rows[0]
        set_node(tree, row, 0, roots.values[row], kind, roots.logits[row], priors[place])
        tree.node_links[row, 0, VISITS] = 1
    return -1


@inlined
def back_up(tree, row, leaf, value):
    """Adds a visit with ``value`` to the leaf and everything above it."""
    tree.node_links[row, leaf, VISITS] += 1
    node = leaf
    parent = tree.node_links[row, node, PARENT]
    while parent != NO_CHILD:
        action = tree.node_links[row, node, ACTION]
        reward = tree.node_numbers[row, node, REWARD]
        discount = tree.node_numbers[row, node, DISCOUNT]
        value = reward + discount * value
        visits = np.float32(tree.node_links[row, parent, VISITS])
        total = tree.node_numbers[row, parent, NODE_VALUE] * visits + value
        tree.node_numbers[row, parent, NODE_VALUE] = total / (visits + ONE)
        tree.node_links[row, parent, VISITS] += 1
        q_value = reward + discount * tree.node_numbers[row, node, NODE_VALUE]
        tree.edge_numbers[row, parent, Q_VALUE, action] = q_value
        tree.edge_links[row, parent, EDGE_VISITS, action] += 1
        tree.bounds[LOW, row] = min(tree.bounds[LOW, row], q_value)
        tree.bounds[HIGH, row] = max(tree.bounds[HIGH, row], q_value)
        node = parent
        parent = tree.node_links[row, node, PARENT]


# -- choosing an edge --------------------------------------------------------------------------------


@inlined
def largest(scores):
    """Index of the largest score, the first of several."""
    highest = MINUS_INFINITY
    for a in range(scores.shape[0]):
        highest = maximum(highest, scores[a])
    best = np.int32(scores.shape[0] - 1)
    for a in range(scores.shape[0]):  # no loop that ends at the first: where is hard to foresee
        best = min(best, np.int32(a) if scores[a] == highest else FAR)
    return best


@inlined
def chance_edge(tree, row, node, scores):
    """Outcomes are visited in proportion to their probability."""
    for a in range(scores.shape[0]):
        prior = tree.edge_numbers[row, node, PRIOR, a]
        score = prior / (np.float32(tree.edge_links[row, node, EDGE_VISITS, a]) + ONE)
        scores[a] = score if prior > ZERO else MINUS_INFINITY
    return largest(scores)


@inlined
def stops(tree, row, child, depth, max_depth):
    """Whether a descent ends at the edge to ``child``, reached at ``depth``."""
    return child == NO_CHILD or depth == max_depth or tree.node_links[row, child, KIND] == TERMINAL


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
        value = tree.node_numbers[row, node, NODE_VALUE]
        low, high = value, value
        for a in range(tree.edge_links.shape[3]):
            q_value = tree.edge_numbers[row, node, Q_VALUE, a]
            q_value = q_value if tree.edge_links[row, node, EDGE_VISITS, a] > 0 else value
            low, high = minimum(low, q_value), maximum(high, q_value)
    return low, high


@inlined
def muzero_edge(tree, row, node, bounds, normalization, scores):
    """The edge with the largest upper confidence bound."""
    low, high = value_range(tree, row, node, normalization)
    span = max(high - low, np.float32(normalization[1]))
    bound = bounds[tree.node_links[row, node, VISITS]]
    for a in range(scores.shape[0]):
        visits = tree.edge_links[row, node, EDGE_VISITS, a]
        prior = tree.edge_numbers[row, node, PRIOR, a]
        value = (tree.edge_numbers[row, node, Q_VALUE, a] - low) / span
        value = value if visits > 0 else ZERO
        score = value + bound * prior / (ONE + np.float32(visits))
        scores[a] = score if prior > ZERO else MINUS_INFINITY
    return largest(scores)


@compiled
def grow_muzero(
    tree, leaves, found, rows, constant, new_node, priors, bounds, normalization, max_depth, scores
):
    """Adds an evaluation of the leaves of rows as ``new_node``, then finds the next ones.

    ``rows`` are the first of them and the one after the last; ``leaves [3, B]`` holds parents, actions
    and where the parents' latents are stored. Without an evaluation (``new_node == 0``) it only finds
    them. Returns the row of a leaf that is not finite, or -1.
    """
    begin, end = rows
    if new_node > 0:
        write_priors(found, 2, (0, end - begin), priors)
    for row in range(begin, end):
        if new_node > 0:
            parent, action = leaves[0, row], leaves[1, row]
            node = tree.edge_links[row, parent, CHILD, action]
            if node == NO_CHILD:
                if not is_sound(found, row - begin):
                    return row
                node = new_node
                expand(tree, row, node, parent, action, found, row - begin, constant, priors)
            back_up(tree, row, node, tree.node_numbers[row, node, RAW_VALUE])
        node, depth = 0, 0
        while True:
            if tree.node_links[row, node, KIND] == CHANCE:
                action = chance_edge(tree, row, node, scores)
            else:
                action = muzero_edge(tree, row, node, bounds, normalization, scores)
            child = tree.edge_links[row, node, CHILD, action]
            depth += 1
            if stops(tree, row, child, depth, max_depth):
                break
            node = child
        leaves[0, row], leaves[1, row] = node, action
        leaves[2, row] = node * leaves.shape[1] + row
    return -1


@compiled
def search_muzero(
    share,
    roots,
    tree,
    leaves,
    network,
    latents,
    found,
    constant,
    priors,
    bounds,
    normalization,
    max_depth,
    scores,
):
    """Plants a share of the rows; all simulations, with the model's instructions in between.

    ``share`` are the first row and the one after the last; ``found [BLOCK, C]`` and ``priors`` are
    scratch. A few rows are searched to the end before the next few, so that their trees stay in the cache.
    Returns the last simulation (0: planting) and the row of what is not finite, or -1.
    """
    rows, nodes = leaves.shape[1], tree.node_links.shape[1]
    for begin in range(share[0], share[1], BLOCK):
        end = min(begin + BLOCK, share[1])
        bad = plant(tree, roots, (begin, end), priors)
        if bad >= 0:
            return 0, bad
        out = found[: end - begin]
        for node in range(nodes):
            bad = grow_muzero(
                tree, leaves, out, (begin, end), constant, node, priors, bounds, normalization,
                max_depth, scores,
            )  # fmt: skip
            if bad >= 0:
                return node, bad
            if node + 1 < nodes:
                index, action = leaves[2, begin:end], leaves[1, begin:end]
                run(network, index, action, latents, (node + 1) * rows + begin, out)
    return nodes - 1, -1


# -- Gumbel ------------------------------------------------------------------------------------------


@reordered
def mixed_value(tree, row, node):
    """The value assumed for unvisited actions."""
    total, weighted, visits = 0.0, 0.0, 0
    for a in range(tree.edge_links.shape[3]):
        edge_visits = tree.edge_links[row, node, EDGE_VISITS, a]
        weight = maximum(tree.edge_numbers[row, node, PRIOR, a], TINY) if edge_visits > 0 else ZERO
        total += np.float64(weight)
        weighted += np.float64(weight) * np.float64(tree.edge_numbers[row, node, Q_VALUE, a])
        visits += edge_visits
    mean = weighted / (total if total > 0.0 else 1.0)
    raw_value = np.float64(tree.node_numbers[row, node, RAW_VALUE])
    return np.float32((raw_value + visits * mean) / (visits + 1))


@inlined
def transformed_q(tree, row, node, transform, out):
    """The values added to the logits; ``transform`` holds scale, visits, two switches and the epsilon."""
    filler = tree.node_numbers[row, node, RAW_VALUE]
    if transform[3]:
        filler = mixed_value(tree, row, node)
    low, high, most = np.float32(np.inf), MINUS_INFINITY, np.int32(0)
    for a in range(out.shape[0]):
        visits = tree.edge_links[row, node, EDGE_VISITS, a]
        completed = tree.edge_numbers[row, node, Q_VALUE, a] if visits > 0 else filler
        low, high, most = minimum(low, completed), maximum(high, completed), max(most, visits)
    scale = (np.float32(most) + np.float32(transform[1])) * np.float32(transform[0])
    span = max(high - low, np.float32(transform[4]))
    if not transform[2]:
        low, span = ZERO, ONE
    for a in range(out.shape[0]):
        visits = tree.edge_links[row, node, EDGE_VISITS, a]
        completed = tree.edge_numbers[row, node, Q_VALUE, a] if visits > 0 else filler
        out[a] = scale * ((completed - low) / span)


@inlined
def gumbel_edge(tree, row, node, transform, scores):
    """The edge whose visits lag most behind the improved policy."""
    transformed_q(tree, row, node, transform, scores)
    total = 1
    for a in range(scores.shape[0]):
        scores[a] = tree.edge_numbers[row, node, LOGIT, a] + scores[a]
        total += tree.edge_links[row, node, EDGE_VISITS, a]
    softmax(scores)
    for a in range(scores.shape[0]):
        visits = np.float32(tree.edge_links[row, node, EDGE_VISITS, a])
        allowed = tree.edge_numbers[row, node, PRIOR, a] > ZERO
        scores[a] = scores[a] - visits / np.float32(total) if allowed else MINUS_INFINITY
    return largest(scores)


@inlined
def gumbel_root_scores(tree, row, considered, levels, transform, scores):
    """Scores of the root's actions that were visited ``considered`` times; others minus infinity."""
    transformed_q(tree, row, 0, transform, scores)
    for a in range(scores.shape[0]):
        score = maximum(levels[row, a] + scores[a], LOWEST_SCORE)
        tried = tree.edge_links[row, 0, EDGE_VISITS, a] == considered
        allowed = tree.edge_numbers[row, 0, PRIOR, a] > ZERO
        scores[a] = score if tried & allowed else MINUS_INFINITY


@inlined
def descend_gumbel(tree, row, action, transform, max_depth, scores):
    """The leaf below an action of the root: its parent and the action that leads to it."""
    node, depth = 0, 1
    child = tree.edge_links[row, 0, CHILD, action]
    while not stops(tree, row, child, depth, max_depth):
        node = child
        if tree.node_links[row, node, KIND] == CHANCE:
            action = chance_edge(tree, row, node, scores)
        else:
            action = gumbel_edge(tree, row, node, transform, scores)
        child = tree.edge_links[row, node, CHILD, action]
        depth += 1
    return node, action


# -- rounds of Gumbel's rule, see rounds.py -----------------------------------------------------------


@compiled
def weigh(found, priors):
    """Writes the priors of evaluated leaves; returns the first leaf that is not finite, or -1."""
    write_priors(found, 2, (0, found.shape[0]), priors)
    for i in range(found.shape[0]):
        if not is_sound(found, i):
            return i
    return -1


@compiled
def begin_rounds(tree, progress, priors, roots, rows, noise, most):
    """Plants some rows, see :func:`plant`; none of them has visits yet.

    A schedule considers ``most`` actions, or as many as are allowed. The latents of roots are stored first.
    """
    bad = plant(tree, roots, rows, priors[rows[0] : rows[1]])
    if bad >= 0:
        return bad
    num_actions = priors.shape[1]
    for row in range(rows[0], rows[1]):
        highest, allowed = MINUS_INFINITY, 0
        for a in range(num_actions):
            logit = roots.logits[row, a]
            highest = maximum(highest, logit)
            allowed += not is_closed(logit)
        for a in range(num_actions):
            progress.levels[row, a] = noise[row, a] + (roots.logits[row, a] - highest)
            progress.slots[row, a] = NOTHING
        progress.simulations[row], progress.awaited[row] = 0, NOTHING
        progress.considered[row] = min(allowed, most)
        progress.states[row] = 0
        progress.states[row, 0] = row
    return -1


@compiled
def advance(
    tree,
    progress,
    ready,
    priors,
    rows,
    schedules,
    transform,
    max_depth,
    constant,
    requests,
    used,
    scratch,
):
    """Visits every evaluated leaf of the rows; then writes the requests and returns their number."""
    scores, below = scratch
    count, total = 0, schedules.shape[1]
    for row in range(rows[0], rows[1]):
        simulation, action = progress.simulations[row], progress.awaited[row]
        schedule = schedules[progress.considered[row]]
        while simulation < total:
            considered = schedule[simulation]
            if action == NOTHING:
                gumbel_root_scores(tree, row, considered, progress.levels, transform, scores)
                action = largest(scores)
            slot = progress.slots[row, action]
            if slot == NOTHING:
                node, count = ask(
                    tree, row, action, progress, transform, max_depth, requests, used, count, below
                )
                if node == NO_CHILD:
                    break
            else:
                node = np.int32(simulation + 1)
                parent, edge = progress.parents[row, action], progress.edges[row, action]
                expand(tree, row, node, parent, edge, ready, slot, constant, priors)
                progress.states[row, node] = slot
                progress.slots[row, action] = NOTHING
            back_up(tree, row, node, tree.node_numbers[row, node, RAW_VALUE])
            simulation, action = simulation + 1, NOTHING
        progress.simulations[row], progress.awaited[row] = simulation, action
        # The rest of the round is guessed from the present scores.
        rest = simulation + 1
        while rest < total and schedule[rest] == considered:
            scores[action] = MINUS_INFINITY
            action = largest(scores)
            if scores[action] == MINUS_INFINITY:
                break
            if progress.slots[row, action] == NOTHING:
                _, count = ask(
                    tree, row, action, progress, transform, max_depth, requests, used, count, below
                )
            rest += 1
    return count


@inlined
def ask(tree, row, action, progress, transform, max_depth, requests, used, count, scores):
    """The leaf below an action of the root; a request for it if it does not exist yet.

    At the greatest depth and at ends of episodes a leaf is visited again: its value is known.
    """
    parent, edge = descend_gumbel(tree, row, action, transform, max_depth, scores)
    node = tree.edge_links[row, parent, CHILD, edge]
    if node == NO_CHILD:
        progress.slots[row, action] = used + count
        progress.parents[row, action], progress.edges[row, action] = parent, edge
        requests[0][count], requests[1][count] = progress.states[row, parent], edge
        count += 1
    return node, count


@compiled
def search_gumbel(
    share,
    roots,
    network,
    latents,
    noise,
    tree,
    progress,
    ready,
    priors,
    schedules,
    transform,
    max_depth,
    constant,
    requests,
    used,
    scratch,
):
    """Plants a share of the rows; all rounds, with the model's instructions in between, a few rows at a time.

    ``share`` are the first row and the one after the last; their states are stored from ``used`` on.
    Returns where the next would be stored (0: planting), and which of those evaluated last, or which
    root, is not finite, or -1.
    """
    for begin in range(share[0], share[1], BLOCK):
        rows = begin, min(begin + BLOCK, share[1])
        bad = begin_rounds(tree, progress, priors, roots, rows, noise, schedules.shape[0] - 1)
        if bad >= 0:
            return 0, bad
        count = 1
        while count > 0:
            count = advance(
                tree, progress, ready, priors, rows, schedules, transform, max_depth, constant,
                requests, used, scratch,
            )  # fmt: skip
            found = ready[used : used + count]
            run(network, requests[0][:count], requests[1][:count], latents, used, found)
            bad = weigh(found, priors[used : used + count])
            if bad >= 0:
                return used, bad
            used += count
    return used, -1
