"""Twins that read nothing but the prompt: it says all that is needed, there is one answer, and it is the stored one."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise, permutations, product
from random import Random

import pytest

from longthought.core.types import Problem
from longthought.tasks.chains import Chains
from longthought.tasks.circuits import Circuits, _Circuit
from longthought.tasks.knights import FORMS, Knights, _Puzzle
from longthought.tasks.paths import Mazes, Paths, _Graph, _Maze
from longthought.tasks.permutations import Permutations
from longthought.tasks.squares import Squares
from longthought.tasks.sudoku import Sudoku, _canonical, solutions

Levels = pytest.mark.parametrize("level", range(1, 7))


def drawn(kind: type, level: int, count: int) -> Iterator[tuple[Problem, str]]:
    for split, index in product(("train", "test"), range(count)):
        problem = kind.level(level).problem(split, index)
        (message,) = problem.messages
        yield problem, message.content


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


@Levels
def test_chains(level: int) -> None:
    for problem, prompt in drawn(Chains, level, 30):
        start, *steps = numbers(prompt)
        ends = []
        for x in {start, start + 1}:
            for factor, summand, modulus in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
                x = (factor * x + summand) % modulus
            ends.append(x)
        assert problem.answer in map(str, ends)
        assert ends[0] != ends[1], "the start does not matter"


@Levels
def test_squares(level: int) -> None:
    for problem, prompt in drawn(Squares, level, 50):
        start, summand, modulus, steps = numbers(prompt)
        x, seen = start, [start]
        for _ in range(steps):
            x = divmod(x * x + summand, modulus)[1]
            seen.append(x)
        assert str(x) == problem.answer
        assert max(Counter(seen).values()) == 1, "a cycle is a shortcut"
        assert summand % modulus not in (0, modulus - 2)
        assert steps == Squares.level(level).steps


@Levels
def test_permutations(level: int) -> None:
    for problem, prompt in drawn(Permutations, level, 50):
        shown = [dict(enumerate(numbers(line), 1)) for line in re.findall(r"p\d+ = ([\d ]+)", prompt)]
        assert all(sorted(p) == sorted(p.values()) and p != {i: i for i in p} for p in shown)
        names = re.search(r"(?:product|乘积) ((?:p\d+ )+)", prompt)
        assert names
        assert names[1].split() == [f"p{place}" for place in range(1, len(shown) + 1)]
        asked = re.search(r"image of (\d+) under|。(\d+) 在它之下", prompt)
        elements = [int(asked[1] or asked[2])] if asked else list(shown[0])
        left_first = "leftmost" in prompt or "最左边" in prompt
        assert left_first != ("rightmost" in prompt or "最右边" in prompt)
        found = []
        for order in (shown, shown[::-1]) if left_first else (shown[::-1], shown):
            product_of_all = {i: i for i in shown[0]}
            for permutation in order:
                product_of_all = {i: permutation[j] for i, j in product_of_all.items()}
            found.append(" ".join(str(product_of_all[i]) for i in elements))
        assert found[0] == problem.answer
        assert found[1] != problem.answer, "the convention does not matter"


GATES: dict[str, Callable[..., bool]] = {
    "and": lambda a, b: a and b,
    "与": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "或": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
    "异或": lambda a, b: a != b,
    "nand": lambda a, b: not (a and b),
    "与非": lambda a, b: not (a and b),
}


def circuit_outputs(prompt: str, flipped: str = "") -> str:
    value = {name: (bit == "1") != (name == flipped) for name, bit in re.findall(r"(x\d+) = ([01])", prompt)}
    for name, formula in re.findall(r"(g\d+) = ([^;.。]+?) ?(?=[;.。])", prompt):
        match formula.split():
            case ["not" | "非", a]:
                value[name] = not value[a]
            case [a, gate, b]:
                value[name] = GATES[gate](value[a], value[b])
    asked = re.search(r"((?:g\d+ )+)(?:\?|是多少)", prompt)
    assert asked
    return "".join("01"[value[name]] for name in asked[1].split())


@Levels
def test_circuits(level: int) -> None:
    for problem, prompt in drawn(Circuits, level, 20):
        outputs = circuit_outputs(prompt)
        assert outputs == problem.answer
        others = [circuit_outputs(prompt, name) for name in re.findall(r"(x\d+) = ", prompt)]
        for place, bit in enumerate(outputs):
            assert any(other[place] != bit for other in others), "an output that no input changes"
        assert len(re.findall(r"g\d+ = ", prompt)) == Circuits.level(level).width * Circuits.level(level).depth


def test_the_kind_of_a_gate_does_not_tell_its_output() -> None:
    ones: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    bits: Counter[str] = Counter()
    for index in range(0, 2000, 2):
        problem = Circuits.level(2).problem("train", index)
        last = problem.info["gates"].split(" ; ")[-4:]
        for line, bit in zip(last, problem.answer, strict=True):
            (kind,) = set(line.split()) & {"and", "or", "xor", "nand", "not"}
            seen[kind] += 1
            ones[kind] += bit == "1"
            bits[bit] += 1
    assert abs(bits["1"] / bits.total() - 0.5) < 0.04
    for kind, count in seen.items():
        assert count > 500
        assert abs(ones[kind] / count - 0.5) < 0.1, kind


def holds(statement: str, roles: dict[str, bool]) -> bool:
    """Whether a statement, in English or Chinese, is true; knights are True."""
    if match := re.fullmatch(r"(exactly|at least) (\d) of us (?:is|are) (knight|knave)s?", statement):
        count = sum(role == (match[3] == "knight") for role in roles.values())
        return count == int(match[2]) if match[1] == "exactly" else count >= int(match[2])
    if match := re.fullmatch(r"我们当中(恰|至少)有(\d)个(骑士|无赖)", statement):
        count = sum(role == (match[3] == "骑士") for role in roles.values())
        return count == int(match[2]) if match[1] == "恰" else count >= int(match[2])
    forms: list[tuple[str, Callable[[bool, bool], bool]]] = [
        (r"either (.*) or (.*) , but not both|‘(.*)’和‘(.*)’恰有一句对", lambda a, b: a != b),
        (r"if (.*) , then (.*)|如果(.*)，那么(.*)", lambda a, b: b or not a),
        (r"(.*) if and only if (.*)|(.*)，当且仅当(.*)", lambda a, b: a == b),
        (r"(.*) or (.*) , or both|(.*)，或者(.*)，或者两者都对", lambda a, b: a or b),
        (r"(.*) and (.*)|(.*)，并且(.*)", lambda a, b: a and b),
    ]
    for pattern, joined in forms:
        if match := re.fullmatch(pattern, statement):
            first, second = (part for part in match.groups() if part)
            return joined(holds(first, roles), holds(second, roles))
    match = re.fullmatch(r"(\w+) is a (knight|knave)|(\w+?)是(骑士|无赖)", statement)
    assert match, statement
    return roles[match[1] or match[3]] == ((match[2] or match[4]) in ("knight", "骑士"))


def puzzle_solutions(prompt: str) -> list[dict[str, bool]]:
    said = re.findall(r'(\w+) says : " (.*?) \. "', prompt)
    if not said:
        said = re.findall(r"(\w+)说：“(.*?)。”", prompt)
    spoken = [(name, re.sub(r"\bI am\b", f"{name} is", text).replace("我是", f"{name}是")) for name, text in said]
    names = [name for name, _ in spoken]
    assignments = (dict(zip(names, bits, strict=True)) for bits in product((False, True), repeat=len(names)))
    return [roles for roles in assignments if all(holds(text, roles) == roles[name] for name, text in spoken)]


@Levels
def test_knights(level: int) -> None:
    for problem, prompt in drawn(Knights, level, 40 if level < 5 else 10):
        (roles,) = puzzle_solutions(prompt)
        words = {"en": ("knave", "knight"), "zh": ("无赖", "骑士")}[problem.info["language"]]
        told = dict(re.findall(r"(\w+)(?:: |：)(\w+)", problem.answer))
        assert told == {name: words[role] for name, role in roles.items()}
        assert len(roles) == Knights.level(level).people


def test_every_form_and_role_comes_up() -> None:
    problems = [Knights().problem("train", index) for index in range(400)]
    said = Counter(statement.split()[0] for p in problems for statement in p.info["statements"].split(" ; "))
    assert set(said) == set(FORMS)
    assert min(said.values()) > 50
    assert abs("".join(p.info["roles"] for p in problems).count("+") / 1200 - 0.5) < 0.07


def graph_of(prompt: str) -> tuple[dict[frozenset[str], int], str, str]:
    edges = {frozenset(pair): int(length) for *pair, length in re.findall(r"([A-Z])-([A-Z]) (\d+)", prompt)}
    ends = re.search(r"path from ([A-Z]) to ([A-Z])|从 ([A-Z]) 到 ([A-Z]) 的", prompt)
    assert ends
    start, goal = (end for end in ends.groups() if end)
    return edges, start, goal


def measure(path: list[str], edges: dict[frozenset[str], int]) -> int:
    return sum(edges[frozenset(step)] for step in pairwise(path))


@Levels
def test_paths(level: int) -> None:
    """All distances by Floyd and Warshall, of (length, edges) and of (edges, length)."""
    for problem, prompt in drawn(Paths, level, 30 if level < 5 else 5):
        edges, start, goal = graph_of(prompt)
        nodes = set().union(*edges)
        best, fewest = {}, {}
        for a, b in product(nodes, nodes):
            length = 0 if a == b else edges.get(frozenset((a, b)), 10**6)
            hop = 0 if a == b else (1 if frozenset((a, b)) in edges else 10**6)
            best[a, b], fewest[a, b] = (length, hop), (hop, length)
        for table in (best, fewest):
            for via, a, b in product(nodes, nodes, nodes):
                through = tuple(map(sum, zip(table[a, via], table[via, b], strict=True)))
                table[a, b] = min(table[a, b], through)
        path = problem.answer.split()
        assert (path[0], path[-1]) == (start, goal)
        assert measure(path, edges) == best[start, goal][0] == int(problem.info["shortest"])
        task = Paths.level(level)
        assert best[start, goal][1] >= task.hops
        assert len(edges) == task.edges
        assert max(length for length, _ in best.values()) < 10**6, "the graph is connected"
        if task.heaviest > 1:
            assert fewest[start, goal][1] > best[start, goal][0], "counting edges is enough"


def test_every_shortest_path_is_right_and_no_other_one() -> None:
    for problem, prompt in drawn(Paths, 1, 15):
        edges, start, goal = graph_of(prompt)
        inner = sorted(set().union(*edges) - {start, goal})
        paths = [[start, *some, goal] for size in range(len(inner) + 1) for some in permutations(inner, size)]
        whole = [p for p in paths if all(frozenset(step) in edges for step in pairwise(p))]
        shortest = min(measure(p, edges) for p in whole)
        replies = [f"<think> a </think> <answer> {' '.join(p)} </answer>" for p in paths]
        right = [p for p, score in zip(paths, Paths.level(1).grade(problem, replies), strict=True) if score.correct]
        assert right == [p for p in whole if measure(p, edges) == shortest]
        assert right


@Levels
def test_mazes(level: int) -> None:
    """Waves from S."""
    for problem, prompt in drawn(Mazes, level, 15 if level < 5 else 4):
        shown = re.search(r"((?:[.#SG] )+(?:/ (?:[.#SG] ?)+)+)", prompt)
        assert shown
        rows = [row.split() for row in shown[1].split("/")]
        field = {complex(r, c): f for r, row in enumerate(rows) for c, f in enumerate(row)}
        (start,), (goal,) = ([at for at, f in field.items() if f == end] for end in "SG")
        wave, waves = {start}, 0
        while goal not in wave:
            wave = {at + step for at in wave for step in (1, -1, 1j, -1j) if field.get(at + step, "#") != "#"}
            waves += 1
        way = start + sum({"U": -1, "D": 1, "L": -1j, "R": 1j}[move] for move in problem.answer.split())
        assert way == goal
        assert len(problem.answer.split()) == waves == int(problem.info["shortest"])
        assert waves >= Mazes.level(level).least
        assert waves > abs((goal - start).real) + abs((goal - start).imag)


def covers(rows: dict[tuple[int, int, int], list[tuple[str, int, int]]], wanted: dict, chosen: tuple = ()) -> Iterator:
    """Knuth's algorithm X: sets of rows that hold every wanted column once."""
    if not wanted:
        yield chosen
        return
    column = min(wanted, key=lambda c: len(wanted[c]))
    for row in sorted(wanted[column]):
        left = {c: r for c, r in wanted.items() if c not in rows[row]}
        clashing = {other for c in rows[row] if c in wanted for other in wanted[c]}
        yield from covers(rows, {c: r - clashing for c, r in left.items()}, (*chosen, row))


