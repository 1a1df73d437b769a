"""The command line as its users meet it: one clear line for a mistake, exit codes, resume, JSON."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from lab.cli import _was_named, main
from lab.recipes.recipe import Recipe

TINY = ["-o", "steps=6", "-o", "model.dim=16", "-o", "model.num_layers=1", "-o", "context=16", "-o", "batch_size=2"]
TINY += ["-o", "schedule.warmup=0", "-o", "eval_every=3", "-o", "eval_windows=4", "-o", "checkpoint_every=2"]
TINY += ["-o", "method.sync_every=2", "-o", "corpus=grammar?tokens=20000"]


def lab(*arguments: str):
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def runs(tmp_path):
    return str(tmp_path / "runs")


def test_run_writes_a_folder_and_shows_a_finished_run_again(runs):
    """The same recipe gives the same id; a finished run is not trained twice, unless asked for."""
    first = lab("run", "diloco", *TINY, "--runs", runs)
    assert first.exit_code == 0, first.output
    (folder,) = Path(runs).iterdir()
    events = (folder / "events.jsonl").read_bytes()
    second = lab("run", "diloco", *TINY, "--runs", runs)
    assert second.exit_code == 0
    assert "already finished" in second.output
    assert (folder / "events.jsonl").read_bytes() == events
    assert first.output.splitlines()[-1] == second.output.splitlines()[-1]
    again = lab("run", "diloco", *TINY, "--runs", runs, "--again")
    assert again.exit_code == 0
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, folder.name + "-2"]


def test_resume_goes_on_with_a_run_that_was_cut_off(runs):
    """Cut the event stream and take the last checkpoint away: the run ends as if it had never stopped."""
    assert lab("run", "diloco", *TINY, "--runs", runs).exit_code == 0
    (folder,) = Path(runs).iterdir()
    whole = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    newest = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
    newest.unlink()
    newest.with_suffix(".json").unlink()
    text = (folder / "events.jsonl").read_text()
    (folder / "events.jsonl").write_text(text[: len(text) - 40])
    assert lab("resume", folder.name[:6], "--runs", runs).exit_code == 0
    after = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]

    def essence(events):
        return [{k: v for k, v in e.items() if k not in ("seconds", "crc")} for e in events if e["kind"] != "warned"]

    assert essence(after) == essence(whole)
    assert any(e["kind"] == "warned" and "resumed after step" in e["message"] for e in after)


def test_replay_shows_a_run_again_without_training(runs):
    """The same last line as the run itself; the folder stays as it was."""
    first = lab("run", "diloco", *TINY, "--runs", runs)
    (folder,) = Path(runs).iterdir()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = lab("replay", folder.name, "--speed", "inf", "--runs", runs)
    assert again.exit_code == 0, again.output
    assert again.output.splitlines()[-1] == first.output.splitlines()[-1]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_compare_lists_runs_side_by_side(runs):
    for method in ("diloco", "local_adam"):
        assert lab("run", method, *TINY, "--runs", runs).exit_code == 0
    out = lab("compare", "diloco", "local_adam", "--runs", runs, "--network", "10Mbit", "--json")
    a, b = json.loads(out.output)
    assert (a["method"], b["method"]) == ("diloco", "local_adam")
    assert b["payload_bytes"] == 3 * a["payload_bytes"]
    assert a["wire_bytes"] == pytest.approx(a["payload_bytes"] * 2 * 3 / 4)  # ring of four
    text = lab("compare", "diloco", "local_adam", "--runs", runs).output
    assert len(text.splitlines()) == 4  # head, two runs, and what the seconds are


def test_plan_says_what_the_paper_says():
    """13B, periods 256, 768, 1536: 170.67 times fewer bytes than DDP and half of Local Adam's, per worker."""
    p = json.loads(lab("plan", "des_loc_13B", "--json", "--network", "1Gbit").output)
    assert round(p["times_less_than_ddp"], 2) == 170.67
    assert p["times_less_than_local_adam"] == 2
    assert p["payload_bytes_per_worker"] == [p["num_params"] * 4 * 9] * 4
    assert {s["state"]: s["times"] for s in p["states"]} == {"params": 6, "exp_avg": 2, "exp_avg_sq": 1}
    (forecast,) = p["forecasts"]
    # nine copies travel, in six transfers (states that are due together leave together) of six hops each
    ring = 2 * 3 / 4 * p["num_params"] * 4 * 9 / (1e9 / 8) + 6 * 6 * 0.02
    assert forecast["communication_hours"] == pytest.approx(ring / 3600)
    assert "170.67× fewer than DDP   2.00× fewer than Local Adam" in lab("plan", "des_loc_13B").output


