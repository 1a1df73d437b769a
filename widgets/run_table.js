// A table of runs and a picture of their losses, in a notebook (a widget) and on a page of its own (no server).
//
// `data` is what `widgets/run_table.py` packs: runs, defaults of fields, colours, networks. All that a reader does here — filter, sort,
// choose columns, an axis, a link — is worked out here. Nothing is written but the code that one may take along.

const STYLE = `
.runs { --ink: #24292f; --soft: #555; --line: #d0d0d0; --ground: #fff; --field: #f4f4f4; --mark: #0550ae; font: 14px/1.45 system-ui, sans-serif;
  color: var(--ink); background: var(--ground); padding: 4px 12px 12px; }
.runs.dark { --ink: #e6e6e6; --soft: #b4b4b4; --line: #444; --ground: #111111; --field: #242424; --mark: #8ab4f8; }
.runs h2 { font-size: 17px; margin: 6px 0 2px; }
.runs p { margin: 4px 0; }
.runs .answer { font-size: 15px; max-width: 72em; }
.runs .soft { color: var(--soft); font-size: 13px; }
.runs form, .runs .bar { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: end; margin: 8px 0; }
.runs label { display: flex; flex-direction: column; font-size: 13px; color: var(--soft); }
.runs label.beside { flex-direction: row; align-items: center; gap: 6px; }
.runs input, .runs select, .runs button, .runs textarea { font: inherit; color: var(--ink); background: var(--field); border: 1px solid var(--soft);
  border-radius: 4px; padding: 4px 8px; }
.runs ::placeholder { color: var(--soft); opacity: 1; }
.runs input[type="number"] { width: 7em; }
.runs .wide { flex: 1 1 20em; min-width: 0; }
.runs .wide input { width: 100%; box-sizing: border-box; }
.runs button { cursor: pointer; }
.runs button[disabled] { color: var(--soft); cursor: default; border-style: dashed; }
.runs :focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
.runs .both { display: grid; grid-template-columns: minmax(0, 1fr); gap: 8px; }
.runs svg { display: block; width: 100%; height: auto; max-height: 380px; }
.runs .key { display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; margin: 2px 0 8px; padding: 0; font-size: 13px; }
.runs .key svg { width: 34px; height: 12px; display: inline-block; vertical-align: middle; margin-right: 6px; }
.runs .scroll { overflow-x: auto; max-height: 560px; overflow-y: auto; border: 1px solid var(--line); }
.runs table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; margin: 0; }
.runs th, .runs td { text-align: left; padding: 4px 10px 4px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; color: var(--ink);
  background: var(--ground); max-width: 24em; overflow: hidden; text-overflow: ellipsis; }
.runs th { position: sticky; top: 0; z-index: 1; padding: 0; }
.runs th button { border: 0; background: none; font-weight: 600; padding: 5px 8px; width: 100%; text-align: inherit; white-space: nowrap; }
.runs .num { text-align: right; }
.runs tr.picked td { background: var(--field); }
.runs .code { border: 1px solid var(--line); border-radius: 4px; padding: 6px 10px; margin: 6px 0; }
.runs .code textarea { width: 100%; box-sizing: border-box; font: 13px/1.5 ui-monospace, monospace; }
.runs details > summary { cursor: pointer; color: var(--soft); }
.runs fieldset { border: 0; padding: 0; margin: 4px 0; display: flex; flex-wrap: wrap; gap: 2px 14px; }
`;

const PAGE = 100; // rows that are shown at once
const LINES = 7; // settings that are drawn: those of the first rows
const WIDE = 8; // columns of fields that differ, unless more are asked for
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3"];
const BASE = ["run", "method", "seed", "steps", "loss", "bytes", "seconds", "status"];
const NUMBERS = new Set(["seed", "steps", "loss", "bytes", "seconds", "workers", "changed"]);
const GIVES = ["replay", "export", "fork"]; // what there is code for
let tables = 0; // in this page, so that ids differ
const AXES = { step: "local step", bytes: "payload of all workers", seconds: "seconds on this link" };

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

