// Draws a board of pictures on canvases, one canvas a picture.
//
// What is drawn was decided in Python: series, scales, ticks, colours, words. Here it gets pixels, the theme's colours, a
// readout of the nearest point or cell, and a closer look. Live, numbers that may be many are in columns, which grow;
// `widgets/canvas.py` says which messages go to and fro, and a page that is loaded again finds all of it in the model's one
// trait. At rest (`rest`, below) all of it is one JSON object, which `widgets/resting.py` makes.

const FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif";
const THREE = 900; // from this width on, pictures may stand three in a row,
const TWO = 640; // and from this one on two
const NARROW = 640; // below it, the legend stands above the curves
const LEGEND = 0.3; // of a picture that a legend beside its curves may take; pictures.py
const EDGE = 0.75; // pixels of the edge of a band; pictures.py
const PLANNED = 0.4; // how high what is planned is in a legend; timelines.py

const CELL = ".jp-OutputArea, .cell_container, .cell"; // what holds the pictures of one cell: in JupyterLab, in VS Code, on our pages

const REST =
  "The run has ended. This page cannot change its cell by itself (it was loaded again meanwhile): show the view in a new cell, " +
  "and the notebook keeps its picture.";

const STYLE = `
.isthmus-board { position: relative; display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0 16px; padding: 4px 0; font-family: ${FONT}; }
.jp-OutputArea:has(.isthmus-large) .isthmus-rest { zoom: 1.5; }
.isthmus-board h3 { grid-column: 1 / -1; margin: 2px 0 4px 14px; font-size: 16px; font-weight: 600; line-height: 1.3; }
.isthmus-board p, .isthmus-controls { grid-column: 1 / -1; margin: 0 14px 6px; font-size: 13px; }
.isthmus-board p.isthmus-answer { font-size: 14px; line-height: 1.4; }
.isthmus-board p[hidden] { display: none; }
.isthmus-controls { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.isthmus-controls:empty { display: none; }
.isthmus-controls select, .isthmus-controls input { font: inherit; color: var(--jp-content-font-color1, CanvasText); background: var(--jp-layout-color1, Canvas); padding: 2px 4px;
  border: 1px solid var(--jp-content-font-color2, currentColor); border-radius: 3px; margin-left: 6px; max-width: 15em; }
.isthmus-compact h3 { grid-column: 1 / span 3; margin: 0 0 1px 14px; font-size: 14px; }
.isthmus-compact .isthmus-controls { grid-column: 4 / -1; grid-row: 1; justify-content: flex-end; margin: 0; }
.isthmus-board.isthmus-compact p.isthmus-answer { font-size: 13px; margin-bottom: 0; line-height: 1.3; }
.isthmus-compact.isthmus-board { padding: 2px 0 0; }
.isthmus-compact .isthmus-panel { border: 0; padding: 0; }
.isthmus-compact .isthmus-controls input { width: 8em; }
.isthmus-panel { position: relative; min-width: 0; }
.isthmus-panel canvas { display: block; width: 100%; }
.isthmus-panel canvas:focus-visible { outline: 2px solid var(--jp-brand-color1, currentColor); outline-offset: -2px; }
.isthmus-whole { position: absolute; z-index: 2; top: 1px; right: 4px; font: inherit; font-size: 13px; padding: 0 8px; border-radius: 3px;
  color: var(--jp-content-font-color1, CanvasText); background: var(--jp-layout-color1, Canvas); border: 1px solid var(--jp-content-font-color2, currentColor); cursor: pointer; }
.isthmus-whole[hidden] { display: none; }
.isthmus-readout { position: absolute; z-index: 3; pointer-events: none; width: max-content; max-width: 340px; padding: 5px 9px; border-radius: 4px;
  font-size: 13px; line-height: 1.4; white-space: pre-line; box-shadow: 0 1px 5px rgba(0, 0, 0, 0.3); }
`;

const mixer = document.createElement("canvas").getContext("2d");

/** Red, green, blue and alpha, each from 0 to 1, of any colour that CSS knows. */
function mixed(colour) {
  mixer.fillStyle = "#fff";
  mixer.fillStyle = colour;
  const whole = mixer.fillStyle;
  if (whole.startsWith("#")) return [...whole.match(/\w\w/g).map((v) => parseInt(v, 16) / 255), 1];
  const [r, g, b, alpha] = whole.match(/[\d.]+/g).map(Number);
  return [r / 255, g / 255, b / 255, alpha];
}

/** How light a colour is on a ground (relative luminance of WCAG 2). */
function light(colour, ground) {
  const [above, below] = [mixed(colour), mixed(ground)];
  const seen = [0, 1, 2].map((k) => above[3] * above[k] + (1 - above[3]) * below[k]);
  const [r, g, b] = seen.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/**
 * The colours of the notebook's theme; without Jupyter, of the page. The ground is what is really behind: VS Code lays white behind every
 * widget, in its dark themes too. Words that could not be read on it are black or white.
 */
function theme(el) {
  const css = getComputedStyle(el);
  const of = (name, fallback) => css.getPropertyValue(name).trim() || fallback;
  let [ground, at] = ["", el];
  for (; at && !ground; at = at.parentElement ?? at.getRootNode().host) {
    const { backgroundColor } = getComputedStyle(at);
    if (mixed(backgroundColor)[3] > 0.5) ground = backgroundColor;
  }
  ground ||= of("--jp-layout-color0", "#fff");
  const behind = light(ground, ground);
  const readable = (colour) => {
    const [a, b] = [light(colour, ground) + 0.05, behind + 0.05];
    return Math.max(a / b, b / a) >= 4.5 ? colour : behind > 0.18 ? "#000" : "#fff";
  };
  const ink = readable(of("--jp-content-font-color1", css.color));
  return { ink, ground, soft: readable(of("--jp-content-font-color2", ink)), grid: "rgba(128, 128, 128, 0.25)" };
}

/** A number in so many digits; `short` in axes.py is the same rule. */
function short(v, unit, digits = 4) {
  if (!Number.isFinite(v) || (v === 0 && !unit)) return String(v);
  v = Number(v.toPrecision(digits));
  if (unit) {
    const [size, prefix] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [0, ""]].find(([size]) => Math.abs(v) >= size);
    return `${Number((v / (size || 1)).toPrecision(digits))} ${prefix}${unit}`;
  }
  for (const [limit, size, unit] of [[1e12, 1e12, "T"], [1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]])
    if (Math.abs(v) >= limit) return Number((v / size).toPrecision(digits)) + unit;
  return Math.abs(v) < 1e-4 ? v.toExponential() : String(v);
}

const say = (pattern, words) => pattern.replace(/\{(\w+)\}/g, (whole, key) => (key in words ? words[key] : whole));

