"""A menu or a slider inside a plotly figure that is at rest: each entry turns it into another figure of the same traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from widgets.colours import COLOURS, CONTROL, INK, LABEL, TICK
from widgets.pictures import Figure

MODE_BAR = 60  # pixels that plotly's own buttons take in the corner of a menu
SLIDER = 84  # pixels that a slider needs below a figure


def padded(lead: dict[str, Any], whole: dict[str, Any]) -> Figure:
    """A figure of the first pictures of another, with what else that has unseen, so that a menu can turn one into the other."""
    first, layout = len(lead["data"]), dict(lead["layout"])
    unseen = [trace | {"visible": False} for trace in whole["data"][first:]]
    for kind in ("shapes", "annotations"):
        there = layout.get(kind, [])
        layout[kind] = [*there, *(mark | {"visible": False} for mark in whole["layout"].get(kind, [])[len(there) :])]
    for name, part in whole["layout"].items():
        if name not in layout:  # axes and legends
            layout[name] = part | {"visible": False} if isinstance(part, dict) else part
    return Figure(data=[*lead["data"], *unseen], layout=layout)


def with_menu(figures: Mapping[str, dict[str, Any]], active: str, label: str) -> Figure:
    """The figure ``active``, with a menu of all.

    Raises
    ------
    ValueError
        if the figures do not have the same traces in the same order, so that none can be turned into another.
    """
    menu = {"buttons": _entries(figures, active, label), "type": "dropdown", "showactive": True}
    menu |= {"active": list(figures).index(active), "x": 1, "xanchor": "right", "y": 1, "yanchor": "top"}
    menu |= {"pad": {"t": 2, "r": MODE_BAR}, "font": {"size": TICK}, "bgcolor": CONTROL, "bordercolor": INK}
    return Figure(data=figures[active]["data"], layout=figures[active]["layout"] | {"updatemenus": [menu]})


def with_slider(figures: Mapping[str, dict[str, Any]], active: str, label: str) -> Figure:
    """The figure ``active``, with a slider below it that goes through all of them; they must be equally high.

    Raises
    ------
    ValueError
        as `with_menu` does.
    """
    layout = figures[active]["layout"]
    now = {"prefix": f"{label}: ", "font": {"size": LABEL}, "xanchor": "left"}
    height = layout["height"] + SLIDER
    slider = {"steps": _entries(figures, active, label, height), "active": list(figures).index(active)}
    slider |= {"currentvalue": now}
    slider |= {"x": 0.03, "len": 0.94, "y": 0, "yanchor": "top", "pad": {"t": layout["margin"]["b"] + 8}}
    slider |= {
        "font": {"size": TICK},
        "bgcolor": CONTROL,
        "activebgcolor": COLOURS[0],
        "bordercolor": INK,
        "tickcolor": INK,
    }
    room = {"height": height, "margin": layout["margin"] | {"b": layout["margin"]["b"] + SLIDER}}
    return Figure(data=figures[active]["data"], layout=layout | room | {"sliders": [slider]})


def _entries(
    figures: Mapping[str, dict[str, Any]], active: str, label: str, height: int | None = None
) -> list[dict[str, Any]]:
    """What turns any of the figures into each of them: what differs from one to another, under plotly's long names.

    The height (of each figure, unless one is given for all) is always said: JupyterLab takes it from the figure, which would then shrink to nothing.
    """
    shapes = {name: [trace["type"] for trace in figure["data"]] for name, figure in figures.items()}
    if any(shape != shapes[active] for shape in shapes.values()):
        raise ValueError(f"a menu needs the same traces in every figure; {label}: {shapes}")
    entries = []
    flat = {name: [dict(_leaves(trace)) for trace in figure["data"]] for name, figure in figures.items()}
    keys = [_differing(versions) for versions in zip(*flat.values(), strict=True)]
    touched = [k for k, differ in enumerate(keys) if differ]
    styled = list(dict.fromkeys(key for differ in keys for key in differ))
    layouts = {name: dict(_leaves(figure["layout"])) for name, figure in figures.items()}
    laid_out = _differing(list(layouts.values()))
    for name, traces in flat.items():
        styles = {key: [traces[k].get(key) for k in touched] for key in styled}
        tall = height or figures[name]["layout"]["height"]
        layout = {key: layouts[name].get(key) for key in laid_out} | {"height": tall}
        entries.append({"label": name, "method": "update", "args": [styles, layout, touched]})
    return entries


def _differing(flat: Sequence[dict[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all."""
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    return [key for key in keys if any(leaves.get(key) != flat[0].get(key) for leaves in flat)]


def _leaves(thing: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """What nested dictionaries hold, under names as ``xaxis.title.text`` and ``annotations[2].x``."""
    for key, value in thing.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _leaves(value, name)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for k, inner in enumerate(value):
                yield from _leaves(inner, f"{name}[{k}]")
        else:
            yield name, value