def test_plan_tells_what_is_fetched_from_what_is_handed_in(runs):
    """A state that goes both ways has a row for each; moved experts are apart from averaged ones. A federation has a server."""
    p = json.loads(lab("plan", "prelort", "--json", "--network", "1Gbit").output)
    largest = 64 * (64 + 192) * 2 * 4  # rank 64 of the two maps 64 → 192 of nano
    assert {s["op"]: (s["times"], s["bytes_each"]) for s in p["states"]} == {
        "broadcast": (10, largest),
        "reduce": (10, largest),
    }
    assert p["wire_bytes_per_worker"] == p["payload_bytes_per_worker"][0] == 20 * largest
    assert (
        p["state_bytes_per_worker"] == 4 * largest
    )  # values, gradients and two moments: what is agreed is at the server
    text = lab("plan", "prelort").output
    for row in ("params, broadcast         10", "params, reduce            10", "adapters of rank 4 to 64"):
        assert row in text
    moved = ["-o", "placement.kind=random", "-o", "placement.every=4", "-o", "steps=96"]
    rows = {
        (s["state"], s["op"]): s["times"] for s in json.loads(lab("plan", "fomoe", *moved, "--json").output)["states"]
    }
    assert rows.pop(("params", "broadcast")) == 1
    assert rows == {(state, "all_reduce"): 6 for state in ("params", "exp_avg", "exp_avg_sq")}