/** 0 at the low end of an axis, 1 at its high end; not finite where a logarithm has no place for it. */
function at(axis, v) {
  return ((axis.log ? Math.log10(v) : v) - axis.low) / (axis.high - axis.low);
}

/** Round places along an axis; `Axis.ticks` in axes.py is the same rule. */
function ticks({ low, high, log, whole }) {
  const upTo = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, k) => from + k);
  if (log) {
    const powers = upTo(Math.ceil(low), Math.floor(high)).map((k) => 10 ** k);
    if (powers.length >= 2) return powers.filter((_, k) => k % Math.max(1, Math.floor(powers.length / 7)) === 0);
    const near = upTo(Math.floor(low), Math.ceil(high)).flatMap((k) => [1, 2, 5].map((m) => m * 10 ** k));
    return near.filter((v) => low <= Math.log10(v) && Math.log10(v) <= high);
  }
  const raw = (high - low) / 6;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * size).find((v) => v >= raw) ?? 10 * size;
  const even = whole ? Math.max(1, Math.ceil(step)) : step;
  return upTo(Math.ceil(low / even), Math.floor(high / even)).map((k) => even * k);
}

/** Ticks in as many digits as they need; `Axis.said` in axes.py is the same rule. */
function said(axis) {
  const places = ticks(axis);
  const near = (places[1] - places[0]) / 100;
  let digits = 4;
  while (digits < 8 && places.some((v) => Math.abs(v.toPrecision(digits) - v) > near)) digits++;
  return { digits, ticks: places.map((v) => [at(axis, v), short(v, axis.unit, digits)]) };
}

/** A part of an axis; all of it where `ends` is null, or lies elsewhere. */
function part(axis, ends) {
  const [low, high] = ends ? [Math.max(ends[0], axis.low), Math.min(ends[1], axis.high)] : [0, 0];
  if (!(low < high)) return axis;
  const closer = { ...axis, low, high, cut: true };
  return { ...closer, ...said(closer) };
}

/** What is drawn stays within its box; sideways of it where more goes on there. */
function within({ g, spec }, box, draw) {
  const [aside, above] = [spec.x.cut ? 0 : 4, spec.y?.cut ? 0 : 4]; // for the ends of thick lines
  g.save();
  g.beginPath();
  g.rect(box.left - aside, box.top - above, box.right - box.left + 2 * aside, box.bottom - box.top + 2 * above);
  g.clip();
  draw();
  g.restore();
}

/** Words broken into lines that fit. */
function wrap(g, words, width) {
  const lines = [];
  for (const paragraph of words.split("\n")) {
    let line = "";
    for (const word of paragraph.split(" ")) {
      const longer = line ? line + " " + word : word;
      if (line && g.measureText(longer).width > width) {
        lines.push(line);
        line = word;
      } else line = longer;
    }
    lines.push(line);
  }
  return lines;
}

/** Title, and the box that is left for the picture. */
function titled(p, left, right, below = 44) {
  const { g, width, height, colours } = p;
  g.textAlign = "left";
  g.textBaseline = "alphabetic";
  g.fillStyle = colours.ink;
  g.font = `600 14px ${FONT}`;
  const { time } = p.spec;
  const lines = time?.compact && p.alone ? [] : wrap(g, p.spec.title, width - 28);
  lines.forEach((line, k) => g.fillText(line, 14, 22 + 17 * k));
  g.font = `12px ${FONT}`;
  if (time) [left, right] = time.sides;
  const top = (lines.length ? 21 : 8) + 17 * lines.length;
  return { left, right: Math.max(left + 20, width - right), top, bottom: height - (time?.compact ? 22 : below) };
}

/** What happened when, the same in all pictures over one time axis: who was down, which knob was turned, syncs. */
function moments(p, box, said) {
  const { g, spec, colours } = p;
  if (!spec.time) return;
  const { syncs, knobs, outages, colours: [knob, outage, band] } = spec.time;
  const across = (v) => box.left + (box.right - box.left) * at(spec.x, v);
  g.save();
  g.fillStyle = band;
  g.strokeStyle = outage;
  g.lineWidth = 1;
  for (const [first, last] of outages) {
    const place = [across(first - 1), box.top, Math.max(1, across(last) - across(first - 1)), box.bottom - box.top];
    g.fillRect(...place);
    g.strokeRect(...place);
  }
  g.fillStyle = colours.soft;
  let free = -Infinity;
  for (const v of p.column(syncs)) {
    const x = across(v);
    if (x < free) continue;
    g.fillRect(x - 0.5, box.bottom - 6, 1, 6);
    free = x + 3;
  }
  g.strokeStyle = knob;
  g.fillStyle = colours.ink;
  g.lineWidth = 1.2;
  g.font = `12px ${FONT}`;
  g.textAlign = "left";
  g.setLineDash([5, 3]);
  let end = p.width; // of words that stand close to each other the last are there
  for (const [v, words] of [...knobs].reverse()) {
    const x = across(v);
    line(g, [[x, box.top], [x, box.bottom]]);
    if (!said || x + g.measureText(words).width + 10 > end) continue;
    g.fillText(words, x + 4, box.top + 10);
    end = x;
  }
  g.restore();
}

/** What the marks under the pointer say, if it is near one at the edge of the picture where they are. */
function moment(p, box, x, y) {
  if (!p.spec.time) return null;
  const across = (v) => box.left + (box.right - box.left) * at(p.spec.x, v);
  const { knobs, outages } = p.spec.time;
  if (y < box.top || y > box.top + 16) return null;
  const turned = knobs.filter(([v]) => Math.abs(across(v) - x) < 5).map(([v, words]) => `${words} from step ${v}`);
  const away = outages.filter(([a, b]) => across(a - 1) <= x && x <= across(b)).map(([a, b, words]) => `${words} in steps ${a} to ${b}`);
  const words = [...turned, ...away].join("\n");
  return words ? { x, y, words } : null;
}

/** Titles of axes, in two lines where one is too long; a second line takes its room from the box. */
function labels(p, box, x, y, most = 2) {
  const { g, height, colours } = p;
  g.fillStyle = colours.ink;
  g.font = `13px ${FONT}`;
  g.textAlign = "center";
  const row = p.spec.time?.compact; // the words at the left of the numbers, which costs no height
  if (row) {
    g.textAlign = "right";
    g.fillText("local step", box.left - 10, box.bottom + 16);
    g.textAlign = "center";
  }
  const below = x && !row ? broken(g, x, p.width - 8, most) : [];
  const beside = y ? broken(g, y, height - 34, row ? 3 : 2) : [];
  if (beside.length > 1 && !p.spec.time) box.left += 14;
  if (below.length > 1 && most === 2) box.bottom -= 8;
  below.forEach((words, k) =>
    g.fillText(words, between(g, words, (box.left + box.right) / 2, 4, p.width - 4), height - (below.length === 1 ? 9 : 3 + 13 * (below.length - 1 - k))),
  );
  beside.forEach((words, k) => upwards(g, words, 13 + 14 * k, between(g, words, (box.top + box.bottom) / 2, 30, height - 4)));
  g.font = `12px ${FONT}`;
  g.fillStyle = colours.soft;
}