/** A number in four digits; with a unit it is bytes, as `short` in axes.py says them. */
function short(v, unit = "") {
  if (!Number.isFinite(v)) return "–";
  const digits = (x) => String(Number(x.toPrecision(4)));
  if (unit) {
    const [size, prefix] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [0, ""]].find(([s]) => Math.abs(v) >= s);
    return `${digits(v / (size || 1))} ${prefix}${unit}`;
  }
  return v !== 0 && (Math.abs(v) < 1e-4 || Math.abs(v) >= 1e15) ? v.toExponential(2) : Number(v.toPrecision(4)).toLocaleString("en");
}

const three = (x) => String(Number(x.toPrecision(3)));

/** Bytes in words, as `human` in lab/costs/network.py says them. */
function human(v) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let k = 0;
  for (; k < 5 && Math.abs(v) >= 999.5; k++) v /= 1000;
  return `${three(v)} ${units[k]}`;
}

/** Seconds in words, as `duration` beside it says them. */
function duration(s) {
  if (!Number.isFinite(s)) return "–";
  for (const [size, unit] of [[86400, "days"], [3600, "h"], [60, "min"]])
    if (s >= 2 * size) return `${s < 1000 * size ? three(s / size) : Math.round(s / size).toLocaleString("en")} ${unit}`;
  if (s > 0 && s < 0.1) return s >= 0.001 ? `${three(1000 * s)} ms` : "under 1 ms";
  return `${three(s)} s`;
}

const shown = (value) => (value === null || value === undefined || value === "" ? "–" : typeof value === "number" ? short(value) : typeof value === "string" ? value : JSON.stringify(value));

// --- what a run says ---------------------------------------------------------------------------------------------------

/** Seconds of a row of a curve, or of the end, on links that are all alike. */
const priced = (at, link) => at.compute + (8 * at.wire) / link.bits + at.trips * link.latency;

/** The value of a run under a key: a column of its own, or a field of its recipe. */
function valueOf(run, key, state) {
  switch (key) {
    case "run": return run.summary.name || run.summary.run;
    case "steps": return run.end.step ?? run.summary.step ?? null;
    case "bytes": return run.summary.payload_bytes;
    case "seconds": return run.end.step ? priced(run.end, state.link) : null;
    case "where": return run.where;
    case "id": return run.summary.run;
    case "workers": return run.summary.workers;
    case "method": case "seed": case "loss": case "status": case "model": case "data": case "changed": case "origin": return run.summary[key];
  }
  return key in run.fields ? run.fields[key] : state.data.defaults[key];
}

/** Of several fields of one name, which is meant: the inner optimizer's, the method's, any other. */
const nearness = (key) => (key.startsWith("method.inner.") ? 0 : key.startsWith("method.") ? 1 : 2);

