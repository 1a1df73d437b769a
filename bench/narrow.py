"""What really travels, and how long it takes, on links of a chosen rate (`lab.runs.shaped_links`), beside the priced ledger.

python -m bench narrow, as root on Linux with ``ip`` and ``tc``.
"""

from __future__ import annotations

from lab.costs.network import Network
from lab.recipes.recipe import Recipe
from lab.runs.shaped_links import difference, why_not

EXPERTS = [
    "model=moe-nano",
    "placement.overlap=2",
    "routing_every=0",
]
COMMON = [
    "corpus=grammar?tokens=8000",
    "batch_size=1",
    "context=16",
    "schedule.warmup=0",
    "eval_every=0",
    "checkpoint_every=0",
]


def recipe(method: str, num_workers: int, *more: str) -> Recipe:
    return Recipe.of({"method": method}, [*COMMON, f"num_workers={num_workers}", *more])


def on_the_wire(num: int, period: int = 2) -> dict[str, Recipe]:
    every = [f"method.sync_every.params={period}", f"method.sync_every.exp_avg={2 * period}"]
    return {
        "ddp": recipe("ddp", num),
        "des_loc": recipe("des_loc", num, *every, f"method.sync_every.exp_avg_sq={2 * period}"),
        "fomoe": recipe(
            "fomoe",
            num,
            *(EXPERTS if num > 2 else [EXPERTS[0], "placement.overlap=1", EXPERTS[2]]),
            *(f"method.sync_every.{s}={period}" for s in ("params", "exp_avg", "exp_avg_sq")),
        ),
    }


def bytes_table(rate: float = 200e6, steps: tuple[int, int] = (4, 12)) -> None:
    """What left the processes against the ledger priced for a ring, which is gloo's all-reduce, with and without headers."""
    print("MB that left all processes      counted  payload by the ledger  counted ÷   framed by the ledger  counted ÷")
    for num in (2, 4):
        for name, r in on_the_wire(num).items():
            m = difference(r, rate, steps, count_pairs=name == "fomoe" and num > 2)
            counted = sum(m.bytes_W)
            plain, framed = (float(m.bill(Network(framing=f)).wire_bytes_W.sum()) for f in ("none", "ethernet"))
            print(
                f"{name:<8} {num} processes {counted / 1e6:19.3f} {plain / 1e6:22.3f} {counted / plain:10.3f} "
                f"{framed / 1e6:22.3f} {counted / framed:10.3f}",
                flush=True,
            )
            if m.bytes_by_pair:
                print(f"  between processes: { {k: round(v / 1e6, 3) for k, v in sorted(m.bytes_by_pair.items())} } MB")
                held = sorted({r.workers for r in m.ledger if "experts" in r.payload_bytes})
                print(f"  experts are held by {held}", flush=True)


def seconds_table(num: int = 2, rates: tuple[float, ...] = (100e6, 10e6)) -> None:
    """Seconds of 16 steps against those that `Network` predicts; computing takes what steps of DES-LOC take that send nothing."""
    big = ["model=micro"]
    every = ["method.sync_every.params=8", "method.sync_every.exp_avg=16", "method.sync_every.exp_avg_sq=16"]
    recipes = {"des_loc": recipe("des_loc", num, *big, *every), "ddp": recipe("ddp", num, *big)}
    steps = (8, 24)
    for rate in rates:
        alone, found = 0.0, {}
        for name, r in recipes.items():
            m = found[name] = difference(r, rate, steps)
            alone = m.alone_seconds or alone
            predicted = m.bill(Network(bits_per_second=rate, framing="ethernet"), alone).total_seconds
            print(
                f"{name:<8} {rate / 1e6:.0f} Mbit/s, {num} processes: {m.seconds:.2f} s measured / {predicted:.2f} s predicted "
                f"= {m.seconds / predicted:.3f} (computing {alone * 1000:.0f} ms a step)",
                flush=True,
            )
        faster = found["ddp"].seconds / found["des_loc"].seconds
        less = sum(x.bytes_each for x in found["ddp"].ledger) / sum(x.bytes_each for x in found["des_loc"].ledger)
        print(
            f"  des_loc is {faster:.2f}× faster than ddp and sends {less:.2f}× less: {faster / less:.2f} of that",
            flush=True,
        )


def main() -> None:
    reason = why_not()
    if reason is not None:
        print(f"links of a chosen rate need root on Linux with ip and tc: skipped ({reason})")
        return
    bytes_table()
    seconds_table()


if __name__ == "__main__":
    main()