/** At most so many lines that fit; what is longer ends with an ellipsis. */
function broken(g, words, width, most) {
  const lines = wrap(g, words, width);
  if (lines.length <= most) return lines;
  const last = lines[most - 1].split(" ");
  while (last.length > 1 && g.measureText(`${last.join(" ")} …`).width > width) last.pop();
  return [...lines.slice(0, most - 1), `${last.join(" ")} …`];
}

/** Where the middle of words lies that stay between two ends. */
function between(g, words, middle, first, last) {
  const half = g.measureText(words).width / 2;
  return Math.min(Math.max(middle, first + half), Math.max(last - half, (first + last) / 2));
}

function upwards(g, words, x, y) {
  g.save();
  g.translate(x, y);
  g.rotate(-Math.PI / 2);
  g.textAlign = "center";
  g.fillText(words, 0, 0);
  g.restore();
}

/** Grid lines and numbers of the horizontal axis; where numbers would touch, one in so many is written. */
function ticksBelow(p, box, axis) {
  const { g, colours } = p;
  g.textAlign = "center";
  g.strokeStyle = colours.grid;
  g.fillStyle = colours.soft;
  g.lineWidth = 1;
  const places = axis.ticks.map(([where, label]) => [box.left + (box.right - box.left) * where, label, g.measureText(label).width / 2]);
  const touch = (every) => places.some(([x, , half], k) => k >= every && k % every === 0 && x - half < places[k - every][0] + places[k - every][2] + 6);
  let every = 1;
  while (every < places.length && touch(every)) every++;
  places.forEach(([x, label], k) => {
    line(g, [[x, box.top], [x, box.bottom]]);
    if (k % every === 0) g.fillText(label, x, box.bottom + 16);
  });
}

/** Words over what is drawn, on a seam of the ground. */
function over({ g, colours }, words, x, y) {
  g.save();
  g.setLineDash([]);
  g.lineJoin = "round";
  g.lineWidth = 4;
  g.strokeStyle = colours.ground;
  g.strokeText(words, x, y);
  g.restore();
  g.fillText(words, x, y);
}

function line(g, points) {
  g.beginPath();
  points.forEach(([x, y], k) => (k ? g.lineTo(x, y) : g.moveTo(x, y)));
  g.stroke();
}

/**
 * Where a line goes: [x, y, which point] in pixels, null for a gap. Of all points in a column of pixels the lowest and the
 * highest are kept, and the last of all.
 */
function trace(xs, ys, spec, box) {
  const [out, wide, tall] = [[], box.right - box.left, box.bottom - box.top];
  let n = Math.min(xs.length, ys.length);
  while (n && xs[n - 1] > (spec.until ?? Infinity)) n--; // what comes later is not there yet
  let [column, low, high] = [NaN, null, null];
  const flush = () => {
    if (low && low !== high) out.push(...(low[2] < high[2] ? [low, high] : [high, low]));
    else if (low) out.push(low);
    low = high = null;
  };
  for (let i = 0; i < n; i++) {
    const [fx, fy] = [at(spec.x, xs[i]), at(spec.y, ys[i])];
    if (!Number.isFinite(fx) || !Number.isFinite(fy)) {
      flush();
      if (out.length && out[out.length - 1]) out.push(null);
      continue;
    }
    const q = [box.left + wide * fx, box.bottom - tall * fy, i];
    if (Math.floor(q[0]) !== column) flush();
    column = Math.floor(q[0]);
    if (!low || q[1] > low[1]) low = q; // downwards is more
    if (!high || q[1] < high[1]) high = q;
    if (i === n - 1 && q !== low && q !== high) {
      flush();
      out.push(q);
    }
  }
  flush();
  return out;
}

function colourBar({ g, colours }, box, shades, scale) {
  const [x, each] = [box.right + 12, (box.bottom - box.top) / shades.length];
  shades.forEach((colour, k) => {
    g.fillStyle = colour;
    g.fillRect(x, box.bottom - each * (k + 1), 11, each + 0.5);
  });
  g.fillStyle = colours.soft;
  g.textAlign = "left";
  for (const [where, label] of scale.ticks) g.fillText(label, x + 15, box.bottom - (box.bottom - box.top) * where + 4);
  g.fillStyle = colours.ink;
  g.font = `13px ${FONT}`;
  upwards(g, scale.label, x + 54, (box.top + box.bottom) / 2);
}

// Each of these draws one kind of picture and returns what the pointer finds: (x, y) → {x, y, words, ring?} or null.

