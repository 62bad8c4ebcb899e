"""Shortest paths, through graphs and through mazes: any shortest one is right. Unlimited, seeded, exactly graded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import pairwise
from random import Random
from string import ascii_uppercase
from typing import ClassVar, Final, NamedTuple, TypeAlias, TypeVar

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score, Verdict
from longthought.tasks.grading import grade_reply
from longthought.tasks.settings import check_format_weight, check_languages
from longthought.tasks.splits import problem_random, proposals, split_of
from longthought.verifiers import path

PROMPTS: Final = {
    "en": (
        "an undirected graph has these edges , each with its length : {edges} . find a shortest path from {start} to "
        "{goal} . answer with its nodes from {start} to {goal} , separated by spaces ."
    ),
    "zh": (
        "一个无向图有这些边，每条边后面是它的长度：{edges} 。求从 {start} 到 {goal} 的一条最短路径。"
        "答案写出从 {start} 到 {goal} 依次经过的顶点，用空格隔开。"
    ),
}
MAZE_PROMPTS: Final = {
    "en": (
        "a maze , rows from top to bottom separated by / , where # is a wall and . is free : {grid} . "
        "find a shortest way from S to G , one field up , down , left or right at a time . "
        "answer with the moves U D L R , separated by spaces ."
    ),
    "zh": (
        "一个迷宫，各行从上到下用 / 隔开，# 是墙，. 是空地：{grid} 。"
        "求从 S 到 G 的一条最短路线，每步向上、下、左、右走一格。"
        "答案写出每一步，上 U 、下 D 、左 L 、右 R ，用空格隔开。"
    ),
}

Edges: TypeAlias = dict[tuple[str, str], int]
Place = TypeVar("Place", str, tuple[int, int])

_MOVES: Final = {(-1, 0): "U", (1, 0): "D", (0, -1): "L", (0, 1): "R"}


class _Graph(NamedTuple):
    """Edges, each in the one direction in which it is written, and where to go."""

    edges: Edges
    start: str
    goal: str

    @property
    def walks(self) -> Edges:
        """Edges in both directions."""
        return self.edges | {(b, a): length for (a, b), length in self.edges.items()}

    @property
    def neighbours(self) -> dict[str, list[tuple[str, int]]]:
        """Of every node: where an edge leads, and its length."""
        found: dict[str, list[tuple[str, int]]] = {}
        for (a, b), length in self.walks.items():
            found.setdefault(a, []).append((b, length))
        return found

    @property
    def canonical(self) -> str:
        """The same for graphs that differ by names, order and direction alone.

        Nodes are coloured by the colours of their neighbours, again and again. Other graphs may look the same.
        """
        neighbours = self.neighbours
        colours = {node: "end" if node in (self.start, self.goal) else "" for node in neighbours}
        for _ in range(4):
            near = {node: sorted(f"{colours[b]}.{length}" for b, length in found) for node, found in neighbours.items()}
            colours = {node: _digest(" ".join((colours[node], *near[node]))) for node in neighbours}
        return " ".join(sorted(colours.values()))


@dataclass(frozen=True)
class Paths:
    """Connected undirected graphs of ``nodes`` nodes and ``edges`` edges of length 1..``heaviest``.

    A shortest path has at least ``hops`` edges. Where ``heaviest`` is more than 1, no path with the fewest edges is a
    shortest one, so that lengths must be added up. Splits are disjoint by graph and ends up to names, whatever the seed
    and the level. Languages alternate with the index. The reward is ``accuracy + format_weight · format``.

    Example: ``Paths().problem("train", 0).messages[0].content`` is like ``"… : A-B 3 , B-C 1 , … . find a shortest path
    from A to F . …"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings allow too few problems.
    """

    nodes: int = 8
    edges: int = 12
    heaviest: int = 9
    hops: int = 2
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 4 <= self.nodes <= 26:
            raise SettingsError(f"paths: nodes is {self.nodes}; choose 4 to 26")
        if not self.nodes <= self.edges <= self.nodes * (self.nodes - 1) // 2:
            raise SettingsError(f"paths: edges is {self.edges}; choose at least the nodes, and no more than all pairs")
        if not 1 <= self.heaviest <= 1000:
            raise SettingsError(f"paths: heaviest is {self.heaviest}; choose 1 to 1000")
        if not 2 <= self.hops < self.nodes:
            raise SettingsError(f"paths: hops is {self.hops}; choose 2 or more, and less than the nodes")
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Paths:
        """Presets from easy (1) to hard (6): 6 to 20 nodes; edges have length 1 at levels 1 and 2."""
        presets = ((6, 8, 1, 2), (9, 12, 1, 3), (8, 12, 9, 2), (10, 16, 9, 3), (14, 24, 20, 4), (20, 36, 50, 5))
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"paths: level is {number}; choose 1 to {cls.levels}")
        return cls(*presets[number - 1])

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "paths"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        graph = next(proposals(split, lambda: self._graph(draw), self._split_of))
        way = _shortest(graph.neighbours, graph.start, graph.goal)
        language = self.languages[index % len(self.languages)]
        shown = " , ".join(f"{a}-{b} {length}" for (a, b), length in graph.edges.items())
        content = PROMPTS[language].format(edges=shown, start=graph.start, goal=graph.goal)
        return Problem(
            id=f"{self.name}/{_digest(shown)}/{graph.start}{graph.goal}/{language}",
            messages=(Message("user", content),),
            answer=" ".join(way),
            info={
                "edges": shown,
                "ends": f"{graph.start} {graph.goal}",
                "shortest": str(_length(graph, way)),
                "language": language,
            },
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply: any shortest path is right. Raises ``DataError`` when the problem is not of this task."""
        graph = _graph_of(problem)
        shortest = _whole(problem, "shortest")

        def verify(answer: str) -> Verdict:
            return path.nodes(answer, graph.walks, (graph.start, graph.goal), shortest)

        return [grade_reply(reply, verify, self.format_weight) for reply in replies]

    def solve(self, problem: Problem) -> str:
        """A shortest path. Raises ``DataError`` when the problem is not one of this task."""
        graph = _graph_of(problem)
        return " ".join(_shortest(graph.neighbours, graph.start, graph.goal))

    def _split_of(self, graph: _Graph) -> str:
        return split_of(self.name, graph.canonical) if self._is_hard(graph) else ""

    def _is_hard(self, graph: _Graph) -> bool:
        """Whether shortest paths have enough edges, and are not found by counting edges."""
        neighbours = graph.neighbours
        hop = len(neighbours) * self.heaviest  # a hop outweighs all lengths
        fewest = {node: [(b, hop + length) for b, length in found] for node, found in neighbours.items()}
        shortest = {node: [(b, length * hop + 1) for b, length in found] for node, found in neighbours.items()}
        best = _shortest(shortest, graph.start, graph.goal)  # of the shortest, one with the fewest edges
        least = _shortest(fewest, graph.start, graph.goal)  # of those with the fewest edges, a shortest one
        return len(best) > self.hops and (self.heaviest == 1 or _length(graph, least) > _length(graph, best))

    def _graph(self, draw: Random) -> _Graph:
        names = draw.sample(ascii_uppercase[: self.nodes], self.nodes)
        pairs = [(draw.choice(names[:place]), names[place]) for place in range(1, self.nodes)]
        joined = {frozenset(pair) for pair in pairs}
        while len(pairs) < self.edges:
            pair = draw.sample(names, 2)
            if frozenset(pair) not in joined:
                joined.add(frozenset(pair))
                pairs.append((pair[0], pair[1]))
        draw.shuffle(pairs)
        start, goal = draw.sample(names, 2)
        return _Graph({pair: draw.randint(1, self.heaviest) for pair in pairs}, start, goal)