def fillings(lines: list[str], height: int, width: int) -> list[str]:
    """The first two ways to fill a sudoku."""
    size = len(lines)
    rows, wanted = {}, {}
    for r, c, digit in product(range(size), range(size), range(1, size + 1)):
        if lines[r][c] in (".", str(digit)):
            box = r // height * height + c // width
            rows[r, c, digit] = [("field", r, c), ("row", r, digit), ("column", c, digit), ("box", box, digit)]
    for row, columns in rows.items():
        for column in columns:
            wanted.setdefault(column, set()).add(row)
    found = []
    for cover in covers(rows, wanted):
        digits = {(r, c): str(digit) for r, c, digit in cover}
        found.append(" / ".join(" ".join(digits[r, c] for c in range(size)) for r in range(size)))
        if len(found) == 2:
            break
    return found


@Levels
def test_sudoku(level: int) -> None:
    task = Sudoku.level(level)
    for problem, prompt in drawn(Sudoku, level, 20 if level < 5 else 2):
        shown = re.search(r"((?:[.1-9] )+(?:/ (?:[.1-9] ?)+)+)", prompt)
        assert shown
        lines = ["".join(line.split()) for line in shown[1].split("/")]
        box = re.search(r"(\d) rows and (\d) columns|(\d) 行 (\d) 列", prompt)
        assert box
        height, width = (int(side) for side in box.groups() if side)
        assert fillings(lines, height, width) == [problem.answer]
        clues = sum(field != "." for line in lines for field in line)
        assert clues >= task.clues
        if clues > task.clues:  # then none can be spared
            for r, c in product(range(task.size), repeat=2):
                if lines[r][c] != ".":
                    less = [line if at != r else f"{line[:c]}.{line[c + 1 :]}" for at, line in enumerate(lines)]
                    assert len(fillings(less, height, width)) == 2