const KINDS = {
  lines(p) {
    const { g, spec, width, colours } = p;
    const named = spec.series.filter((s, k) => !s.faint && spec.series.findIndex((o) => !o.faint && o.name === s.name) === k);
    g.font = `13px ${FONT}`;
    const room = Math.max(170, ...named.map((s) => g.measureText(s.name).width + 44)); // for a legend beside the curves
    const beside = width >= NARROW && !spec.time && room <= LEGEND * width;
    const box = titled(p, 62, beside ? room : 18);
    g.font = `13px ${FONT}`;
    let [x0, y0] = beside ? [box.right + 14, box.top + 10] : [box.left, box.top + 3];
    for (const s of named) {
      const needs = g.measureText(s.name).width + 36;
      if (!beside && x0 > box.left && x0 + needs > width) [x0, y0] = [box.left, y0 + 17];
      stroke(g, s);
      line(g, [[x0, y0], [x0 + 18, y0]]);
      g.setLineDash([]);
      g.fillStyle = colours.ink;
      g.fillText(s.name, x0 + 24, y0 + 4);
      if (beside) y0 += 20;
      else x0 += needs;
    }
    if (!beside && named.length) box.top = y0 + 13;
    labels(p, box, spec.x.label, spec.y.label);
    ticksBelow(p, box, spec.x);
    g.textAlign = "right";
    for (const [where, label] of spec.y.ticks) {
      const y = box.bottom - (box.bottom - box.top) * where;
      line(g, [[box.left, y], [box.right, y]]);
      g.fillText(label, box.left - 6, y + 4);
    }
    p.box = box;
    within(p, box, () => moments(p, box, true));
    const bands = () => {
      for (const b of spec.bands || []) {
        const [xs, low, high] = [p.column(b.x), p.column(b.low), p.column(b.high)];
        const where = (v, k) => [box.left + (box.right - box.left) * at(spec.x, xs[k]), box.bottom - (box.bottom - box.top) * at(spec.y, v)];
        g.fillStyle = g.strokeStyle = b.colour;
        g.lineWidth = EDGE;
        g.setLineDash([]);
        let piece = [];
        for (let k = 0; k <= Math.min(xs.length, low.length, high.length); k++) {
          if (Number.isFinite(low[k]) && Number.isFinite(high[k]) && k < xs.length) piece.push(k);
          else if (piece.length) {
            g.beginPath();
            for (const i of piece) g.lineTo(...where(low[i], i));
            for (const i of piece.reverse()) g.lineTo(...where(high[i], i));
            g.closePath();
            g.globalAlpha = b.strength;
            g.fill();
            g.globalAlpha = 1;
            g.stroke();
            piece = [];
          }
        }
        g.fillStyle = colours.soft;
      }
    };
    within(p, box, bands);
    const traces = spec.series.map((s) => trace(p.column(s.x), p.column(s.y), spec, box));
    within(p, box, () =>
      spec.series.forEach((s, k) => {
        stroke(g, s);
        g.beginPath();
        traces[k].forEach((q, i) => {
          if (!q) return;
          if (i && traces[k][i - 1]) g.lineTo(q[0], q[1]);
          else {
            g.moveTo(q[0], q[1]);
            g.lineTo(q[0] + 0.01, q[1]); // a point between two gaps shows as a dot
          }
        });
        g.stroke();
        g.setLineDash([]);
        if (s.marked) for (const q of traces[k]) if (q) dot(g, q, 3, s.colour);
      }),
    );
    if (spec.floor && at(spec.y, spec.floor[0]) >= 0 && at(spec.y, spec.floor[0]) <= 1) {
      const y = box.bottom - (box.bottom - box.top) * at(spec.y, spec.floor[0]);
      g.strokeStyle = g.fillStyle = colours.soft;
      g.lineWidth = 1;
      g.setLineDash([2, 4]);
      line(g, [[box.left, y], [box.right, y]]);
      g.setLineDash([]);
      g.textAlign = "right";
      over(p, spec.floor[1], box.right - 4, y - 5);
    }
    return (x, y) => {
      const happened = moment(p, box, x, y);
      if (happened) return happened;
      let best = null;
      let near = Infinity;
      spec.series.forEach((s, k) => {
        if (!s.speaks) return;
        for (const q of traces[k]) {
          if (!q || q[0] < box.left - 4 || q[0] > box.right + 4 || q[1] < box.top - 4 || q[1] > box.bottom + 4) continue;
          const far = Math.hypot(q[0] - x, q[1] - y) + (s.faint ? 4 : 0);
          if (far < near) [near, best] = [far, [s, q]];
        }
      });
      if (!best) return null;
      const [s, q] = best;
      const words = { name: s.name, x: short(p.column(s.x)[q[2]], spec.x.unit, spec.x.digits), y: short(p.column(s.y)[q[2]], spec.y.unit, spec.y.digits) };
      return { x: q[0], y: q[1], words: say(spec.hover, words), mark: () => dot(g, q, 5, s.colour, colours.ground) };
    };
  },

  bars(p) {
    const { g, spec, colours } = p;
    g.font = `13px ${FONT}`;
    const said = Math.max(...spec.bars.map((b) => g.measureText(b.label).width), 0);
    const most = Math.max(60, 0.75 * p.width - 34 - said); // pixels of a name, so that bars keep a quarter; longer ones are broken
    const named = spec.bars.map((b) => broken(g, b.name, most, 2));
    const names = Math.max(50, ...named.flat().map((words) => g.measureText(words).width));
    const box = titled(p, names + 20, Math.max(Math.min(150, p.width / 4), said + 14));
    labels(p, box, spec.x.label);
    ticksBelow(p, box, spec.x);
    const each = (box.bottom - box.top) / Math.max(1, spec.bars.length);
    g.font = `13px ${FONT}`;
    spec.bars.forEach((b, k) => {
      const y = box.top + each * (k + 0.18);
      const end = box.left + (box.right - box.left) * at(spec.x, b.value);
      g.fillStyle = b.colour;
      g.fillRect(box.left, y, end - box.left, each * 0.64);
      g.fillStyle = colours.ink;
      g.textAlign = "right";
      named[k].forEach((words, i) => g.fillText(words, box.left - 6, y + each * 0.4 + 14 * i - 7 * (named[k].length - 1)));
      g.textAlign = "left";
      g.fillText(b.label, end + 6, y + each * 0.4);
    });
    return (x, y) => {
      const b = spec.bars[Math.floor((y - box.top) / each)];
      return b && y >= box.top ? { x, y, words: `${b.name}: ${b.label}` } : null;
    };
  },

  calendar(p) {
    const { g, spec, width, colours } = p;
    g.font = `13px ${FONT}`;
    const names = Math.max(50, ...spec.rows.map((name) => g.measureText(name).width));
    const box = titled(p, names + 20, 24);
    g.font = `13px ${FONT}`;
    let [x0, y0] = [box.left, box.top + 3];
    for (const { name, colour, bar, faint } of spec.legend) {
      const needs = g.measureText(name).width + 34;
      if (x0 > box.left && x0 + needs > width) [x0, y0] = [box.left, y0 + 17];
      g.fillStyle = colour;
      const half = 5 * (faint ? PLANNED : 1);
      if (bar) g.fillRect(x0, y0 - half, 16, 2 * half);
      else g.fillRect(x0 + 7, y0 - half, 2.5, 2 * half);
      g.fillStyle = colours.ink;
      g.fillText(name, x0 + 22, y0 + 4);
      x0 += needs;
    }
    if (spec.legend.length) box.top = y0 + 13;
    labels(p, box, spec.x.label);
    ticksBelow(p, box, spec.x);
    const each = (box.bottom - box.top) / Math.max(1, spec.rows.length);
    const across = (v) => box.left + (box.right - box.left) * at(spec.x, v);
    p.box = box;
    within(p, box, () => moments(p, box, false));
    within(p, box, () => {
      for (const marks of spec.marks) {
        const [top, tall] = [box.top + each * (marks.row + marks.lane[0]), each * (marks.lane[1] - marks.lane[0])];
        const [from, to] = [p.column(marks.at), marks.to === null ? null : p.column(marks.to)];
        g.fillStyle = marks.colour;
        let free = -Infinity; // marks that would fall on one another are drawn once
        from.forEach((v, k) => {
          const x = across(v);
          if (to) g.fillRect(x, top, Math.max(1, across(to[k] + 1) - x), tall);
          else if (x >= free) {
            g.fillRect(x - 0.8, top, 1.6, tall);
            free = x + 1;
          }
        });
      }
    });
    g.font = `13px ${FONT}`;
    g.textAlign = "right";
    g.fillStyle = colours.ink;
    spec.rows.forEach((name, k) => g.fillText(name, box.left - 6, box.top + each * (k + 0.5) + 4));
    if (spec.now !== null && across(spec.now) >= box.left && across(spec.now) <= box.right) {
      g.strokeStyle = colours.ink;
      g.lineWidth = 1;
      line(g, [[across(spec.now), box.top], [across(spec.now), box.bottom]]);
    }
    return (x, y) => {
      const happened = moment(p, box, x, y);
      if (happened) return happened;
      const row = Math.floor((y - box.top) / each);
      let [best, near] = [null, 12];
      for (const marks of spec.marks) {
        if (marks.row !== row || y < box.top) continue;
        const to = marks.to === null ? null : p.column(marks.to);
        p.column(marks.at).forEach((v, k) => {
          const [a, b] = [across(v), across(to ? to[k] + 1 : v)];
          const far = Math.max(a - x, x - b, 0) + (to ? 4 : 0); // a stroke on a bar comes first
          if (far >= near) return;
          const when = to ? `steps ${v} to ${to[k]}` : `step ${v}`;
          [near, best] = [far, { x: Math.min(b, Math.max(a, x)), y, words: `${spec.rows[row]}: ${marks.name}, ${when}` }];
        });
      }
      return best;
    };
  },

  cells(p) {
    const { g, spec, colours } = p;
    const [R, C] = [spec.rows.length, spec.columns.length];
    g.font = `12px ${FONT}`;
    const names = Math.max(12, ...spec.row_ticks.map(([, name]) => g.measureText(name).width));
    const box = titled(p, names + 24, spec.bar ? 76 : 24);
    labels(p, box, spec.x);
    const [broad, tall] = [(box.right - box.left) / Math.max(1, C), (box.bottom - box.top) / Math.max(1, R)];
    const gap = Math.min(spec.gap, broad / 2, tall / 2);
    const last = spec.colours.length - 1;
    if (!spec.gap) {
      g.strokeStyle = colours.soft;
      g.lineWidth = 1;
      g.strokeRect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    }
    const edge = (from, size, k) => (spec.gap ? from + size * k : Math.round(from + size * k)); // whole pixels: no seams
    spec.values.forEach((row, r) =>
      row.forEach((v, c) => {
        if (v === null || Number.isNaN(v)) return;
        const level = Math.round(Math.min(1, Math.max(0, at(spec.scale, v))) * last);
        g.fillStyle = spec.colours[level];
        const [x, y] = [edge(box.left, broad, c), edge(box.top, tall, r)];
        g.fillRect(x + gap / 2, y + gap / 2, edge(box.left, broad, c + 1) - x - gap, edge(box.top, tall, r + 1) - y - gap);
      }),
    );
    g.strokeStyle = colours.ground;
    g.lineWidth = 1.5;
    for (const e of spec.edges) line(g, [[box.left, box.top + tall * e], [box.right, box.top + tall * e]]);
    g.fillStyle = colours.soft;
    g.textAlign = "right";
    for (const [k, name] of spec.row_ticks) g.fillText(name, box.left - 6, box.top + tall * (k + 0.5) + 4);
    g.textAlign = "center";
    const ticks = spec.column_ticks.map(([k, name]) => [box.left + broad * (k + 0.5), g.measureText(name).width / 2, name]);
    const apart = (every) => ticks.every(([x, half], i) => i < every || i % every || x - half - ticks[i - every][0] - ticks[i - every][1] >= 4);
    let every = 1; // one of so many has room, evenly
    while (every < ticks.length && !apart(every)) every += 1;
    ticks.forEach(([x, , name], i) => i % every || g.fillText(name, x, box.bottom + 16));
    if (spec.bar) colourBar(p, box, spec.colours, spec.scale);
    return (x, y) => {
      const [r, c] = [Math.floor((y - box.top) / tall), Math.floor((x - box.left) / broad)];
      if (r < 0 || r >= R || c < 0 || c >= C) return null;
      const v = spec.values[r][c];
      const words = { row: spec.rows[r], column: spec.columns[c], value: v === null || Number.isNaN(v) ? "not known" : short(v) };
      const mark = () => {
        g.strokeStyle = colours.ink;
        g.lineWidth = 1.5;
        g.strokeRect(box.left + broad * c, box.top + tall * r, broad, tall);
      };
      return { x: box.left + broad * (c + 0.5), y: box.top + tall * (r + 0.5), words: say(spec.hover, words), mark };
    };
  },

  graph(p) {
    const { g, spec, width, colours } = p;
    const box = titled(p, ...spec.sides, 74);
    g.font = `13px ${FONT}`;
    let [x0, y0] = [box.left, box.top + 3];
    for (const { name, colour, dash } of spec.legend) {
      const needs = g.measureText(name).width + 36;
      if (x0 > box.left && x0 + needs > width) [x0, y0] = [box.left, y0 + 17];
      stroke(g, { colour, dash });
      line(g, [[x0, y0], [x0 + 18, y0]]);
      g.setLineDash([]);
      g.fillStyle = colours.ink;
      g.fillText(name, x0 + 24, y0 + 4);
      x0 += needs;
    }
    box.top = y0 + 26;
    labels(p, box, spec.x, null, 4);
    if (spec.square) {
      const [spare, middle] = [Math.min(box.right - box.left, box.bottom - box.top) / 2, (box.left + box.right) / 2];
      [box.left, box.right, box.bottom] = [middle - spare, middle + spare, box.top + 2 * spare];
    }
    const place = (x, y) => [box.left + (box.right - box.left) * x, box.top + (box.bottom - box.top) * y];
    for (const { points, colour, dash, width } of spec.links) {
      stroke(g, { colour, dash });
      g.lineCap = "butt";
      g.lineWidth = width;
      line(g, points.map(([x, y]) => place(x, y)));
    }
    g.setLineDash([]);
    g.font = `12px ${FONT}`;
    for (const { x, y, colour, label, below } of spec.dots) {
      const [cx, cy] = place(x, y);
      dot(g, [cx, cy], spec.radius, colour);
      g.strokeStyle = colours.soft;
      g.lineWidth = 1;
      g.stroke();
      g.fillStyle = colours.ink;
      g.textAlign = below ? "center" : "left";
      label.forEach((part, k) => (below ? g.fillText(part, cx, cy + spec.radius + 13 * (k + 1)) : g.fillText(part, cx + spec.radius + 4, cy - 2 + 13 * k)));
    }
    if (spec.scale) colourBar(p, box, spec.colours, spec.scale);
    return (x, y) => {
      let [best, near] = [null, 24];
      for (const d of spec.dots) {
        const q = place(d.x, d.y);
        const far = Math.hypot(q[0] - x, q[1] - y);
        if (far < near) [near, best] = [far, { x: q[0], y: q[1], words: d.words, mark: () => dot(g, q, spec.radius, d.colour, colours.ink) }];
      }
      return best;
    };
  },

  note(p) {
    const { g, spec, width, colours } = p;
    const box = titled(p, 14, 14);
    g.font = `13px ${FONT}`;
    g.fillStyle = colours.ink;
    wrap(g, spec.words, width - 28).forEach((words, k) => g.fillText(words, 14, box.top + 12 + 18 * k));
    return () => null;
  },
};

