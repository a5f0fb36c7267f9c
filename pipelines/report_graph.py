"""The graph of a run as inline SVG, laid out in layers. Colours are the page's style sheet's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from graftline.pipelines.words import shortened

NODE_WIDTH, NODE_HEIGHT = 160, 50
GAP_BESIDE, GAP_ALONG = 22, 40
MOST_LAYERS_ACROSS = 7
"""Graphs with more layers run down the page instead of across it."""
LEAST_ALIKE = 4
"""Boxes that differ in nothing but their name from which on they are one."""
LARGE = 1500
"""Pixels from which on a graph is not made smaller to fit: the page scrolls."""


Neighbours = dict[str, dict[str, float]]
"""Box or bend → its neighbours in the next layer, with their pull."""


@dataclass(frozen=True)
class Node:
    """A box of the graph: two lines of text, and the style sheet's classes."""

    key: str
    title: str
    note: str = ""
    classes: str = ""
    hint: str = ""
    dots: tuple[str, ...] = ()
    """Classes of dots in its corner: what it reads without an arrow."""
    of: str = ""
    """What it is one of: boxes of one kind with the same arrows are drawn as one (`gathered`)."""


@dataclass(frozen=True)
class Edge:
    """An arrow between two boxes, with a word on it."""

    tail: str
    head: str
    text: str = ""
    classes: str = ""
    pull: float = 1.0
    """How strongly it pulls its ends into one line."""


@dataclass
class Layout:
    """Where every node (and every bend of a long edge) lies: layer, then place in the layer (fractional)."""

    layer: dict[str, int] = field(default_factory=dict)
    place: dict[str, float] = field(default_factory=dict)
    bends: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def layered(keys: Sequence[str], edges: Mapping[tuple[str, str], float]) -> Layout:
    """Sugiyama's layout: longest-path layers, a bend in every layer a long edge crosses, few crossings (means), then
    places as near to the neighbours' as the order allows.

    Args:
        keys: the boxes, each after those that lead to it.
        edges: (tail, head) → how strongly it pulls its ends into one line.
    """
    layout = Layout()
    above: dict[str, list[str]] = {key: [] for key in keys}
    below: dict[str, list[str]] = {key: [] for key in keys}
    for tail, head in edges:
        above[head].append(tail)
        below[tail].append(head)
    for key in keys:
        layout.layer[key] = max((layout.layer[tail] + 1 for tail in above[key]), default=0)
    for key in keys:  # what has no input sits right before its first reader
        if not above[key] and below[key]:
            layout.layer[key] = min(layout.layer[head] for head in below[key]) - 1
    rows: list[list[str]] = [[] for _ in range(max(layout.layer.values(), default=-1) + 1)]
    for key in keys:
        rows[layout.layer[key]].append(key)
    up: Neighbours = {key: {} for key in keys}
    down: Neighbours = {key: {} for key in keys}
    for (tail, head), pull in edges.items():
        chain = [tail]
        for layer in range(layout.layer[tail] + 1, layout.layer[head]):
            bend = f"{tail}>{head}@{layer}"
            layout.layer[bend] = layer
            rows[layer].append(bend)
            up[bend], down[bend] = {}, {}
            chain.append(bend)
        layout.bends[tail, head] = chain[1:]
        chain.append(head)
        for index, (one, two) in enumerate(itertools.pairwise(chain)):
            inner = 0 < index < len(chain) - 2
            down[one][two] = up[two][one] = pull * (3.0 if len(chain) == 2 else 4.0 if inner else 1.0)
    _order(rows, up, down)
    _place(rows, up, down, layout)
    return layout


