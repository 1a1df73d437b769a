// What a reader can do in an explorable: guess, drag the number in its sentence, play the picture, answer the exercise.
//
// Every sentence, number and picture was worked out in Python (`widgets/explorables/explorable.py`); here one of them is chosen. It stands in
// the same script as `view.js`, which draws.

const PIXELS = 26; // of a drag, from one place to the next
const PLAYED = 9000; // milliseconds from the first moment to the last
const SPOKEN = 700; // milliseconds of rest before a screen reader is told the whole sentence
const THOUSANDS = /^\d{1,3}(,\d{3})+(\.\d+)?$/;
const COMMA = /^\d+,\d+$/;
const FRACTION = /^(\d+\.?\d*)[/∕](\d+\.?\d*)$/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** A board with what is different at a moment; `changes` in explorable.py is the other half. */
function changed(was, to) {
  if ("=" in to) return to["="];
  const made = Array.isArray(was) ? [...was] : { ...was };
  for (const [key, inner] of Object.entries(to)) made[key] = changed(made[key], inner);
  return made;
}

/** A number as people write it; `number_in` in pieces.py is the same rule. */
function numberIn(answer, unit = "") {
  let words = answer.trim().replaceAll(" ", "");
  if (unit && words.toLowerCase().endsWith(unit.toLowerCase())) words = words.slice(0, -unit.length);
  const found = FRACTION.exec(words);
  if (found) return Number(found[2]) ? Number(found[1]) / Number(found[2]) : NaN;
  words = THOUSANDS.test(words) ? words.replaceAll(",", "") : COMMA.test(words) ? words.replace(",", ".") : words;
  return NUMBER.test(words) ? Number(words) : NaN;
}

/** What an answer is worth; `Exercise.check` in pieces.py says the same. */
function checked(answer, { close, right, unit, slips, solution, hint }) {
  const near = (a, b) => Math.abs(a - b) <= close * Math.abs(b);
  if (!answer.trim()) return "Not answered yet: type a number.";
  const number = numberIn(answer, unit);
  if (!(number > 0 && number < Infinity)) return `Not yet: ${answer.trim()} is no number greater than 0: write one, for example 12.5.`;
  if (near(number, right)) return `Right: ${solution}.`;
  const hints = [...new Set(slips.filter(([value]) => near(number, value)).map(([, words]) => words))];
  if (hints.length > 1) return ["Not yet. Several slips would give this:", ...hints.map((words) => `- ${words}`)].join("\n");
  return `Not yet: ${hints.length ? hints[0] : `too ${number > right ? "much" : "little"}: ${hint}`}.`;
}

function explore(main, packed) {
  const { filled, ...x } = opened(packed);
  const of = (found) => main.querySelector(found);
  const held = new Held();
  const figure = of("figure.board");
  figure.replaceChildren();
  const view = show(figure, held, () => {});
  figure.firstElementChild.classList.add("isthmus-rest");
  const boards = x.places.map(({ board }) => filled(board));
  let [place, moment] = [x.start, x.moments.length - 1];

  // the picture and the sentence

  const drag = of(".drag");
  const [range, said, play] = [of(".moments input"), of(".moments output"), of(".moments button")];
  function draw() {
    const { panels, ...head } = changed(boards[place], filled(x.places[place].moments[moment]));
    held.panels = panels;
    held.head = head;
    view.request();
    range.value = moment;
    said.textContent = x.moments[moment];
    range.setAttribute("aria-valuetext", x.moments[moment]);
    const { value, numbers } = x.places[place];
    drag.textContent = value;
    drag.setAttribute("aria-valuenow", place + 1);
    drag.setAttribute("aria-valuetext", value);
    for (const [name, words] of Object.entries(numbers)) for (const el of main.querySelectorAll(`[data-number="${name}"]`)) el.textContent = words;
  }

  let rested = 0;
  function put(next) {
    next = Math.max(0, Math.min(x.places.length - 1, next));
    if (next === place) return;
    place = next;
    draw();
    clearTimeout(rested);
    rested = setTimeout(() => (of(".spoken").textContent = of(".sentence").textContent), SPOKEN);
  }
  const about = { role: "slider", tabindex: 0, "aria-label": x.dragged, "aria-valuemin": 1, "aria-valuemax": x.places.length };
  for (const [name, value] of Object.entries(about)) drag.setAttribute(name, value);
  const keys = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 2, PageDown: -2, Home: -Infinity, End: Infinity };
  drag.addEventListener("keydown", (e) => {
    if (!(e.key in keys)) return;
    e.preventDefault();
    put(place + keys[e.key]);
  });
  let from = null;
  drag.addEventListener("pointerdown", (e) => {
    from = [e.clientX, place];
    drag.setPointerCapture(e.pointerId);
    drag.focus();
    e.preventDefault();
  });
  drag.addEventListener("pointermove", (e) => from && put(from[1] + Math.round((e.clientX - from[0]) / PIXELS)));
  for (const name of ["pointerup", "pointercancel"]) drag.addEventListener(name, () => (from = null));

  // the moments

  let timer = 0;
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }
  function start() {
    if (moment === x.moments.length - 1) moment = 0;
    draw();
    play.textContent = "Pause";
    timer = setInterval(() => {
      moment += 1;
      draw();
      if (moment === x.moments.length - 1) stop();
    }, Math.min(1000, PLAYED / x.moments.length));
  }
  of(".moments").hidden = x.moments.length < 2;
  play.addEventListener("click", () => (timer ? stop() : start()));
  range.addEventListener("input", () => {
    stop();
    moment = Number(range.value);
    draw();
  });

  // the guess, before which nothing else is there

  const [guess, rest] = [of('[data-part="guess"]'), of('[data-part="rest"]')];
  of('[data-part="unasked"]').remove();
  guess.hidden = false;
  rest.hidden = true;
  function answered(chosen) {
    const { truth, because } = x.prediction;
    const verdict = chosen === undefined ? "" : `${chosen === truth ? "Right" : "Not so"}: you said “${chosen}”. `;
    const status = guess.querySelector("[role=status]");
    status.textContent = verdict + because;
    if (!rest.hidden) return;
    rest.hidden = false;
    status.scrollIntoView({ block: "start" }); // what is so, the sentence and its picture on one screen
    of("#look").focus({ preventScroll: true });
    if (x.moments.length > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) start();
  }
  guess.addEventListener("submit", (e) => {
    e.preventDefault();
    const chosen = guess.querySelector("input:checked");
    if (chosen) answered(chosen.value);
    else guess.querySelector("[role=status]").textContent = "Choose one, or skip.";
  });
  guess.querySelector("button[type=button]").addEventListener("click", () => answered(undefined));

  // the exercise

  const exercise = of('[data-part="exercise"]');
  exercise.hidden = false;
  exercise.addEventListener("submit", (e) => {
    e.preventDefault();
    exercise.querySelector("[role=status]").textContent = checked(exercise.querySelector("input").value, x.exercise);
  });

  const frame = window.frameElement; // in a notebook: as high as the page, in the notebook's theme
  if (frame) {
    new ResizeObserver(() => (frame.style.height = `${main.scrollHeight + 60}px`)).observe(main);
    const { jpThemeLight } = frame.ownerDocument.body.dataset;
    if (jpThemeLight) document.documentElement.className = jpThemeLight === "true" ? "light" : "dark";
  }
  draw();
}