def test_a_run_ends_with_what_it_found(runs):
    """Score and prefixes of a federation from a base model's file, ghosts of a mixture; the list has both in a line each."""
    base = Recipe.of("prelort").but(model={"size": "nano", "dim": 16, "num_layers": 1}).model.build(256, 64, 5)
    Path(runs).mkdir()
    save_file({name: p.detach().clone() for name, p in base.named_parameters()}, file := f"{runs}/base.safetensors")
    options = [*TINY, "-o", "corpus=task:packages", "-o", "context=64", "-o", "model.size=nano", "-o", f"start={file}"]
    out = lab("run", "prelort", *options, "-o", "num_workers=2", "-o", "lora.ranks=[4,2]", "--runs", runs)
    assert out.exit_code == 0, out.output
    score, cuts = out.stdout.splitlines()[-2:]
    assert re.fullmatch(r"  accuracy [01]\.\d{3}", score)
    assert re.fullmatch(r"  loss cut to rank 2: \d\.\d{4}, 4: \d\.\d{4}", cuts)
    spread = ["-o", 'method.sync_every={"params":2}', "-o", "placement.overlap=1", "-o", "routing_every=3"]
    spread += ["-o", "model.skip_token=true"]
    out = lab("run", "fomoe", *TINY, *spread, "--runs", runs)
    assert out.exit_code == 0, out.output
    assert re.fullmatch(r"  routing: \d+\.\d% of choices .*", out.stdout.splitlines()[-1])
    told = [
        line for line in lab("list", "--runs", runs).output.splitlines() if line.startswith(("  prelort-", "  fomoe-"))
    ]
    assert [re.sub(r"\s+", " ", line).split(" ", 2)[2].split(", validation loss ")[0] for line in told] == [
        "done MoE on grammar?tokens=20000, 6 steps",
        "done GPT on task:packages, 6 steps",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing"], "unknown preset 'nothing'"),
        (["run", "-o", "stepz=3"], "did you mean 'steps'"),
        (["run", "-o", "method.sync_every.params=0"], "method.sync_every.params = 0 is not allowed"),
        (["run", "-o", "corpus=text:/no/such/folder"], "/no/such/folder"),
        (["run", "-o", "corpus=wikipedia"], "stdlib"),
        (["run", "-o", "context=100000000"], "100000000"),
        (["run", "-o", "num_workers=5000000", "-o", "model.dim=4"], "worker"),
        (["run", "-o", "split=domains"], "domain"),
        (["run", "-o", "codecs.params=topk:0.1"], "codecs.params"),
        (["run", "-o", "scenario=down"], "fields outages, sample"),
        (["run", "-o", "scenario.outages=[[1, 2]]"], "fields worker, last, first"),
        (["run", "-o", "schedule=cosine"], "fields kind, warmup"),
        (["plan", "--network", "56k"], "unknown network '56k'"),
        (["plan", "--device", "abacus"], "unknown device 'abacus'"),
        (["resume", "nothing"], "no run called 'nothing'"),
        (["replay", "nothing"], "no run called 'nothing'"),
        (["replay", "nothing", "--speed", "0"], "--speed 0: give a number greater than 0"),
        (["sweep", "99_nothing"], "no notebook '99_nothing'"),
        (["sweep", "00_start_here", "-p", "steps"], "write key=value"),
        (["compare", "nothing"], "no run called 'nothing'"),
        (["reproduce", "99_nothing"], "no notebook '99_nothing'"),
        (["reproduce", "00_start_here", "-p", "stepz=3"], "no parameter 'stepz'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, says, runs):
    """What was wrong, what is allowed; no traceback; nothing is left behind."""
    extra = ["--runs", runs] if arguments[0] in ("run", "resume", "replay", "compare") else []
    out = lab(*arguments, *extra)
    assert out.exit_code == 2, out.output
    (line,) = out.stderr.strip().splitlines()
    assert line.startswith("lab: ")
    assert says in line
    assert not Path(runs).exists()


def test_debug_shows_the_traceback(runs):
    out = lab("--debug", "run", "nothing", "--runs", runs)
    assert out.exception is not None
    assert "unknown preset" in str(out.exception)


def test_divergence_names_step_worker_and_checkpoint(runs):
    """A learning rate that explodes: exit code 1, one line, and everything written so far is there."""
    explode = ["-o", "method.inner.lr=1e20", "-o", "checkpoint_every=1", "-o", "method.sync_every=5"]
    out = lab("run", "diloco", *TINY, "--runs", runs, *explode)
    assert out.exit_code == 1
    line = out.stderr.strip().splitlines()[-1]
    assert line.startswith("lab: loss of worker 0 is nan in step 2: the last good checkpoint is that of step 1")
    (folder,) = Path(runs).iterdir()
    kinds = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds == ["started", "stepped", "checkpointed", "stepped", "ended"]


def test_help_imports_nothing_slow():
    """`lab --help` must not wait for torch, nor the process that executes one notebook, whose kernel imports it."""
    code = "import sys, lab.cli; lab.cli.main(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    code += "; import lab.study.execution; assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" not in out
    assert "'pydantic'" not in out


def test_start_imports_nothing_slow(runs, tmp_path):
    """With the text in the cache, training starts without torch's compiler, datasets, pandas, plotly or Jupyter."""
    assert lab("run", "diloco", *TINY, "--runs", runs).exit_code == 0
    code = f"""
import sys
from lab.recipes.recipe import Recipe
from lab.runs.trainer import train
train(Recipe.of("diloco", {TINY[1::2]!r}))
print(sorted(m for m in sys.modules if m in ("torch._dynamo", "datasets", "pandas", "plotly", "IPython", "widgets")))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"


def test_list_names_everything(runs):
    out = lab("list", "--runs", runs).output
    for word in ("des_loc", "13B", "stdlib", "10Mbit", "h100", "none yet"):
        assert word in out


def test_a_forgotten_option_sign_is_explained():
    out = lab("run", "des_loc", "steps=500")
    assert out.exit_code == 2
    assert "-o steps=500" in out.stderr


@pytest.mark.parametrize("too_much", ["num_workers=100000", "batch_size=1000000"])
def test_what_cannot_fit_into_memory_is_refused_at_once(too_much, runs):
    """With the memory it needs, before a single tensor is made."""
    out = lab("run", "diloco", "-o", "corpus=grammar?tokens=8000000", "-o", too_much, "--runs", runs)
    assert out.exit_code == 2
    (line,) = out.stderr.strip().splitlines()
    assert "GB of memory" in line
    assert not Path(runs).exists()


def test_list_names_one_kind_with_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What installed packages offer is named as well, and nothing of it is imported for that."""
    about = tmp_path / "my_nets-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-nets\nVersion: 1.0\n")
    groups = {"methods": "my_average", "models": "my_net", "tasks": "my_points"}
    lines = [f"[isthmus.{kind}]\n{name} = my_nets:No\n" for kind, name in groups.items()]
    (about / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    models, data, methods = (lab("list", kind).output for kind in ("models", "data", "methods"))
    assert re.search(r"^  micro +GPT: 820,352 parameters", models, flags=re.M)
    assert re.search(r"^  mlp +Linear maps", models, flags=re.M)
    assert "  my_net           my_nets:No, of package my-nets\n" in models
    assert re.search(r"^  digits +Handwritten digits", data, flags=re.M)
    assert "  my_points        my_nets:No, of package my-nets\n" in data
    assert "  my_average       my_nets:No, of package my-nets\n" in methods
    assert "presets" not in methods
    everything = lab("list", "--runs", str(tmp_path / "runs")).output
    assert re.search(r"^models       pico, nano, .*, mlp, .*, my_net$", everything, flags=re.M)
    assert "my_nets" not in sys.modules
    assert lab("list", "modells").exit_code == 2
    assert lab("list", "runs", "--runs", str(tmp_path / "runs")).output == f"runs in {tmp_path / 'runs'}/: none yet\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [(("list", "--runs", "here"), True), (("list", "--runs=here"), True), (("run", "diloco", "-o", "start="), False)],
)
def test_a_place_is_bad_input_only_where_it_was_named(words, named, tmp_path, monkeypatch):
    """An option that is given nothing names no place, and not the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "here" / "deeper"))
    assert _was_named(refused, words) is named
    assert not _was_named(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "here")), words)