/** How high a picture is in this width: as it was made, but that words have the lines that they need. */
function tall({ g, spec, width }) {
  if (spec.kind !== "note") return spec.height;
  const lines = (font, words) => {
    g.font = `${font} ${FONT}`;
    return wrap(g, words, width - 28).length;
  };
  return Math.max(spec.height, 37 + 17 * lines("600 14px", spec.title) + 18 * lines("13px", spec.words));
}

function stroke(g, s) {
  g.strokeStyle = s.colour;
  g.lineWidth = s.faint ? 1 : 2.2;
  g.lineJoin = g.lineCap = "round";
  g.setLineDash(s.dash);
}

function dot(g, [x, y], radius, colour, ring) {
  g.fillStyle = colour;
  g.beginPath();
  g.arc(x, y, radius, 0, 2 * Math.PI);
  g.fill();
  if (!ring) return;
  g.strokeStyle = ring;
  g.lineWidth = 2;
  g.stroke();
}

/** Keys: which axis, and where the ends of what is seen go to, in parts of it. */
const KEYS = {
  "+": ["x", 0.25, -0.25],
  "=": ["x", 0.25, -0.25], // plus, without Shift
  "-": ["x", -0.5, 0.5],
  ArrowLeft: ["x", -0.25, -0.25],
  ArrowRight: ["x", 0.25, 0.25],
  ArrowUp: ["y", 0.25, 0.25],
  ArrowDown: ["y", -0.25, -0.25],
  "Shift ArrowUp": ["y", 0.25, -0.25],
  "Shift ArrowDown": ["y", -0.5, 0.5],
};

