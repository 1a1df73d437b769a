"""The computed parts of the method cards: what a dry run says a method sends, and the defaults of its options.

``python -m tools.cards`` rewrites, in every ``docs/methods/*.md``, what stands between ``<!-- computed -->`` and
``<!-- end -->``, and the default column of the options. A test runs the same code and compares.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

from lab.costs.network import human
from lab.engine.optim import Optimizer
from lab.events import Sent
from lab.methods import METHODS
from lab.recipes.recipe import Recipe
from lab.runs.plan import Plan, plan

FOLDER = Path(__file__).parent.parent / "docs/methods"

# The smallest recipe of each paper. Long ones are cut to some rounds: bytes per step and ratios stay the same.
PAPERS = {
    "des_loc": "des_loc_13B",
    "mt_dao": "mt_dao_16M -o steps=1024",
    "lordo": "lordo_720M -o steps=1024",
    "photon": "photon_125M -o steps=1280",
    "streaming_diloco": "streaming_diloco_1B -o steps=400 -o schedule.warmup=0",
    "noloco": "noloco_125M -o steps=1100",
    "fomoe": "fomoe_54M",
}


@functools.cache
def planned(command: str) -> Plan:
    """What ``lab plan <command>`` computes."""
    preset, *overrides = command.split(" -o ")
    return plan(Recipe.of(preset, overrides))


def traffic(command: str) -> str:
    """One recipe: a table of what the worker that sends most hands over, and what that amounts to."""
    p = planned(command)
    r, worker = p.recipe, p.payload_bytes_W.index(p.payload_bytes)
    mine = [x for x in p.ledger if worker in x.workers]
    lines = [
        f"`lab plan {command}`: {r.num_workers} workers, {r.steps:,} local steps, {p.num_params:,} parameters.",
        "",
        "| state | operation | how often | payload each | in all these steps |",
        "| --- | --- | --- | --- | --- |",
    ]
    for state, op, level in sorted(dict.fromkeys((x.state, x.op, x.level) for x in mine), key=lambda kind: kind[2]):
        payload = by_step([x for x in mine if (x.state, x.op, x.level) == (state, op, level)])
        total = sum(payload.values())
        each = human(total / len(payload)) + (" (mean)" if len(set(payload.values())) > 1 else "")
        where = f", {level} level{'s' * (level > 1)} above" if level else ""
        lines.append(f"| `{state}` | {op}{where} | {how_often(sorted(payload), r.steps)} | {each} | {human(total)} |")
    mine = [x for x in mine if not x.level]
    than = [less(p.ddp_bytes, p.payload_bytes, "DDP")]
    rounds = max(len(by_step([x for x in mine if x.op == op])) for op in {x.op for x in mine}) < r.steps
    if rounds and r.method.inner.state_names:  # who sends in every step is not compared with rounds
        than.append(less(p.local_adam_bytes, p.payload_bytes, "Local Adam"))
    lines += [
        "",
        f"- payload: {', '.join(than)}"
        + (f" (both with adapters of rank {r.lora.bounds[-1]} at every worker)" if r.lora.ranks else ""),
        f"- on the wires to and from a server: {less(p.ddp_wire_bytes, p.wire_bytes, 'DDP on a ring')}"
        if p.served
        else f"- on the wires of a ring: {less(p.ddp_wire_bytes, p.wire_bytes, 'DDP')}",
        f"- most in one step: {human(max(by_step(mine).values()))}",
        f"- kept by a worker: {kept(p):.2f} numbers per parameter that it holds"
        + (f" (of adapters), and {human(p.frozen_bytes)} of the frozen model" if r.lora.ranks else ""),
    ]
    if r.lora.ranks and len(set(p.payload_bytes_W)) > 1:
        lines.append(f"- worker by worker: {', '.join(map(human, p.payload_bytes_W))}")
    return "\n".join(lines)


def by_step(mine: list[Sent]) -> dict[int, int]:
    """Payload of one worker in each step in which it sends or receives something."""
    steps: dict[int, int] = {}
    for x in mine:
        steps[x.step] = steps.get(x.step, 0) + x.bytes_each
    return steps


def how_often(at: list[int], steps: int) -> str:
    """In words, the steps in which something is sent."""
    gap = at[1] - at[0] if len(at) > 1 else at[0]
    if at == list(range(at[0], steps + 1, gap)) and at[0] in (1, gap):
        return "in every step" if gap == 1 else f"every {gap} steps" + (", from the first on" if at[0] == 1 else "")
    return f"{len(at):,} times" if len(at) > 1 else "once"


def kept(p: Plan) -> float:
    """Parameters, gradients, optimizer states and agreed state of a worker, in numbers per parameter that it holds."""
    return p.state_bytes_per_worker / 4 / max(p.params_per_worker)


def less(theirs: float, mine: float, than: str) -> str:
    if theirs == mine:
        return f"as many bytes as {than}"
    return (
        f"{theirs / mine:.2f}× fewer bytes than {than}" if theirs > mine else f"{mine / theirs:.2f}× more than {than}"
    )


def sends(name: str) -> str:
    """The computed block of a card."""
    commands = [name] + ([PAPERS[name]] if name in PAPERS else [])
    return "\n\n".join(traffic(command) for command in commands)


def index() -> str:
    """The computed table of ``docs/methods/README.md``."""
    lines = [
        "| card | in one line | fewer bytes than DDP | on a ring | most in one step | numbers kept |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, cls in sorted(METHODS.items(), key=lambda item: bool(Recipe.of(item[0]).lora.ranks)):
        p = planned(name)
        says = (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()[0]
        own = [x for x in p.ledger if not x.level]
        sent_W = [
            by_step([x for x in own if w in x.workers]) for w in range(p.recipe.num_workers)
        ]  # of some nothing: never drawn
        most = max(x for sent in sent_W for x in sent.values())
        numbers = f"{p.ddp_bytes / p.payload_bytes:.2f}× | {p.ddp_wire_bytes / p.wire_bytes:.2f}× | {human(most)}"
        lines.append(f"| [{name}]({name}.md) | {says} | {numbers} | {kept(p):.2f} |")
    return "\n".join(lines)


def defaults(name: str) -> dict[str, str]:
    """Every option of a method and its default, as one would write it."""
    method = METHODS[name]()
    return {f.name: written(getattr(method, f.name)) for f in dataclasses.fields(method)}  # type: ignore[arg-type]


def written(value: Any) -> str:
    if isinstance(value, Optimizer):
        options = "".join(f", {key} {_json(v)}" for key, v in value.options.items())
        return f"`{value.name}`, lr {value.lr:g}{options}"
    if dataclasses.is_dataclass(value):  # a part with options of its own: those that are on
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        said = {name: f"({written(x)})" if dataclasses.is_dataclass(x) else written(x) for name, x in own.items() if x}
        return ", ".join(f"`{name}` {x}" for name, x in said.items() if x != "(none)") or "none"
    if isinstance(value, str):
        return f"`{value}`" if value else "none"
    if isinstance(value, dict):
        return ", ".join(f"`{key}` {v}" for key, v in value.items()) or "none"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value).replace("null", "none").replace("true", "on").replace("false", "off")


def renewed(page: Path) -> str:
    """The text of a page with its computed parts made anew."""
    name, text = page.stem, page.read_text(encoding="utf-8")
    block = index() if name == "README" else sends(name)
    text, found = re.subn(
        r"(<!-- computed[^>]*-->).*?(<!-- end -->)", lambda m: f"{m[1]}\n\n{block}\n\n{m[2]}", text, flags=re.S
    )
    if found != 1:
        raise ValueError(f"{page} needs one block between <!-- computed --> and <!-- end -->")
    sent, end, options = text.partition("<!-- end -->")
    for option, value in defaults(name).items() if name != "README" else ():
        options = re.sub(rf"^(\| `{option}` \| )[^|]*( \|)", lambda m, v=value: m[1] + v + m[2], options, flags=re.M)  # type: ignore[misc]
    return sent + end + options


if __name__ == "__main__":
    for page in sorted(FOLDER.glob("*.md")):
        text = renewed(page)
        if text != page.read_text():
            page.write_text(text)
            print(f"renewed {page}")
