"""A workflow of the front-end as the graph that ComfyUI's API takes, without the front-end.

Only what the shipped workflows use: nodes, widgets, links, notes, nodes that are muted or bypassed, and
subgraphs without others inside.
"""

from __future__ import annotations

from typing import Any

VIRTUAL = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}  # the front-end resolves them itself
MUTED, BYPASSED = 2, 4
INPUT, OUTPUT = -10, -20  # what a subgraph numbers its own ends
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def to_api(workflow: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The API's graph of a workflow; `known` is what the host's /object_info says."""
    workflow = flat(workflow)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    active = [
        node
        for node in nodes.values()
        if node["type"] not in VIRTUAL and node.get("mode", 0) not in (MUTED, BYPASSED)
    ]
    return {
        str(node["id"]): {
            "inputs": _inputs(node, nodes, links, known[node["type"]]),
            "class_type": node["type"],
            "_meta": {"title": node.get("title") or known[node["type"]]["display_name"]},
        }
        for node in active
    }


def flat(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with the nodes of its subgraphs in their place, numbered as the API does: 33:7."""
    subgraphs = {each["id"]: each for each in workflow.get("definitions", {}).get("subgraphs", [])}
    nodes, links = list(workflow["nodes"]), {link[0]: tuple(link[1:3]) for link in workflow["links"]}
    for place in [node for node in nodes if node["type"] in subgraphs]:
        subgraph = subgraphs[place["type"]]
        nodes.remove(place)
        inside = str(place["id"]) + ":{}"
        given = [links.get(entry["link"]) for entry in place["inputs"]]
        made = {}
        for link in subgraph["links"]:
            origin, slot = link["origin_id"], link["origin_slot"]
            source = given[slot] if origin == INPUT else (inside.format(origin), slot)
            if link["target_id"] == OUTPUT:
                made[place["id"], link["target_slot"]] = source
            elif source is not None:
                links[inside.format(link["id"])] = source
        links = {link: made.get(source, source) for link, source in links.items()}
        for node in subgraph["nodes"]:
            inputs = [{**entry, "link": inside.format(entry["link"])} for entry in node["inputs"]]
            inputs = [entry for entry in inputs if entry["link"] in links]
            nodes.append({**node, "id": inside.format(node["id"]), "inputs": inputs})
    return {**workflow, "nodes": nodes, "links": [[link, *source] for link, source in links.items()]}


def without_news(graph: dict[str, Any], committed: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """`graph` without widgets at their defaults that the host's own nodes have gained since `committed`.

    Those that only the page knows, such as the preview of a video, go as well.
    """

    def is_old(node: dict[str, Any], key: str, name: str, value: Any) -> bool:
        ours = node["class_type"].startswith("AniFaceDiff")
        there = name in committed.get(key, {"inputs": {}})["inputs"]
        linked, widgets = isinstance(value, list), _widgets(known[node["class_type"]])
        return ours or there or linked or (name in widgets and value != widgets[name])

    return {
        key: {**node, "inputs": {n: v for n, v in node["inputs"].items() if is_old(node, key, n, v)}}
        for key, node in graph.items()
    }


def bypassed(workflow: dict[str, Any]) -> list[str]:
    """Types of the nodes that are switched off, for files that a user has to bring."""
    return sorted(node["type"] for node in workflow["nodes"] if node.get("mode", 0) == BYPASSED)


def switch_on(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with nothing bypassed."""
    return {**workflow, "nodes": [{**node, "mode": 0} for node in workflow["nodes"]]}


def _inputs(node: dict[str, Any], nodes: dict, links: dict, info: dict[str, Any]) -> dict[str, Any]:
    widgets = _widgets(info)
    # a workflow that was saved before a widget came in gets the widget's default
    found = {**widgets, **dict(zip(widgets, node.get("widgets_values", []), strict=False))}
    for entry in node.get("inputs", []):
        source = None if entry.get("link") is None else _source(*links[entry["link"]], nodes, links)
        if source is not None:
            found[entry["name"]] = source
    return {name: value for name, value in found.items() if not name.startswith("_")}


def _widgets(info: dict[str, Any]) -> dict[str, Any]:
    """A node's widgets in their order with their defaults; the front-end's own begin with an underscore."""
    defaults: dict[str, Any] = {}
    for part in ("required", "optional"):
        for name, entry in info["input"].get(part, {}).items():
            kind, options = entry[0], entry[1] if len(entry) > 1 else {}
            if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
                choices = kind if isinstance(kind, list) else options.get("options")
                defaults[name] = options.get("default", choices[0] if choices else None)
                if options.get("control_after_generate"):
                    defaults["_control"] = None
    return defaults


def _source(origin: int, slot: int, nodes: dict, links: dict) -> list[Any] | None:
    """Where a link really comes from: a bypassed node hands on its input of the output's type."""
    node = nodes[origin]
    if node.get("mode", 0) == MUTED:
        return None
    if node.get("mode", 0) != BYPASSED:
        return [str(origin), slot]
    kind, inputs = node["outputs"][slot]["type"], node.get("inputs", [])
    candidates = [*inputs[slot : slot + 1], *inputs]
    passed = next((entry for entry in candidates if entry["type"] == kind), None)
    if passed is None or passed.get("link") is None:
        return None
    return _source(*links[passed["link"]], nodes, links)