def _order(rows: list[list[str]], up: Neighbours, down: Neighbours) -> None:
    """Sort each layer by its neighbours' mean position, down and up, keeping the order with the fewest crossings."""

    def crossings() -> int:
        count = 0
        for upper, lower in itertools.pairwise(rows):
            position = {key: index for index, key in enumerate(lower)}
            ends = [end for tail in upper for end in sorted(position[head] for head in down[tail])]
            count += sum(before > after for index, before in enumerate(ends) for after in ends[index + 1 :])
        return count

    best, fewest = [list(row) for row in rows], crossings()
    for sweep in range(12):
        near, order = (up, rows) if sweep % 2 == 0 else (down, rows[::-1])
        for before, row in itertools.pairwise(order):
            position = {key: index for index, key in enumerate(before)}
            means = [
                sum(position[other] for other in near[key]) / len(near[key]) if near[key] else index
                for index, key in enumerate(row)
            ]
            row[:] = [key for _, _, key in sorted(zip(means, range(len(row)), row, strict=True))]
        if (now := crossings()) < fewest:
            best, fewest = [list(row) for row in rows], now
    rows[:] = best


def _place(rows: list[list[str]], up: Neighbours, down: Neighbours, layout: Layout) -> None:
    """Places at least one apart, pulled towards the neighbours'; bends need less room than boxes."""
    bends = {bend for each in layout.bends.values() for bend in each}
    size = {key: 0.3 if key in bends else 1.0 for row in rows for key in row}
    place: dict[str, float] = {}
    for row in rows:
        _spread(row, dict.fromkeys(row, (0.0, 1.0)), size, place)
    for sweep in range(40):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wish = {}
            for key in row:
                near = {**up[key], **down[key]}
                weight = sum(near.values())
                mean = sum(place[other] * pull for other, pull in near.items()) / weight if weight else place[key]
                wish[key] = (mean, weight or 1.0)
            _spread(row, wish, size, place)
    least = min((place[key] - size[key] / 2 for key in place), default=0.0)
    layout.place = {key: value - least for key, value in place.items()}


def _spread(
    row: Sequence[str], wish: Mapping[str, tuple[float, float]], size: Mapping[str, float], place: dict[str, float]
) -> None:
    """Places nearest to the wishes (place, weight) in least squares that keep the order and the distances: pool
    adjacent violators."""
    offset, offsets = 0.0, []
    blocks: list[tuple[float, float, int]] = []  # weighted sum of wishes, weight, members
    for index, key in enumerate(row):
        if index:
            offset += (size[row[index - 1]] + size[key]) / 2
        offsets.append(offset)
        mean, weight = wish[key]
        block = ((mean - offset) * weight, weight, 1)
        while blocks and blocks[-1][0] / blocks[-1][1] > block[0] / block[1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        blocks.append(block)
    index = 0
    for total, weight, count in blocks:
        for _ in range(count):
            place[row[index]] = total / weight + offsets[index]
            index += 1


def gathered(nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[Node], list[Edge]]:
    """Boxes of one kind and state that the same arrows reach and leave, as one box, where they are many: twenty
    adapters side by side."""
    arrows: dict[str, set[tuple[str, str, str]]] = {node.key: set() for node in nodes}
    for edge in edges:
        arrows[edge.tail].add(("to", edge.head, edge.text))
        arrows[edge.head].add(("from", edge.tail, edge.text))
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        own = node.of or node.key
        groups.setdefault((own, node.classes, node.dots, frozenset(arrows[node.key])), []).append(node)
    found, gone = {node.key: node for node in nodes}, set()
    for many in groups.values():
        if len(many) >= LEAST_ALIKE:
            hint = "\n".join(f"{node.title}: {node.note}" for node in many)
            title = f"{len(many)} × {many[0].of.rpartition('.')[2]}"
            found[many[0].key] = replace(many[0], title=title, note=f"{many[0].title}, …", hint=hint)
            gone |= {node.key for node in many[1:]}
    return (
        [found[node.key] for node in nodes if node.key not in gone],
        [edge for edge in edges if edge.tail not in gone and edge.head not in gone],
    )


def graph(nodes: Sequence[Node], edges: Sequence[Edge]) -> Markup:
    """The graph as SVG: across the page while it has few layers, else down it."""
    if not nodes:
        return Markup("")
    nodes, edges = gathered(nodes, edges)
    layout = layered([node.key for node in nodes], {(edge.tail, edge.head): edge.pull for edge in edges})
    across = max(layout.layer.values()) < MOST_LAYERS_ACROSS
    along, beside = (NODE_WIDTH, NODE_HEIGHT) if across else (NODE_HEIGHT, NODE_WIDTH)
    far = {key: layer * (along + GAP_ALONG) + 2 for key, layer in layout.layer.items()}
    side = {key: place * (beside + GAP_BESIDE) for key, place in layout.place.items()}
    least = min(side[node.key] for node in nodes) - beside / 2
    least = min(least, *side.values()) - 6
    side = {key: at - least for key, at in side.items()}
    drawn = [_edge(edge, layout, far, side, along, beside, across, edges) for edge in edges]
    for node in nodes:
        x, y = (far[node.key], side[node.key] - beside / 2) if across else (side[node.key] - beside / 2, far[node.key])
        drawn.append(
            Markup(
                '<g class="node {}"><title>{}</title><rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="9"/>'
                '<rect class="stripe" x="{:.1f}" y="{:.1f}" width="4" height="{}" rx="2"/>'
                '<text class="title" x="{:.1f}" y="{:.1f}">{}</text><text class="note" x="{:.1f}" y="{:.1f}">{}</text>'
                "{}</g>"
            ).format(
                node.classes, node.hint or node.title, x, y, NODE_WIDTH, NODE_HEIGHT, x + 7, y + 9, NODE_HEIGHT - 18,
                x + 18, y + 21, shortened(node.title, 17), x + 18, y + 37, shortened(node.note, 21),
                Markup("").join(
                    Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.6"/>').format(
                        dot, x + NODE_WIDTH - 11 - 10 * index, y + 12
                    )
                    for index, dot in enumerate(node.dots)
                ),
            )
        )  # fmt: skip
    long = max(far.values()) + along + 2
    broad = max([*side.values(), *(side[node.key] + beside / 2 for node in nodes)]) + 6
    width, height = (long, broad) if across else (broad, long)
    return Markup(
        '<svg class="graph{3}" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" role="img" '
        'aria-label="The pipeline as a graph"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0.5 8 4 0 7.5z" class="tip"/></marker></defs>'
        "{2}</svg>"
    ).format(width, height, Markup("").join(drawn), " large" if width > LARGE else "")


