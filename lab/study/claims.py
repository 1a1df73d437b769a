"""What a paper says, what we measured, and what follows. Every notebook ends with such a table."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lab.study.effects import LEVEL, Better, Effect, Says, Scale, holm
from lab.study.evidence import NONE, Evidence
from lab.study.tables import html_table

if TYPE_CHECKING:
    from lab.runs.columns import Columns

MIME = "application/vnd.isthmus.claims+json"

Verdict = Literal["exact", "holds", "contradicted", "inconclusive", "not tested"]
SIGN = {"exact": "=", "holds": "✓", "contradicted": "✗", "inconclusive": "?", "not tested": "·"}
BEFORE = {"not tested here": "not tested"}  # words of tables that were kept before


@dataclass(frozen=True)
class Claim:
    """One claim.

    says, setting
        the paper's statement and under which conditions it was made.
    measured, verdict
        what this run gave, and what follows: ``exact`` (a number that follows from counting, and is equal), ``holds`` and
        ``contradicted`` (the interval of the effect lies on the claimed side of the margin, or on the other), ``inconclusive`` (it
        does not decide; the note says what would), ``not tested`` (the note, or what was measured, says why).
    note
        what a reader must know to judge: differences of setting, what would decide.
    effects
        what it was judged by. Made by `effect` or `every`; nothing else can hold.
    evidence
        the runs behind it.
    """

    paper: str
    says: str
    setting: str
    measured: str
    verdict: Verdict
    note: str = ""
    effects: tuple[Effect, ...] = ()
    evidence: Evidence = NONE

    def __post_init__(self) -> None:
        if self.verdict not in SIGN:
            raise ValueError(f"verdict {self.verdict!r}: use one of {', '.join(SIGN)}")
        if self.verdict == "holds" and not self.effects:
            raise ValueError(
                "a claim holds by an interval and a margin: use Claim.effect, or Claim.exact where it is counted"
            )

    @classmethod
    def effect(
        cls,
        paper: str,
        says: str,
        setting: str,
        treated: Sequence[float],
        control: Sequence[float],
        margin: float,
        *,
        claim: Says = "better",
        better: Better = "lower",
        scale: Scale = "difference",
        unit: str = "",
        seen: str = "",
        note: str = "",
        runs: Iterable[Columns] = (),
        size: str = "",
    ) -> Claim:
        """A claim that paired runs decide: one value a seed of the treated and of the control, and the margin (see `Effect`).

        ``seen``: what else was measured, to stand before the effect. ``runs``, ``size``: see `Evidence.of`.
        """
        one = Effect(tuple(treated), tuple(control), margin, claim, better, scale, unit=unit)
        return cls.every(paper, says, setting, [one], seen=seen, note=note, runs=runs, size=size)

    @classmethod
    def every(
        cls,
        paper: str,
        says: str,
        setting: str,
        effects: Sequence[Effect],
        *,
        seen: str = "",
        note: str = "",
        runs: Iterable[Columns] = (),
        size: str = "",
    ) -> Claim:
        """A claim of several effects at once, each with a label: at every period, at every rank.

        It holds where each of them does. It is contradicted where one is, at 5 % divided by how many there are: so of claims whose
        effects all lie on their margins no more are decided than of claims with one effect.
        """
        if not effects:
            raise ValueError(
                "a claim without an effect: give at least one, or say why it is not tested (Claim.untested)"
            )
        against = [e for e in effects if e.verdict == "contradicted" and e.p <= (1 - LEVEL) / len(effects)]
        if all(e.verdict == "holds" for e in effects):
            verdict: Verdict = "holds"
        else:
            verdict = "contradicted" if against else "inconclusive"
        measured = "; ".join(filter(None, [seen, *(e.measured for e in effects)]))
        if verdict == "inconclusive":
            lacks = [f"{e.label}: {e.would_decide}".removeprefix(": ") for e in effects if e.would_decide]
            many = "each is decided, but not all to one side at 5 % for all of them together: more pairs"
            note = "; ".join(filter(None, [note, f"would decide: {'; '.join(dict.fromkeys(lacks)) or many}"]))
        return cls(paper, says, setting, measured, verdict, note, tuple(effects), Evidence.of(runs, size))

    @classmethod
    def exact(
        cls,
        paper: str,
        says: str,
        setting: str,
        measured: Any,
        expected: Any = True,
        *,
        within: float = 0.0,
        seen: str = "",
        note: str = "",
        runs: Iterable[Columns] = (),
        size: str = "",
    ) -> Claim:
        """A claim that counting or calculation decides: ``exact`` where the two are equal, else ``contradicted``.

        within
            how far two numbers may be apart: half a unit of the last digit that is printed, or what rounding does.
        seen
            the words for what was measured; otherwise the number itself, and what was expected where it differs.
        """
        numbers = isinstance(measured, int | float) and isinstance(expected, int | float)
        equal = bool(abs(measured - expected) <= within if numbers and within else measured == expected)
        words = seen or f"{measured}" + ("" if equal else f", expected {expected}")
        verdict: Verdict = "exact" if equal else "contradicted"
        return cls(paper, says, setting, words, verdict, note, evidence=Evidence.of(runs, size))

    @classmethod
    def untested(cls, paper: str, says: str, setting: str, why: str, note: str = "") -> Claim:
        """A claim that nothing here tests, and why."""
        return cls(paper, says, setting, why, "not tested", note)

    @property
    def p(self) -> float:
        """The share of errors at which the effects decide it (see `Effect.p`); 1 where nothing does."""
        if self.verdict == "holds":
            return max((e.p for e in self.effects), default=1.0)
        if self.verdict == "contradicted":
            return min([1.0, *(len(self.effects) * e.p for e in self.effects if e.verdict == "contradicted")])
        return 1.0

    @property
    def what_counts(self) -> str:
        return "; ".join(dict.fromkeys(e.what_counts for e in self.effects))

    def to_json(self) -> dict[str, Any]:
        kept = ("paper", "says", "setting", "measured", "verdict", "note")
        plain: dict[str, Any] = {name: getattr(self, name) for name in kept}
        return plain | {"effects": [e.to_json() for e in self.effects], "evidence": asdict(self.evidence)}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Claim:
        """As it was kept, also by an earlier version: what had no interval then is inconclusive, and says so."""
        row = dict(kept)
        effects = tuple(map(Effect.from_json, row.pop("effects", ())))
        evidence = Evidence(**row.pop("evidence", {}))
        if "effects" not in kept and (then := row["verdict"]) not in ("exact", "not tested", "not tested here"):
            note = "; ".join(filter(None, [row.get("note", ""), f"judged without an interval then: {then}"]))
            row |= {"verdict": "inconclusive", "note": note}
        row["verdict"] = BEFORE.get(row["verdict"], row["verdict"])
        return cls(**row, effects=effects, evidence=evidence)


@dataclass(frozen=True)
class Claims:
    """A table of claims; shown as HTML in a notebook, and kept in its output for ``lab reproduce`` to read."""

    notebook: str
    rows: tuple[Claim, ...]

    @property
    def answer(self) -> str:
        """How many hold, and which are contradicted, in a sentence; empty where there is no claim."""
        if not self.rows:
            return ""
        against = list(dict.fromkeys(c.says for c in self.rows if c.verdict == "contradicted"))
        which = f"; not so: {'; '.join(against)}" if against else ""
        return f"So: of {len(self.rows)} claim{'s' * (len(self.rows) != 1)} {tally(self.rows)}{which}."

    @property
    def looks(self) -> str:
        """How many claims were judged by intervals, and what that means for those decided; empty if none was."""
        tested = [c for c in self.rows if any(e.line_interval for e in c.effects)]
        if not tested:
            return ""
        decided = [c.verdict in ("holds", "contradicted") for c in tested]
        left = sum(d and p < 1 - LEVEL for d, p in zip(decided, holm([c.p for c in tested]), strict=True))
        many = "1 claim is" if len(tested) == 1 else f"{len(tested)} claims are"
        words = f"{many} judged by 95 % intervals, each wrong one time in twenty where the truth lies on its margin"
        if len(tested) > 1:
            words += f"; of the {sum(decided)} that they decide, {left} stay decided after Holm's correction for {len(tested)} looks"
        return (
            words
            + ". Behind a mean, (… … …) is the least and the greatest of the seeds; behind an effect, its interval."
        )

    def to_text(self) -> str:
        lines = [self.answer]
        for c in self.rows:
            lines.append(f"{SIGN[c.verdict]} {c.verdict:<13} {c.paper}: {c.says} [{c.setting}]")
            counts = f" (counts: {c.what_counts})" if c.effects else ""
            lines.append(f"{'':<16}measured: {c.measured}{counts}" + (f" – {c.note}" if c.note else ""))
        return "\n".join(filter(None, [*lines, self.looks]))

    def to_html(self) -> str:
        head = ("Paper", "It says", "in the setting", "What counts", "Measured here", "Verdict", "Note")
        rows = [
            (c.paper, c.says, c.setting, c.what_counts, c.measured, f"{SIGN[c.verdict]} {c.verdict}", c.note)
            for c in self.rows
        ]
        table = html_table(head, rows, style="text-align:left;vertical-align:top")
        answer = f"<p><b>{html.escape(self.answer)}</b></p>" if self.answer else ""
        return answer + table + (f"<p>{self.looks}</p>" if self.looks else "")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            "text/plain": self.to_text(),
            "text/html": self.to_html(),
            MIME: {"notebook": self.notebook, "rows": [c.to_json() for c in self.rows]},
        }


def spread(values: Sequence[float], digits: int = 3, signed: bool = False) -> str:
    """Mean and range over seeds in words: ``2.513 (2.498 … 2.530)``; of one value, that value alone; ∞ where it is."""
    form = f"{'+' if signed else ''}.{digits}f"
    mean = f"{sum(values) / len(values):{form}}"
    return (mean if len(values) == 1 else f"{mean} ({min(values):{form}} … {max(values):{form}})").replace("inf", "∞")


def tally(claims: Iterable[Claim]) -> str:
    """How many there are of each verdict, in the order of verdicts: ``2 exact, 1 holds, 3 inconclusive``; empty where there is no claim."""
    verdicts = [c.verdict for c in claims]
    counts = {verdict: verdicts.count(verdict) for verdict in SIGN if verdict in verdicts}
    return ", ".join(f"{n} {'hold' if verdict == 'holds' and n > 1 else verdict}" for verdict, n in counts.items())


def claims_in(notebook: dict[str, Any]) -> Claims | None:
    """The claims table that an executed notebook (its parsed JSON) holds, None if there is none."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            found = output.get("data", {}).get(MIME)
            if found:
                return Claims(found["notebook"], tuple(map(Claim.from_json, found["rows"])))
    return None
