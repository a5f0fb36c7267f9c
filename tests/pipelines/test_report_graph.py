"""The drawn graph: layers follow the arrows, boxes do not overlap, chains are straight, texts are escaped."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.pipelines.report_graph import NODE_HEIGHT, NODE_WIDTH, Edge, Node, gathered, graph, layered

BOX = re.compile(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="(\d+)" height="(\d+)" rx="9"/>')


def boxes(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y, _, _ in BOX.findall(svg)]


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[str], dict[tuple[str, str], float]]:
    keys = [f"k{index}" for index in range(draw(st.integers(1, 12)))]
    pairs = list(itertools.combinations(keys, 2))
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=20)) if pairs else []
    return keys, dict.fromkeys(chosen, 1.0)


@settings(max_examples=60, deadline=None)
@given(dags())
def test_arrows_lead_to_later_layers_and_nothing_overlaps(dag):
    keys, edges = dag
    layout = layered(keys, edges)
    assert all(layout.layer[tail] < layout.layer[head] for tail, head in edges)
    for (tail, head), bends in layout.bends.items():
        assert [layout.layer[bend] for bend in bends] == list(range(layout.layer[tail] + 1, layout.layer[head]))
    svg = graph([Node(key, key) for key in keys], [Edge(*edge) for edge in edges])
    places = boxes(svg)
    assert len(places) == len(keys)
    for (x, y), (u, v) in itertools.combinations(places, 2):
        assert abs(x - u) >= NODE_WIDTH - 0.2 or abs(y - v) >= NODE_HEIGHT - 0.2
    _, _, width, height = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
    assert all(x >= 0 and y >= 0 and x + NODE_WIDTH <= width and y + NODE_HEIGHT <= height for x, y in places)


def test_a_chain_is_straight_although_a_model_feeds_all_of_it():
    keys = ["model", "a", "b", "c", "d"]
    chain = {("a", "b"): 1.0, ("b", "c"): 1.0, ("c", "d"): 1.0}
    layout = layered(keys, chain | {("model", key): 0.1 for key in ("b", "c", "d")})
    places = [layout.place[key] for key in ("a", "b", "c", "d")]
    assert max(places) - min(places) < 0.3


def test_crossings_are_removed():
    layout = layered(["a", "b", "x", "y"], {("a", "y"): 1.0, ("b", "x"): 1.0})
    assert (layout.place["a"] < layout.place["b"]) == (layout.place["y"] < layout.place["x"])


def test_texts_are_escaped_and_shortened():
    svg = graph(
        [Node("a", "<script>1</script>", "n" * 60, hint='"</title><b>'), Node("b", "b")],
        [Edge("a", "b", "<i>part</i>")],
    )
    assert "<script" not in svg and "<i>" not in svg and "<b>" not in svg
    ElementTree.fromstring(svg)
    assert "n" * 30 not in svg and "…" in svg


def test_no_stages_no_picture():
    assert graph([], []) == ""


def test_many_boxes_alike_are_one():
    names = [f"a{place}" for place in range(6)]
    nodes = [Node("in", "Rows"), *(Node(name, name, "1 s", "adapter ran", of="x.Train") for name in names),
             Node("out", "Compare")]  # fmt: skip
    edges = [Edge("in", name) for name in names] + [Edge(name, "out") for name in names]
    found, kept = gathered(nodes, edges)
    assert [node.title for node in found] == ["Rows", "6 × Train", "Compare"]
    assert [(edge.tail, edge.head) for edge in kept] == [("in", "a0"), ("a0", "out")]
    assert all(name in found[1].hint for name in names)
    assert len(gathered(nodes, edges[:-1])[0]) == 4, "one that leads elsewhere stays by itself"
    assert len(gathered(nodes[:4], [])[0]) == 4, "three are no crowd"


def test_a_broad_graph_is_not_made_unreadable():
    nodes = [Node(f"n{place}", "box") for place in range(12)]
    layers = [Edge("n0", node.key) for node in nodes[1:]]
    chain = [Node(f"c{place}", "box") for place in range(8)]
    links = [Edge(one.key, other.key) for one, other in itertools.pairwise(chain)]
    assert 'class="graph large"' in graph([*nodes, *chain], [*layers, *links])
    assert 'class="graph"' in graph(chain, links)