/**
 * One picture: a canvas, a readout that follows the pointer, and what is seen of its axes: `closer` has the ends of a part of each, null for
 * all of it. They are values of the axis (powers of ten of a logarithmic one), so that a part stays where it is while a run goes on.
 */
class Panel {
  constructor(parent, changed, move) {
    this.el = parent.appendChild(document.createElement("div"));
    this.el.className = "isthmus-panel";
    this.el.picture = this; // for who wants to know what is seen, tests first
    this.canvas = this.el.appendChild(document.createElement("canvas"));
    this.canvas.setAttribute("role", "img");
    this.readout = this.el.appendChild(document.createElement("div"));
    this.readout.className = "isthmus-readout";
    this.readout.hidden = true;
    this.whole = this.el.appendChild(document.createElement("button"));
    Object.assign(this.whole, { className: "isthmus-whole", textContent: "all of it", title: "or Escape, or a double click", hidden: true });
    this.pointer = this.from = null;
    this.closer = { x: null, y: null };
    this.move = move;
    const where = (e) => {
      const box = this.canvas.getBoundingClientRect(); // in the page's pixels, which large type makes more than the canvas's
      const scale = this.canvas.clientWidth / box.width;
      return [(e.clientX - box.left) * scale, (e.clientY - box.top) * scale];
    };
    const on = (name, act, el = this.canvas) =>
      el.addEventListener(name, (e) => {
        act(e);
        changed();
      });
    on("pointermove", (e) => (this.pointer = where(e)));
    on("pointerdown", (e) => {
      if (e.button === 0 && this.inside(where(e))) this.from = where(e);
    });
    on("pointerup", (e) => {
      this.look(where(e));
      this.from = null;
    });
    on("dblclick", () => this.show(null, null));
    on("click", () => (this.show(null, null), this.canvas.focus()), this.whole);
    on("pointerleave", () => (this.pointer = this.from = null));
    on("pointercancel", () => (this.pointer = this.from = null)); // a finger that scrolls
    this.canvas.setAttribute("aria-keyshortcuts", "+ - ArrowLeft ArrowRight ArrowUp ArrowDown Shift+ArrowUp Shift+ArrowDown Escape");
  }

  inside([x, y]) {
    const box = this.box;
    return box && x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;
  }

  /** What was dragged over, in pixels of the box; up and down all of it where the drag went along. */
  dragged(to) {
    const [box, from] = [this.box, this.from];
    const cut = (v, low, high) => Math.min(high, Math.max(low, v));
    const [left, right] = [from[0], cut(to[0], box.left, box.right)].sort((a, b) => a - b);
    const [top, bottom] = [from[1], cut(to[1], box.top, box.bottom)].sort((a, b) => a - b);
    const flat = bottom - top < 12 || !this.axes.y;
    return { left, right, top: flat ? box.top : top, bottom: flat ? box.bottom : bottom };
  }

  /** Look closer at what was dragged over. */
  look(to) {
    if (!this.from || !this.box || Math.abs(to[0] - this.from[0]) < 8) return;
    const [box, area, { x, y }] = [this.box, this.dragged(to), this.axes];
    const along = (v) => x.low + ((x.high - x.low) * (v - box.left)) / (box.right - box.left);
    const up = (v) => y.low + ((y.high - y.low) * (box.bottom - v)) / (box.bottom - box.top);
    this.show([along(area.left), along(area.right)], y && (area.top > box.top || area.bottom < box.bottom) ? [up(area.bottom), up(area.top)] : this.closer.y);
  }

  /** The same by keys. What would change nothing is left to others: arrows go to the next cell, say. */
  key(e) {
    const [name, from, to] = KEYS[(e.key.startsWith("Arrow") && e.shiftKey ? "Shift " : "") + e.key] || [];
    if (!this.box || e.ctrlKey || e.metaKey || e.altKey || (name ? !this.axes[name] : e.key !== "Escape")) return;
    const closer = from > 0 && to < 0;
    if (!closer && (name ? !this.axes[name].cut : this.whole.hidden)) return;
    e.preventDefault();
    e.stopPropagation();
    if (!name) return this.show(null, null);
    const [{ low, high }, all] = [this.axes[name], this.all[name]];
    const wide = high - low;
    let [first, last] = [low + from * wide, high + to * wide];
    const back = from === to ? Math.max(0, all.low - first) - Math.max(0, last - all.high) : 0; // along, and not beyond an end
    [first, last] = [Math.max(all.low, first + back), Math.min(all.high, last + back)];
    this.show(...["x", "y"].map((each) => (each === name ? [first, last] : this.closer[each])));
  }

