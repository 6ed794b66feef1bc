"""Mazes: shortest paths and how many there are, what an answer must be, generation.

A maze is [width * width] int8 of the tokens below, its border all wall, so that no cell needs to
know where it stands. Everything random comes from a counter-based stream, so that a maze is a
function of (seed, index) alone.
"""

from __future__ import annotations

import numpy as np

from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.stream import draw, stream

WALL, OPEN, START, GOAL, PATH = range(5)
FAR = -1  # a distance where no path leads
LOOPS = 6  # at most so many walls are taken out of a tree
STRAIGHT = 4  # one in so many times a tree grows elsewhere than at its newest cell


@kernel
def flood(maze, width, start, limit, distance, ways):
    """Tell how far every cell is from one, and on how many shortest paths.

    Args:
        maze: [cells], whose walls nothing leads through.
        limit: what ways are counted up to.
        distance, ways: out. [cells] int64
    """
    distance[:], ways[:] = FAR, 0
    queue = np.empty(maze.size, np.int64)
    queue[0], distance[start], ways[start] = start, 0, 1
    first, last = 0, 1
    while first < last:
        cell = queue[first]
        first += 1
        for step in (-width, -1, 1, width):
            other = cell + step
            if maze[other] == WALL:
                continue
            if distance[other] == FAR:
                distance[other] = distance[cell] + 1
                queue[last] = other
                last += 1
            if distance[other] == distance[cell] + 1:
                ways[other] = min(limit, ways[other] + ways[cell])


@kernel
def _find(maze, token):
    for cell in range(maze.size):
        if maze[cell] == token:
            return cell
    return -1


@kernel
def paths(maze, width, limit):
    """Count the shortest paths from start to goal, up to ``limit``."""
    distance, ways = np.empty(maze.size, np.int64), np.empty(maze.size, np.int64)
    flood(maze, width, _find(maze, START), limit, distance, ways)
    return ways[_find(maze, GOAL)]


@kernel
def holds(mazes, answers, width, right):
    """Tell whether answers mark one shortest path each and are their maze otherwise.

    Marked cells are the path if the goal is as far through them alone as it is through all, and
    there are no more of them than that takes.

    Args:
        mazes, answers: [N, cells] int8
        right: out. [N] bool
    """
    cells = mazes.shape[1]
    distance, ways = np.empty(cells, np.int64), np.empty(cells, np.int64)
    marked = np.empty(cells, np.int8)
    for i in range(len(mazes)):
        maze, answer, count = mazes[i], answers[i], 0
        right[i] = True
        for cell in range(cells):
            on = maze[cell] == OPEN and answer[cell] == PATH
            right[i] &= on or maze[cell] == answer[cell]
            marked[cell] = WALL if maze[cell] == OPEN and not on else maze[cell]
            count += on
        start, goal = _find(maze, START), _find(maze, GOAL)
        for through in (maze, marked):
            if right[i]:
                flood(through, width, start, 1, distance, ways)
                right[i] = distance[goal] == count + 1


@kernel
def _open_sides(maze, width, cell):
    sides = 0
    for step in (-width, -1, 1, width):
        sides += maze[cell + step] != WALL
    return sides


@kernel
def _touched(maze, width, cell):
    """Count the open sides of a wall inside the border; 0 for any other cell."""
    row, column = cell // width, cell % width
    inside = 0 < row < width - 1 and 0 < column < width - 1
    return _open_sides(maze, width, cell) if inside and maze[cell] == WALL else 0


@kernel
def _grow(maze, width, state):
    """Make a random tree of open cells: each is opened where it touches one open cell alone."""
    maze[:] = WALL
    inner = width - 2
    growing, sides = np.empty(maze.size, np.int64), np.empty(5, np.int64)
    growing[0] = (1 + draw(state, inner)) * width + 1 + draw(state, inner)
    maze[growing[0]] = OPEN
    count = 1
    while count:
        at = draw(state, count) if draw(state, STRAIGHT) == 0 else count - 1
        free = 0
        for step in (-width, -1, 1, width):
            other = growing[at] + step
            sides[free] = other
            free += _touched(maze, width, other) == 1
        if free:
            growing[count] = sides[draw(state, free)]
            maze[growing[count]] = OPEN
            count += 1
        else:
            count -= 1
            growing[at] = growing[count]


@kernel
def _open_walls(maze, width, state):
    """Take out some walls between two open cells, so that there are loops; return how many."""
    walls, opened = np.empty(maze.size, np.int64), 0
    for _ in range(1 + draw(state, LOOPS)):
        count = 0
        for cell in range(maze.size):
            walls[count] = cell
            count += _touched(maze, width, cell) == 2 and maze[cell - 1] == maze[cell + 1]
        if count:
            maze[walls[draw(state, count)]] = OPEN
            opened += 1
    return opened


@kernel
def _mark(answer, width, distance, goal):
    """Mark the only shortest path back from the goal; return how often one can leave it."""
    cell, exits = goal, 0
    while distance[cell] > 0:
        exits += _open_sides(answer, width, cell) - (1 if cell == goal else 2)
        for step in (-width, -1, 1, width):
            if distance[cell + step] == distance[cell] - 1 and answer[cell + step] != WALL:
                cell += step
                break
        if distance[cell] > 0:
            answer[cell] = PATH
    return exits + _open_sides(answer, width, cell) - 1


@kernel
def generate(seed, first, width, least, mazes, answers, difficulty):
    """Make mazes with one shortest path: number ``first`` and those after it.

    Args:
        least: steps of the path.
        mazes, answers: out. [count, cells] int8
        difficulty: out, steps of the path and ways to leave it, added. [count] int64
    """
    cells = width * width
    distance, ways = np.empty(cells, np.int64), np.empty(cells, np.int64)
    goals, opened = np.empty(cells, np.int64), np.empty(cells, np.int64)
    for i in range(len(mazes)):
        state, maze = stream(seed, first + i), mazes[i]
        count = 0
        while count == 0:
            _grow(maze, width, state)
            if _open_walls(maze, width, state) == 0:
                continue
            total = 0
            for cell in range(cells):
                opened[total] = cell
                total += maze[cell] == OPEN
            start = opened[draw(state, total)]
            flood(maze, width, start, 2, distance, ways)
            for cell in opened[:total]:
                goals[count] = cell
                count += distance[cell] >= least and ways[cell] == 1
        goal = goals[draw(state, count)]
        maze[start], maze[goal] = START, GOAL
        answers[i] = maze
        exits = _mark(answers[i], width, distance, goal)
        difficulty[i] = distance[goal] + exits