def test_all_small_sudoku_are_found() -> None:
    found = list(solutions((0,) * 16))
    assert len(found) == len(set(found)) == 288
    assert list(solutions((1, 1, *(0,) * 14))) == []


def test_splits_do_not_see_names_and_order() -> None:
    """What a problem's split hangs on stays when the problem is told in another way."""
    draw = Random(0)
    for _ in range(20):
        puzzle = Knights.level(5)._puzzle(draw)
        order = draw.sample(range(6), 6)
        moved = [puzzle.statements[0]] * 6
        for person, (form, *parts) in enumerate(puzzle.statements):
            if form not in ("exactly", "least"):
                parts = [f"{order[int(part[:-1])]}{part[-1]}" for part in parts]
            moved[order[person]] = (form, *parts)
        assert _Puzzle(tuple(moved)).canonical == puzzle.canonical

        graph = Paths.level(4)._graph(draw)
        name = dict(zip("ABCDEFGHIJ", draw.sample("ABCDEFGHIJ", 10), strict=True))
        edges = [((name[b], name[a]), length) for (a, b), length in graph.edges.items()]
        renamed = _Graph(dict(draw.sample(edges, len(edges))), name[graph.goal], name[graph.start])
        assert renamed.canonical == graph.canonical

        maze = Mazes.level(3)._maze(draw)
        assert _Maze(tuple("".join(column) for column in zip(*maze.rows, strict=True))).canonical == maze.canonical
        assert _Maze(maze.rows[::-1]).canonical == maze.canonical

        grid = next(solutions((0,) * 36, draw))
        digit = (0, *draw.sample(range(1, 7), 6))
        assert _canonical(tuple(digit[d] for d in grid)[::-1]) == _canonical(grid)

        circuit = Circuits.level(3)._circuit(draw)
        first, *rest = circuit.layers
        turned = [gate._replace(sources=gate.sources[::-1]) for gate in first]
        assert _Circuit(circuit.inputs, (tuple(turned), *rest)).canonical == circuit.canonical


def test_canonical_forms_tell_problems_apart() -> None:
    draw = Random(1)
    for kind, make in (
        (Knights, lambda: Knights.level(4)._puzzle(draw)),
        (Paths, lambda: Paths.level(4)._graph(draw)),
        (Mazes, lambda: Mazes.level(3)._maze(draw)),
        (Circuits, lambda: Circuits.level(3)._circuit(draw)),
    ):
        assert len({make().canonical for _ in range(200)}) == 200, kind