  /** Show a part of each axis; what is no part, or too small a one, changes nothing. */
  show(x, y) {
    const ends = (name, ends, before) => {
      const all = this.all?.[name];
      if (!ends || !all || (ends[0] <= all.low && ends[1] >= all.high)) return null;
      return ends[1] - ends[0] > Math.max(1e-5 * (all.high - all.low), all.whole ? 2 : 0) ? ends : before;
    };
    this.closer = { x: ends("x", x, this.closer.x), y: ends("y", y, this.closer.y) };
    this.move(this.closer.x, this.timed);
  }

  /** The picture with its axes as far as they are seen; `time` is the part of the time axis that all see. */
  seen(whole, time) {
    const of = `${whole.kind} ${whole.x?.label} ${whole.x?.log} ${whole.y?.label}`;
    if (this.of !== of) [this.of, this.closer] = [of, { x: null, y: null }]; // another picture
    this.timed = Boolean(whole.time);
    if (this.timed) this.closer.x = time;
    if (!whole.x?.ticks) return whole;
    this.all = { x: whole.x, y: whole.y };
    this.axes = { x: part(whole.x, this.closer.x), ...(whole.y && { y: part(whole.y, this.closer.y) }) };
    return { ...whole, ...this.axes };
  }

  draw(whole, { most, time, ...shared }) {
    const [spec, { colours }] = [this.seen(whole, time), shared];
    this.el.style.gridColumn = `span ${6 / Math.min(spec.per_row, most)}`;
    this.canvas.setAttribute("aria-label", spec.text);
    const zoom = this.el.currentCSSZoom || 1; // large type
    const [g, width, dots] = [this.canvas.getContext("2d"), this.el.clientWidth, (window.devicePixelRatio || 1) * zoom];
    const height = width ? tall({ g, spec, width }) : spec.height;
    this.canvas.style.height = `${height}px`;
    if (!width) return; // hidden: the observer calls again when it is seen
    if (this.canvas.width !== Math.round(width * dots) || this.canvas.height !== Math.round(height * dots)) {
      this.canvas.width = Math.round(width * dots);
      this.canvas.height = Math.round(height * dots);
    }
    g.setTransform(dots, 0, 0, dots, 0, 0);
    g.clearRect(0, 0, width, height);
    const picture = { g, spec, width, height, ...shared };
    const find = KINDS[spec.kind](picture);
    this.box = picture.box;
    this.canvas.style.cursor = this.box ? "crosshair" : "";
    this.canvas.tabIndex = this.box ? 0 : -1;
    this.whole.hidden = !(this.box && (spec.x.cut || spec.y?.cut));
    if (this.from && this.pointer && this.box) {
      const area = this.dragged(this.pointer);
      g.strokeStyle = colours.ink;
      g.lineWidth = 1;
      g.setLineDash([4, 3]);
      g.strokeRect(area.left, area.top, area.right - area.left, area.bottom - area.top);
      g.setLineDash([]);
    }
    const found = this.pointer && !this.from && find(...this.pointer);
    this.readout.hidden = !found;
    if (!found) return;
    found.mark?.();
    this.readout.textContent = found.words;
    this.readout.style.background = colours.ink;
    this.readout.style.color = colours.ground;
    const [w, h] = [this.readout.offsetWidth, this.readout.offsetHeight];
    const [first, last] = [-this.el.offsetLeft, this.el.parentElement.clientWidth - this.el.offsetLeft - w]; // of the board
    const left = found.x + 14 > last ? found.x - 14 - w : found.x + 14;
    const top = found.y - h - 8 < 0 ? found.y + 14 : found.y - h - 8;
    this.readout.style.left = `${Math.max(first, Math.min(last, left))}px`;
    this.readout.style.top = `${top}px`;
  }
}

/** What the page holds of one model. */
class Held {
  constructor() {
    this.load(null);
  }

  /** Take over a whole board. */
  load(board) {
    this.seq = board?.seq || 0;
    this.head = board?.head || {};
    this.panels = board?.panels || [];
    this.columns = new Map();
    for (const [number, bytes] of Object.entries(board?.columns || {})) this.put(Number(number), 0, bytes);
  }

  /** Take in what changed; false if a message before it is missing. */
  take(message, buffers) {
    if (message.seq <= this.seq) return true;
    if (message.seq > this.seq + 1) return false;
    this.seq = message.seq;
    this.head = { ...this.head, ...message.head };
    for (const [k, fields] of message.panels) this.panels[k] = { ...this.panels[k], ...fields };
    this.panels.length = message.num;
    for (const number of message.gone || []) this.columns.delete(number);
    message.columns.forEach(([number, start], k) => this.put(number, start, buffers[k]));
    return true;
  }

  put(number, start, bytes) {
    const fresh = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    let { data, size } = this.columns.get(number) || { data: fresh, size: 0 };
    size = start + fresh.length;
    if (size > data.length) {
      const longer = new Float32Array(2 * size);
      longer.set(data.subarray(0, start));
      data = longer;
    }
    data.set(fresh, start);
    this.columns.set(number, { data, size });
  }

  column = (number) => {
    if (typeof number === "object") return Array.isArray(number) ? Float32Array.from(number, (v) => v ?? NaN) : number; // at rest
    const held = this.columns.get(number);
    return held ? held.data.subarray(0, held.size) : new Float32Array(0);
  };
}

/** Selects and lines to type in, made anew only when there are others. */
class Controls {
  constructor(parent, choose) {
    this.el = parent.appendChild(document.createElement("div"));
    this.el.className = "isthmus-controls";
    this.choose = choose;
    this.made = "[]";
  }

  show(controls) {
    const now = JSON.stringify(controls);
    if (now === this.made) return;
    const same = JSON.stringify(controls.map((c) => ({ ...c, value: "" }))) === this.shape;
    if (!same) this.el.replaceChildren(...controls.map((c) => this.make(c)));
    this.made = now;
    this.shape = JSON.stringify(controls.map((c) => ({ ...c, value: "" })));
    controls.forEach((c, k) => {
      const field = this.el.children[k].querySelector("select, input");
      if (same && field === document.activeElement && field.tagName === "INPUT") return; // somebody is typing
      field.value = c.slider ? c.options.indexOf(c.value) : c.value;
      if (c.slider) field.oninput();
    });
  }

  make({ name, label, options, hint, slider }) {
    const el = document.createElement("label");
    el.append(label);
    if (slider) return this.slide(el, name, options);
    const field = el.appendChild(document.createElement(options.length ? "select" : "input"));
    for (const option of options) field.appendChild(document.createElement("option")).textContent = option;
    if (!options.length) [field.type, field.placeholder] = ["text", hint];
    field.addEventListener("change", () => this.choose(name, field.value));
    field.setAttribute("data-lm-suppress-shortcuts", "true"); // arrows and letters are no commands of JupyterLab here,
    field.addEventListener("keydown", (e) => e.stopPropagation()); // nor of other notebooks
    return el;
  }