/** Terms of a filter: `key=value` with = != < <= > >= ~, or words that are to be found anywhere. Throws with what is wrong. */
export function parsed(text, keys) {
  return (text.match(/(?:[^\s"]|"[^"]*")+/g) || []).map((term) => {
    const [, name, op, raw] = term.match(/^([\w.[\]-]+)(!=|<=|>=|=|<|>|~)(.*)$/) || [];
    const bare = (raw ?? term).replaceAll('"', "").toLowerCase();
    if (!op) return (run, look) => look(run).includes(bare);
    const key = keys.includes(name) ? name : keys.filter((k) => k.endsWith("." + name)).sort((a, b) => nearness(a) - nearness(b))[0];
    if (!key) throw new Error(`no run has a field called ${name}`);
    if (bare === "") throw new Error(`${name}${op} lacks a value`);
    const number = Number(bare), numeric = Number.isFinite(number);
    const glob = new RegExp("^" + bare.split("*").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join(".*") + "$");
    return (run, look, state) => {
      const value = valueOf(run, key, state);
      if (op === "~") return shown(value).toLowerCase().includes(bare);
      if (op === "=" || op === "!=") {
        const same = numeric && typeof value === "number" ? value === number : glob.test(String(value ?? "–").toLowerCase());
        return same === (op === "=");
      }
      if (typeof value !== "number" || !numeric) return false;
      return op === "<" ? value < number : op === "<=" ? value <= number : op === ">" ? value > number : value >= number;
    };
  });
}

/** Fields of which these runs do not all have the same value: those that most of them have first, then those that tell most of them apart. */
export function differing(runs, state) {
  const keys = new Set();
  for (const run of runs) for (const key in run.fields) keys.add(key);
  const found = [];
  for (const key of keys) {
    if (key === "seed" || key === "steps" || key === "method.name" || key.startsWith("own.")) continue;
    const counts = new Map();
    let without = 0;
    for (const run of runs) {
      const value = valueOf(run, key, state), text = typeof value === "object" ? JSON.stringify(value) : value;
      counts.set(text, (counts.get(text) || 0) + 1);
      without += value === undefined || value === null;
    }
    if (counts.size > 1) found.push([key, without, runs.length - Math.max(...counts.values())]);
  }
  return found.sort((a, b) => a[1] - b[1] || b[2] - a[2] || (a[0] < b[0] ? -1 : 1)).map(([key]) => key);
}

export function sorted(runs, key, down, state) {
  const rows = runs.map((run, k) => [valueOf(run, key, state), k, run]);
  const missing = (v) => v === null || v === undefined || v === "";
  rows.sort(([a, i], [b, j]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b) || i - j; // what is not known comes last, either way
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return (down ? -order : order) || i - j;
  });
  return rows.map(([, , run]) => run);
}

const plural = (num, word) => `${num.toLocaleString("en")} ${word}${num === 1 ? "" : "s"}`;

/** What these runs show, in words; `RunTable.answer` says the same of all of them. */
export function answer(runs, state) {
  if (!state.data.runs.length) return "There are no runs yet.";
  const all = state.data.runs.length;
  const many = runs.length === all ? plural(all, "run") : `${runs.length.toLocaleString("en")} of ${plural(all, "run")}`;
  if (!runs.length) return `${many}.`;
  const settings = new Set(runs.map((run) => run.settings)).size;
  const going = runs.filter((run) => run.summary.status !== "done").length;
  let words = `${many}, ${plural(settings, "setting")}${going ? `, ${going.toLocaleString("en")} not finished` : ""}`;
  const kinds = new Set(runs.map((run) => run.summary.data).filter(Boolean));
  const scored = runs.filter((run) => Number.isFinite(run.summary.loss));
  if (kinds.size > 1) return `${words}. They are trained on ${kinds.size} kinds of data, so their losses are no comparison.`;
  if (!scored.length) return `${words}. None has been evaluated.`;
  const best = scored.reduce((a, b) => (b.summary.loss < a.summary.loss ? b : a));
  const cost = best.end.step ? `, after ${plural(best.end.step, "step")}, ${human(best.end.bytes)} and ${duration(priced(best.end, state.link))}` : "";
  return `${words}. The lowest validation loss is ${best.summary.loss.toFixed(4)}, of ${valueOf(best, "run", state)} (${best.summary.method}, seed ${best.summary.seed})${cost}.`;
}

// --- the picture -------------------------------------------------------------------------------------------------------

function points(run, axis, link) {
  const c = run.curve, n = c.loss ? c.loss.length : 0, out = [];
  for (let k = 0; k < n; k++) {
    const x = axis === "seconds" ? c.compute[k] + (8 * c.wire[k]) / link.bits + c.trips[k] * link.latency : c[axis][k];
    out.push([x, c.loss[k]]);
  }
  return out;
}

/** Where a polyline is at x; nothing outside of it. */
function atX(line, x) {
  for (let k = 1; k < line.length; k++)
    if (line[k - 1][0] <= x && x <= line[k][0]) {
      const [[x0, y0], [x1, y1]] = [line[k - 1], line[k]];
      return x1 === x0 ? y1 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
    }
  return line.length && x === line[0][0] ? line[0][1] : NaN;
}

/** Mean, least and most of several runs of the same settings, where all of them are. */
export function band(lines) {
  if (lines.length === 1) return lines[0].map(([x, y]) => [x, y, y, y]);
  const first = Math.max(...lines.map((l) => l[0][0])), last = Math.min(...lines.map((l) => l.at(-1)[0]));
  const xs = [...new Set([first, ...lines[0].map(([x]) => x).filter((x) => x > first && x < last), last])];
  return xs.map((x) => {
    const ys = lines.map((l) => atX(l, x)).filter(Number.isFinite);
    return [x, ys.reduce((a, b) => a + b, 0) / ys.length, Math.min(...ys), Math.max(...ys)];
  }).filter(([, y]) => Number.isFinite(y));
}

function ticks(low, high, num) {
  const rough = (high - low) / num, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * size).find((s) => s >= rough) || 10 * size;
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return out;
}