class _Maze(NamedTuple):
    """Rows of ``#``, ``.``, and one ``S`` and ``G`` each."""

    rows: tuple[str, ...]

    @property
    def neighbours(self) -> dict[tuple[int, int], list[tuple[tuple[int, int], int]]]:
        """Of every free field: the free fields beside it, each at distance 1."""
        free = {(r, c) for r, row in enumerate(self.rows) for c, field in enumerate(row) if field != "#"}
        return {(r, c): [(n, 1) for dr, dc in _MOVES if (n := (r + dr, c + dc)) in free] for r, c in free}

    def place(self, field: str) -> tuple[int, int]:
        return next((r, row.index(field)) for r, row in enumerate(self.rows) if field in row)

    @property
    def way(self) -> list[tuple[int, int]]:
        """A shortest way from S to G; empty where there is none."""
        return _shortest(self.neighbours, self.place("S"), self.place("G"))

    @property
    def canonical(self) -> str:
        """The same for a maze turned, mirrored or walked the other way."""
        return min(" ".join(rows).replace("G", "S") for rows in _symmetric(self.rows))


@dataclass(frozen=True)
class Mazes:
    """Mazes of ``rows`` by ``columns`` fields, a share ``walls`` of them walls.

    The shortest way has at least ``least`` moves and is longer than it would be without walls. Splits are disjoint by
    maze up to turning and mirroring, whatever the seed and the level. Languages alternate with the index. The reward is
    ``accuracy + format_weight · format``.

    Example: ``Mazes().problem("train", 0).messages[0].content`` is like ``"… : S . # . / # . # . / … find a shortest
    way from S to G …"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings allow too few problems.
    """

    rows: int = 5
    columns: int = 5
    least: int = 6
    walls: float = 0.35
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not (3 <= self.rows <= 40 and 3 <= self.columns <= 40):
            raise SettingsError(f"mazes: rows and columns are {self.rows} and {self.columns}; choose 3 to 40")
        if not 1 <= self.least <= self.rows * self.columns // 2:
            raise SettingsError(f"mazes: least is {self.least}; choose 1 to half the number of fields")
        if not 0.1 <= self.walls <= 0.6:
            raise SettingsError(f"mazes: walls is {self.walls}; choose 0.1 to 0.6")
        check_languages(self.name, self.languages, MAZE_PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Mazes:
        """Presets from easy (1) to hard (6): 4 by 4 to 14 by 14 fields, ways of at least 4 to 24 moves."""
        presets = ((4, 4, 4), (5, 5, 6), (6, 6, 8), (8, 8, 12), (10, 10, 16), (14, 14, 24))
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"mazes: level is {number}; choose 1 to {cls.levels}")
        return cls(*presets[number - 1])

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "mazes"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        maze = next(proposals(split, lambda: self._maze(draw), self._split_of))
        language = self.languages[index % len(self.languages)]
        way = maze.way
        shown = " / ".join(" ".join(row) for row in maze.rows)
        return Problem(
            id=f"{self.name}/{self.rows}x{self.columns}/{_digest(shown)}/{language}",
            messages=(Message("user", MAZE_PROMPTS[language].format(grid=shown)),),
            answer=_moves(way),
            info={"grid": " ".join(maze.rows), "shortest": str(len(way) - 1), "language": language},
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply: any shortest way is right. Raises ``DataError`` when the problem is not of this task."""
        maze, shortest = _maze_of(problem), _whole(problem, "shortest")

        def verify(answer: str) -> Verdict:
            return path.moves(answer, maze.rows, shortest)

        return [grade_reply(reply, verify, self.format_weight) for reply in replies]

    def solve(self, problem: Problem) -> str:
        """A shortest way. Raises ``DataError`` when the problem is not one of this task."""
        return _moves(_maze_of(problem).way)

    def _split_of(self, maze: _Maze) -> str:
        (a, b), (c, d) = maze.place("S"), maze.place("G")
        moves = len(maze.way) - 1
        is_hard = moves >= self.least and moves > abs(a - c) + abs(b - d)
        return split_of(self.name, maze.canonical) if is_hard else ""

    def _maze(self, draw: Random) -> _Maze:
        fields = ["#" if draw.random() < self.walls else "." for _ in range(self.rows * self.columns)]
        start, goal = draw.sample(range(len(fields)), 2)
        fields[start], fields[goal] = "S", "G"
        return _Maze(tuple("".join(fields[at : at + self.columns]) for at in range(0, len(fields), self.columns)))


def _shortest(neighbours: Mapping[Place, Sequence[tuple[Place, int]]], start: Place, goal: Place) -> list[Place]:
    """A shortest path (Dijkstra), both ends included; empty where there is none."""
    pending, before = [(0, start, start)], dict[Place, Place]()
    while pending:
        length, node, origin = heappop(pending)
        if node in before:
            continue
        before[node] = origin
        if node == goal:
            return list(_traced(before, goal))[::-1]
        for other, step in neighbours[node]:
            if other not in before:
                heappush(pending, (length + step, other, node))
    return []


def _traced(before: Mapping[Place, Place], node: Place) -> Iterator[Place]:
    yield node
    while before[node] != node:
        node = before[node]
        yield node


def _length(graph: _Graph, way: Sequence[str]) -> int:
    walks = graph.walks
    return sum(walks[step] for step in pairwise(way))


def _moves(way: Sequence[tuple[int, int]]) -> str:
    return " ".join(_MOVES[c - a, d - b] for (a, b), (c, d) in pairwise(way))


def _symmetric(rows: Sequence[str]) -> Iterator[list[str]]:
    """A grid turned and mirrored in all eight ways."""
    turned = list(rows)
    for _ in range(4):
        turned = ["".join(column) for column in zip(*turned[::-1])]
        yield turned
        yield turned[::-1]


def _graph_of(problem: Problem) -> _Graph:
    try:
        edges = {}
        for edge in problem.info["edges"].split(" , "):
            pair, length = edge.split()
            a, b = pair.split("-")
            edges[a, b] = int(length)
        start, goal = problem.info["ends"].split()
    except (KeyError, ValueError) as error:
        raise DataError(f"problem {problem.id!r} is no graph with two ends") from error
    return _Graph(edges, start, goal)


def _maze_of(problem: Problem) -> _Maze:
    rows = tuple(problem.info.get("grid", "").split())
    if len({len(row) for row in rows}) != 1 or any("".join(rows).count(field) != 1 for field in "SG"):
        raise DataError(f"problem {problem.id!r} is no maze with one S and one G")
    return _Maze(rows)


def _whole(problem: Problem, field: str) -> int:
    try:
        return int(problem.info[field])
    except (KeyError, ValueError) as error:
        raise DataError(f"problem {problem.id!r}: its {field} is missing or no integer") from error


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