def _edge(
    edge: Edge,
    layout: Layout,
    far: Mapping[str, float],
    side: Mapping[str, float],
    along: float,
    beside: float,
    across: bool,
    edges: Sequence[Edge],
) -> Markup:
    """A line that is straight where it passes a layer and curves between layers; lines of one box leave it apart."""

    def port(key: str, siblings: Sequence[tuple[float, str, str]]) -> float:
        order = sorted(siblings)
        index = next(i for i, each in enumerate(order) if each[1:] == (edge.tail, edge.head))
        return side[key] + (index - (len(order) - 1) / 2) * min(12.0, (beside - 24) / len(order))

    def chain(each: Edge) -> list[str]:
        return [each.tail, *layout.bends[each.tail, each.head], each.head]

    leaving = [(side[chain(each)[1]], each.tail, each.head) for each in edges if each.tail == edge.tail]
    coming = [(side[chain(each)[-2]], each.tail, each.head) for each in edges if each.head == edge.head]
    points = [(far[edge.tail] + along, port(edge.tail, leaving))]
    for bend in layout.bends[edge.tail, edge.head]:
        points += [(far[bend], side[bend]), (far[bend] + along, side[bend])]
    points.append((far[edge.head] - 1, port(edge.head, coming)))

    def written(point: tuple[float, float]) -> str:
        x, y = point if across else point[::-1]
        return f"{x:.1f} {y:.1f}"

    path = f"M{written(points[0])}"
    for index, (start, end) in enumerate(itertools.pairwise(points)):
        if index % 2:
            path += f"L{written(end)}"
        else:
            half = (start[0] + end[0]) / 2
            path += f"C{written((half, start[1]))} {written((half, end[1]))} {written(end)}"
    text = Markup("")
    if edge.text:
        x, y = written(((points[0][0] + points[1][0]) / 2, (points[0][1] + points[1][1]) / 2)).split()
        text = Markup('<text class="word" x="{}" y="{}" dy="4">{}</text>').format(x, y, shortened(edge.text, 14))
    return Markup('<path class="edge {}" d="{}" marker-end="url(#tip)"/>{}').format(edge.classes, path, text)