/** The first settings among these runs that have a curve, each with its runs. */
export function drawn(runs, state) {
  const groups = new Map();
  for (const run of runs) {
    if (!run.curve.loss?.length) continue;
    if (!groups.has(run.settings)) { if (groups.size === LINES) continue; groups.set(run.settings, []); }
    groups.get(run.settings).push(run);
  }
  return [...groups.values()];
}

function picture(groups, state, wide) {
  const W = Math.max(360, Math.min(1200, wide)), H = 320, left = 64, right = 16, top = 12, bottom = 44;
  const lines = groups.map((runs) => band(runs.map((run) => points(run, state.axis, state.link))));
  const all = lines.flat();
  const fits = state.log ? all.filter(([x]) => x > 0) : all;
  if (!fits.length) return `<p class="soft">None of these runs has a loss to draw.</p>`;
  const on = (x) => (state.log ? Math.log10(x) : x);
  let x0 = Math.min(...fits.map(([x]) => on(x))), x1 = Math.max(...fits.map(([x]) => on(x)));
  let y0 = Math.min(...fits.map(([, , low]) => low)), y1 = Math.max(...fits.map(([, , , high]) => high));
  if (!state.log) x0 = Math.min(0, x0);
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  const room = (y1 - y0) * 0.05 || 0.5;
  y0 -= room; y1 += room;
  const X = (x) => (left + ((W - left - right) * (on(x) - x0)) / (x1 - x0)).toFixed(1), Y = (y) => (top + ((H - top - bottom) * (y1 - y)) / (y1 - y0)).toFixed(1);
  const unit = state.axis === "bytes" ? "B" : "";
  const say = (v) => (state.axis === "seconds" ? duration(v) : short(v, unit));
  const parts = [];
  const across = state.log ? ticks(Math.ceil(x0 - 1e-9), Math.floor(x1 + 1e-9), 8).filter(Number.isInteger).map((e) => 10 ** e) : ticks(x0, x1, Math.max(2, Math.floor(W / 130)));
  for (const v of across) parts.push(`<path d="M${X(v)} ${top}V${H - bottom}" stroke="var(--line)"/><text x="${X(v)}" y="${H - bottom + 17}" text-anchor="middle">${escape(say(v))}</text>`);
  for (const v of ticks(y0, y1, 5)) parts.push(`<path d="M${left} ${Y(v)}H${W - right}" stroke="var(--line)"/><text x="${left - 7}" y="${Number(Y(v)) + 4}" text-anchor="end">${escape(short(v))}</text>`);
  lines.forEach((line, k) => {
    const shownPart = state.log ? line.filter(([x]) => x > 0) : line;
    if (!shownPart.length) return;
    const colour = state.data.colours[k % state.data.colours.length], runs = groups[k];
    if (runs.length > 1) {
      const edge = [...shownPart.map(([x, , low]) => `${X(x)} ${Y(low)}`), ...shownPart.toReversed().map(([x, , , high]) => `${X(x)} ${Y(high)}`)];
      parts.push(`<path d="M${edge.join("L")}Z" fill="${colour}" fill-opacity="0.22" stroke="${colour}" stroke-width="0.8"/>`);
    }
    const [x, y] = shownPart.at(-1);
    parts.push(`<path d="M${shownPart.map(([x, y]) => `${X(x)} ${Y(y)}`).join("L")}" fill="none" stroke="${colour}" stroke-width="2" stroke-dasharray="${DASHES[k]}"><title>${escape(named(groups, k, state))}</title></path>`);
    parts.push(`<circle cx="${X(x)}" cy="${Y(y)}" r="3.5" fill="${colour}"><title>${escape(`${named(groups, k, state)}: ${short(y)} at ${say(x)}`)}</title></circle>`);
  });
  const losses = new Set(groups.flat().map((run) => run.of));
  const what = losses.size === 1 ? `${[...losses][0]} loss` : "loss (validation, or training where never evaluated)";
  const label = `${what} against ${AXES[state.axis]}`;
  parts.push(`<text x="${(left + W - right) / 2}" y="${H - 8}" text-anchor="middle">${escape(AXES[state.axis])}</text>`);
  parts.push(`<text transform="translate(14 ${(top + H - bottom) / 2}) rotate(-90)" text-anchor="middle">${escape(what)}</text>`);
  return `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${escape(label)}" font-size="12" fill="var(--ink)" font-family="system-ui, sans-serif">${parts.join("")}</svg>`;
}