  /** Places in a row, and the name of the one that is chosen. */
  slide(el, name, options) {
    const field = el.appendChild(document.createElement("input"));
    const word = el.appendChild(document.createElement("output"));
    Object.assign(field, { type: "range", min: 0, max: options.length - 1, step: 1 });
    field.oninput = () => (word.textContent = options[field.value]) && field.setAttribute("aria-valuetext", options[field.value]);
    field.addEventListener("input", () => this.choose(name, options[field.value]));
    field.setAttribute("data-lm-suppress-shortcuts", "true");
    field.addEventListener("keydown", (e) => e.stopPropagation());
    return el;
  }
}

/** Write a picture into the notebook in place of every output that shows this model; null if this page has no notebook. */
function keep(model, { rest, id }) {
  const cells = model.widget_manager?.context?.model?.cells;
  if (!cells) return null;
  for (const { outputs } of cells)
    for (let k = 0; k < (outputs?.length || 0); k++)
      if (outputs.get(k).data["application/vnd.jupyter.widget-view+json"]?.model_id === id)
        outputs.set(k, { output_type: "display_data", data: rest, metadata: {} });
  return true;
}

/** A board below an element: title, answer, controls, pictures; drawn when something calls `request`. */
function show(el, held, choose, stays = () => {}) {
  const root = el.appendChild(document.createElement("div"));
  root.className = "isthmus-board";
  root.held = held; // for who wants to know what a picture is made of, tests first
  root.appendChild(document.createElement("style")).textContent = STYLE;
  const title = root.appendChild(document.createElement("h3"));
  const answer = root.appendChild(document.createElement("p"));
  answer.className = "isthmus-answer";
  const controls = new Controls(root, (name, value) => {
    view.say("");
    choose(name, value);
  });
  const hint = root.appendChild(document.createElement("p"));
  hint.setAttribute("role", "status");
  hint.hidden = true;
  const panels = [];
  let [frame, timer, time] = [0, 0, null];
  root.over = (part) => {
    time = part;
    view.request();
  };
  /** What one picture shows of x is shown by all over the same time axis: those of this cell, or of a page without cells. */
  const move = (part, timed) => {
    if (timed) for (const board of (root.closest(CELL) || document.body).querySelectorAll(".isthmus-board")) board.over(part);
    view.request();
  };

  const draw = () => {
    frame = 0;
    const { head, panels: specs } = held;
    const most = root.clientWidth >= THREE ? 3 : root.clientWidth >= TWO ? 2 : 1;
    const colours = theme(root);
    root.style.color = colours.ink;
    root.classList.toggle("isthmus-compact", Boolean(head.compact));
    title.textContent = head.title ?? "Waiting for the first event …";
    title.hidden = head.title === "";
    if (answer.textContent !== (head.answer || "")) answer.textContent = head.answer || "";
    answer.hidden = !head.answer;
    controls.show(head.controls || []);
    if (head.at_rest) timer ||= setTimeout(stays, 1500); // usually replaced before that
    while (panels.length > specs.length) panels.pop().el.remove();
    while (panels.length < specs.length) panels.push(new Panel(root, view.request, move));
    const shared = { most, time, colours, column: held.column, alone: specs.length === 1 };
    specs.forEach((spec, k) => panels[k].draw(spec, shared));
  };
  const view = {
    request() {
      frame ||= requestAnimationFrame(draw);
    },
    say(words) {
      hint.textContent = words;
      hint.hidden = !words;
    },
    remove() {
      cancelAnimationFrame(frame);
      clearTimeout(timer);
      sized.disconnect();
      themed.disconnect();
      dark.removeEventListener("change", view.request);
      removeEventListener("keydown", keys, true);
      root.remove();
    },
  };
  const keys = (e) => panels.find((panel) => panel.canvas === e.target)?.key(e);
  addEventListener("keydown", keys, true); // of the window, before JupyterLab takes them for commands
  const sized = new ResizeObserver(view.request);
  sized.observe(root);
  const themed = new MutationObserver(view.request); // JupyterLab switches its theme by attributes of the body
  themed.observe(document.body, { attributes: true });
  const dark = matchMedia("(prefers-color-scheme: dark)"); // and a page by that of the system
  dark.addEventListener("change", view.request);
  view.request();
  return view;
}

/** What `widgets/resting.py` has packed, and what puts lists of many numbers back into a part of it. */
function opened(packed) {
  const { columns, ...parts } = JSON.parse(packed);
  const numbers = columns.map((text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
  const filled = (v) => {
    if (v === null || typeof v !== "object") return v;
    if (Array.isArray(v)) return v.map(filled);
    return "column" in v ? numbers[v.column] : Object.fromEntries(Object.entries(v).map(([key, inner]) => [key, filled(inner)]));
  };
  return { ...parts, filled };
}

/** A board at rest, from what `widgets/resting.py` has packed; returns what removes it. */
export function rest(el, { packed }) {
  const { boards, control, filled } = opened(packed);
  const held = new Held();
  const put = (name) => {
    const { panels, ...head } = filled(boards[name]);
    held.panels = panels;
    held.head = { ...head, controls: control ? [{ ...control, value: name }] : [] };
  };
  put(control ? control.value : Object.keys(boards)[0]);
  const view = show(el, held, (_, value) => {
    put(value);
    view.request();
  });
  el.firstElementChild.classList.add("isthmus-rest");
  return view.remove;
}

// A factory: what `initialize` and `render` share lies in its closure, since each of them gets a proxy of the model.
export default () => {
  const held = new Held();
  const views = new Set();
  let asked = false;

  function initialize({ model }) {
    const changed = () => views.forEach((view) => view.request());
    const load = () => {
      held.load(model.get("board"));
      asked = false;
      changed();
    };
    const take = (message, buffers) => {
      if ("error" in message) return views.forEach((view) => view.say(message.error));
      if ("rest" in message) return keep(model, message) || views.forEach((view) => view.say(REST));
      if (held.take(message, buffers)) return changed();
      if (!asked) model.send({ ask: "board" });
      asked = true;
    };
    model.on("change:board", load);
    model.on("msg:custom", take);
    load();
    return () => {
      model.off("change:board", load);
      model.off("msg:custom", take);
    };
  }

  function render({ model, el }) {
    const choose = (name, value) => model.send({ choose: name, value });
    const view = show(el, held, choose, () => model.send({ ask: "rest" }));
    views.add(view);
    return () => {
      views.delete(view);
      view.remove();
    };
  }

  return { initialize, render };
};