/** What tells the settings of a picture apart. */
function named(groups, k, state) {
  const firsts = groups.map((runs) => runs[0]), run = firsts[k];
  const tell = differing(firsts, state).filter((key) => valueOf(run, key, state) != null).slice(0, 3).map((key) => `${key.replace(/^method\./, "")}=${shown(valueOf(run, key, state))}`);
  const fork = run.summary.origin ? [`fork after step ${run.summary.forked.toLocaleString("en")}`] : [];
  const seeds = groups[k].length > 1 ? [`${groups[k].length} seeds`] : [];
  return [run.summary.name || run.summary.method, ...tell, ...fork, ...seeds].join(" · ");
}

/** Whether the ground behind an element is dark; undefined where there is none. */
function darkBehind(el) {
  for (let at = el; at; at = at.parentElement ?? at.getRootNode().host) {
    const [r, g, b, alpha = 1] = (getComputedStyle(at).backgroundColor.match(/[\d.]+/g) || []).map(Number);
    if (alpha > 0.5 && Number.isFinite(b)) return 0.2126 * r + 0.7152 * g + 0.0722 * b < 128;
  }
  return undefined;
}

// --- the page ----------------------------------------------------------------------------------------------------------

export function mount(el, data, ask = null) {
  const state = {
    data, filter: "", sort: "changed", down: true, axis: "step", log: false, picked: new Set(), only: false, rows: PAGE, more: new Set(),
    link: { bits: data.link.bits_per_second, latency: data.link.latency_seconds }, code: "", step: null, changes: "",
  };
  const root = document.createElement("section"), unique = `runs-${(tables += 1)}`;
  const codeButton = (what) => `<button type="button" data-do="${what}" aria-expanded="false" aria-controls="${unique}-code"
      title="Shows what to run in a terminal or a notebook; nothing is started here">Code to ${what}</button>`;
  root.className = "runs";
  root.setAttribute("aria-label", "Runs");
  root.innerHTML = `<style>${STYLE}</style><h2>Runs</h2><p class="answer" role="status"></p><p class="soft note"></p>
    <form><label class="wide">filter<input type="search" name="filter" autocomplete="off" placeholder="method=des_loc seed<3 lr>=0.001" aria-describedby="${unique}-hint"></label>
      <label>loss against<select name="axis">${Object.entries(AXES).map(([key, words]) => `<option value="${key}">${words}</option>`).join("")}</select></label>
      <label>Mbit/s of a link<input type="number" name="mbit" min="0.001" step="any"></label>
      <label>latency, ms<input type="number" name="ms" min="0" step="any"></label>
      <label class="beside"><input type="checkbox" name="log"> logarithmic</label></form>
    <p class="soft" id="${unique}-hint">Filter by words, or by fields with = != &lt; &lt;= &gt; &gt;= and ~ (contains); * stands for anything, lr for method.inner.lr.</p>
    <div class="pic"></div><ul class="key"></ul>
    <div class="bar"><button type="button" data-do="compare" title="Only the chosen runs, and code that compares them">Compare</button>${GIVES.map(codeButton).join("")}
      ${ask ? '<button type="button" data-do="again" title="Read what has changed in the folders of runs">Look again</button>' : ""}<span class="soft picked"></span></div>
    <p class="soft said" role="status"></p><div class="code" id="${unique}-code" role="region" aria-label="Code" hidden></div>
    <div class="scroll" tabindex="0" role="region" aria-label="Table of runs"><table><thead></thead><tbody></tbody></table></div>
    <div class="bar"><button type="button" data-do="rows">Show more rows</button><span class="soft counted"></span></div>
    <details class="columns"><summary>Columns</summary><fieldset></fieldset></details>`;
  el.replaceChildren(root);
  const $ = (selector) => root.querySelector(selector), form = $("form");
  form.mbit.value = state.link.bits / 1e6;
  form.ms.value = state.link.latency * 1e3;

  function keys() {
    const all = new Set([...BASE, "id", "where", "model", "data", "workers", "origin", ...Object.keys(state.data.defaults)]);
    for (const run of state.data.runs) for (const key in run.fields) all.add(key);
    return [...all];
  }
  let known = keys();
  const texts = new Map();
  function look(run) {
    if (!texts.has(run)) {
      const { summary } = run;
      texts.set(run, [summary.run, summary.name, summary.method, summary.model, summary.data, summary.status, summary.origin, run.where,
        ...Object.entries(run.fields).map(([key, value]) => `${key}=${shown(value)}`)].join(" ").toLowerCase());
    }
    return texts.get(run);
  }

  function chosen() {
    if (state.only) return state.data.runs.filter((run) => state.picked.has(idOf(run)));
    const terms = parsed(state.filter, known);
    return state.data.runs.filter((run) => terms.every((term) => term(run, look, state)));
  }
  const idOf = (run) => `${run.where}/${run.summary.path}`;

  function draw() {
    let runs;
    try { runs = chosen(); } catch (error) { $(".answer").textContent = `${error.message}.`; return; }
    const rows = sorted(runs, state.sort, state.down, state), apart = differing(runs, state);
    const columns = [...BASE, ...apart.filter((key, k) => k < WIDE || state.more.has(key))];
    state.shown = rows;
    $(".answer").textContent = answer(runs, state);
    $(".note").textContent = state.data.missing ? `${plural(state.data.missing, "run")} more are being read.` : "";
    const groups = drawn(rows, state), settings = new Set(runs.filter((run) => run.curve.loss?.length).map((run) => run.settings)).size;
    $(".pic").innerHTML = picture(groups, state, root.clientWidth - 24);
    $(".key").innerHTML = groups.map((_, k) => `<li><svg viewBox="0 0 34 12" aria-hidden="true"><path d="M1 6H33" stroke="${state.data.colours[k]}" stroke-width="3" stroke-dasharray="${DASHES[k]}"/></svg>${escape(named(groups, k, state))}</li>`).join("")
      + (settings > groups.length ? `<li class="soft">drawn: the first ${groups.length} of ${settings.toLocaleString("en")} settings, in the order of the table; a band is from the lowest to the highest of several seeds</li>` : "");
    $("thead").innerHTML = `<tr><th scope="col"><span class="soft" style="padding:5px 8px" aria-label="chosen">✓</span></th>${columns.map((key) => `<th scope="col" aria-sort="${state.sort === key ? (state.down ? "descending" : "ascending") : "none"}" class="${NUMBERS.has(key) ? "num" : ""}"><button type="button" data-sort="${escape(key)}" title="${escape(key)}">${escape(key.replace(/^method\./, ""))}${state.sort === key ? (state.down ? " ▾" : " ▴") : ""}</button></th>`).join("")}</tr>`;
    $("tbody").innerHTML = rows.slice(0, state.rows).map((run) => row(run, columns)).join("");
    $('[data-do="rows"]').hidden = rows.length <= state.rows;
    $(".counted").textContent = rows.length > state.rows ? `${state.rows.toLocaleString("en")} of ${plural(rows.length, "row")} shown` : "";
    $(".columns").hidden = apart.length <= WIDE;
    $(".columns fieldset").innerHTML = apart.slice(WIDE).map((key) => `<label class="beside"><input type="checkbox" data-column="${escape(key)}" ${state.more.has(key) ? "checked" : ""}>${escape(key)}</label>`).join("");
    buttons();
  }

  function row(run, columns) {
    const id = idOf(run), picked = state.picked.has(id), name = valueOf(run, "run", state);
    const cell = (key) => {
      const value = valueOf(run, key, state);
      const text = key === "loss" ? (Number.isFinite(value) ? value.toFixed(4) : "–") : key === "bytes" ? (value === null ? "–" : human(value)) : key === "seconds" ? duration(value ?? NaN)
        : key === "steps" ? `${value === null ? "–" : value.toLocaleString("en")}${value !== run.summary.steps ? ` of ${run.summary.steps.toLocaleString("en")}` : ""}` : key === "seed" ? String(value) : shown(value);
      const more = key === "run" ? `${run.where}/${run.summary.path}${run.summary.origin ? `, forked from ${run.summary.origin} after step ${run.summary.forked}` : ""}` : key === "status" ? run.summary.problem : text.length > 24 ? text : "";
      return `<td class="${NUMBERS.has(key) ? "num" : ""}"${more ? ` title="${escape(more)}"` : ""}>${escape(text)}${key === "run" && run.summary.origin ? ` <span class="soft">fork @${run.summary.forked}</span>` : ""}</td>`;
    };
    return `<tr class="${picked ? "picked" : ""}"><td><input type="checkbox" data-run="${escape(id)}" aria-label="choose ${escape(name)}" ${picked ? "checked" : ""}></td>${columns.map(cell).join("")}</tr>`;
  }

  function buttons() {
    const num = state.picked.size;
    for (const button of root.querySelectorAll("[data-do]")) {
      const what = button.dataset.do;
      button.disabled = what === "compare" ? num < 1 && !state.only : GIVES.includes(what) ? num !== 1 : false;
      if (GIVES.includes(what)) button.setAttribute("aria-expanded", String(what === state.code));
    }
    $('[data-do="compare"]').textContent = state.only ? "Show all again" : "Compare";
    $(".picked").textContent = num ? `${plural(num, "run")} chosen` : "Choose runs in the table: one for code to replay, export or fork it, several to compare.";
  }

  const path = (run) => idOf(run);
  const quoted = (text) => (/^[\w./@=+,:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const python = (text) => JSON.stringify(text);

  /** What does the same in a terminal and in a notebook. */
  function code(what, runs) {
    const [run] = runs, at = path(run);
    const link = `${state.link.bits / 1e6}Mbit,${state.link.latency * 1e3}ms`;
    if (what === "compare") return [`lab compare ${runs.map((r) => quoted(path(r))).join(" ")} --network ${link}`, `for name in ${python(runs.map(path))}:\n    print(name, lab.Columns.of(lab.find_run(name).events()))`];
    if (what === "replay") return [`lab replay ${quoted(at)} --speed 10`, `lab.replay(${python(at)}, speed=10)`];
    if (what === "export") return [`lab export ${quoted(at)} ${quoted("exported/" + run.summary.run)}`, `from pathlib import Path\nfrom lab.runs.export import export_run\nexport_run(lab.find_run(${python(at)}), Path(${python("exported/" + run.summary.run)}))`];
    const changes = state.changes.match(/(?:[^\s"]|"[^"]*")+/g) || [];
    return [`lab fork ${quoted(at)} --step ${state.step}${changes.map((c) => ` -o ${quoted(c)}`).join("")}`,
      `fork = lab.fork(${python(at)}, ${state.step}, ${python(changes)})\nrun = lab.start(fork.recipe(), folder=fork.path)`];
  }

  function say(words) { $(".said").textContent = words; }

  function showCode(what) {
    const runs = state.data.runs.filter((run) => state.picked.has(idOf(run))), box = $(".code"), steps = runs[0]?.saved ?? [];
    state.code = what;
    box.hidden = !what;
    buttons();
    say(what && `Below: code to ${what} ${runs.length === 1 ? valueOf(runs[0], "run", state) : plural(runs.length, "run")}, for a terminal and for a notebook.`);
    if (!what) return;
    if (what === "fork" && !steps.length) {
      box.innerHTML = `<p>${escape(valueOf(runs[0], "run", state))} has no checkpoint to fork from: run it with checkpoint_every above 0, and keep_every for more than the last two.</p>`;
      return;
    }
    state.step = steps.includes(state.step) ? state.step : (steps.filter((s) => s < runs[0].summary.steps).at(-1) ?? steps.at(-1));
    const fork = what !== "fork" ? "" : `<div class="bar"><label>after step<select data-fork="step">${steps.map((s) => `<option ${s === state.step ? "selected" : ""}>${s}</option>`).join("")}</select></label>
      <label class="wide">what is other<input data-fork="changes" placeholder="method.inner.lr=0.001 steps=400" value="${escape(state.changes)}"></label></div>`;
    box.innerHTML = `${fork}<label>in a terminal<textarea readonly rows="2" data-code="0"></textarea></label><label>in a notebook (import lab)<textarea readonly rows="3" data-code="1"></textarea></label>
      <button type="button" data-copy="0">Copy for the terminal</button> <button type="button" data-copy="1">Copy for the notebook</button>`;
    fill();
    function fill() { code(what, runs).forEach((text, k) => { box.querySelector(`[data-code="${k}"]`).value = text; }); }
    box.oninput = (event) => {
      if (event.target.dataset.fork === "step") state.step = Number(event.target.value);
      if (event.target.dataset.fork === "changes") state.changes = event.target.value;
      fill();
    };
    box.onclick = async (event) => {
      const k = event.target.dataset?.copy;
      if (k === undefined) return;
      const area = box.querySelector(`[data-code="${k}"]`);
      let copied = true;
      try { await navigator.clipboard.writeText(area.value); } catch { area.select(); copied = false; }
      say(copied ? `Copied for the ${k === "0" ? "terminal" : "notebook"}: ${area.value.split("\n")[0]}` : "This page may not copy by itself. It is selected: copy it with Ctrl+C.");
    };
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    state.filter = form.filter.value;
    state.axis = form.axis.value;
    state.log = form.log.checked;
    if (Number(form.mbit.value) > 0) state.link.bits = Number(form.mbit.value) * 1e6;
    if (form.ms.value !== "" && Number(form.ms.value) >= 0) state.link.latency = Number(form.ms.value) / 1e3;
    state.only = false;
    state.rows = PAGE;
    draw();
    if (state.code === "compare") showCode("");
  });
  root.addEventListener("change", (event) => {
    const { run, column } = event.target.dataset ?? {};
    if (run !== undefined) {
      state.picked[event.target.checked ? "add" : "delete"](run);
      event.target.closest("tr").classList.toggle("picked", event.target.checked);
      buttons();
      showCode("");
    }
    if (column !== undefined) { state.more[event.target.checked ? "add" : "delete"](column); draw(); $(`[data-column="${CSS.escape(column)}"]`)?.focus(); }
  });
  root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.sort !== undefined) {
      const key = button.dataset.sort;
      state.down = state.sort === key ? !state.down : false;
      state.sort = key;
      draw();
      $(`[data-sort="${CSS.escape(key)}"]`)?.focus(); // the head was drawn anew
    }
    const what = button?.dataset.do;
    if (what === "again") ask({ ask: "again" });
    if (what === "rows") { state.rows += PAGE; draw(); }
    if (what === "compare") { state.only = !state.only; draw(); showCode(state.only ? "compare" : ""); }
    if (GIVES.includes(what)) showCode(state.code === what ? "" : what);
  });

  /** As dark as what is around it: by JupyterLab's word, else by the ground behind, else by the system. */
  function theme() {
    const jupyter = document.body.dataset.jpThemeLight;
    root.classList.toggle("dark", jupyter !== undefined ? jupyter === "false" : (darkBehind(el) ?? matchMedia("(prefers-color-scheme: dark)").matches));
  }
  theme();
  const seen = new MutationObserver(theme), media = matchMedia("(prefers-color-scheme: dark)");
  seen.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  media.addEventListener("change", theme);
  let width = 0;
  const resized = new ResizeObserver(() => { if (Math.abs(root.clientWidth - width) > 8) { width = root.clientWidth; draw(); } });
  resized.observe(root);
  draw();
  return {
    update(newer) { state.data = newer; known = keys(); texts.clear(); draw(); },
    leave() { seen.disconnect(); resized.disconnect(); media.removeEventListener("change", theme); },
  };
}

export default {
  render({ model, el }) {
    const view = mount(el, model.get("runs"), (message) => model.send(message));
    const changed = () => view.update(model.get("runs"));
    model.on("change:runs", changed);
    return () => { model.off("change:runs", changed); view.leave(); };
  },
};
