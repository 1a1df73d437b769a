// A question before it is answered: a form that keys alone can use, and what becomes of the answer.
//
// The kernel decides what a prediction is and what is right. Here the answer is announced, the keyboard goes on where the pictures
// are, and the prediction is written into the notebook's metadata, where it outlives its cell's output: cells that are run again or
// cleared. A page without a notebook model of JupyterLab's keeps what the output keeps.

const KEPT = "isthmus_predictions"; // as in lab/study/predictions.py
const SAID = "isthmus-said"; // what is announced, for all questions of a page
const STYLE = `
.isthmus-question { border-top: 1px solid var(--jp-border-color2, #ccc); padding: 6px 0; line-height: 1.5; font-size: 15px; color: var(--jp-ui-font-color1, inherit);
  font-family: system-ui, -apple-system, 'Segoe UI', sans-serif; }
.isthmus-question fieldset { border: 0; margin: 0 0 6px; padding: 0; min-width: 0; }
.isthmus-question legend { font-weight: 600; padding: 0; margin-bottom: 4px; }
.isthmus-question label { display: flex; align-items: baseline; gap: 8px; padding: 2px 0; width: fit-content; max-width: 100%; }
.isthmus-question label.isthmus-number { flex-wrap: wrap; }
.isthmus-question input, .isthmus-question button { font: inherit; color: inherit; }
.isthmus-question input[type="text"] { width: 9em; padding: 3px 6px; border: 1px solid var(--jp-content-font-color2, currentColor); border-radius: 3px;
  background: var(--jp-layout-color1, Canvas); }
.isthmus-question input[type="radio"] { accent-color: var(--jp-brand-color1, #1976d2); margin: 0; width: 16px; height: 16px; position: relative; top: 2px; flex: none; }
.isthmus-question button { padding: 4px 14px; border: 1px solid var(--jp-content-font-color2, currentColor); border-radius: 3px; cursor: pointer; margin: 0 8px 4px 0;
  background: var(--jp-layout-color1, Canvas); }
.isthmus-question :focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 2px; }
.isthmus-question p { margin: 2px 0; }
.isthmus-question .isthmus-problem { color: var(--jp-error-color1, #b00020); }
.isthmus-question .isthmus-problem:empty { display: none; }
#${SAID} { position: fixed; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
`;

const make = (parent, tag, words = "", more = {}) => Object.assign(parent.appendChild(document.createElement(tag)), { textContent: words }, more);

/** The notebook's model, null where the page has none. */
function notebookOf(model) {
  const notebook = model.widget_manager?.context?.model;
  return notebook?.getMetadata && notebook.setMetadata ? notebook : null;
}

/** The last prediction that the notebook keeps for this question. */
function earlier(model) {
  const kept = notebookOf(model)?.getMetadata(KEPT)?.[model.get("title")];
  const last = Array.isArray(kept) ? kept.at(-1) : null;
  return last && ["string", "number"].includes(typeof last.said) && typeof last.at === "string" ? last : null;
}

function keep(model, prediction) {
  const notebook = notebookOf(model);
  if (!notebook) return;
  const kept = { ...notebook.getMetadata(KEPT) };
  const before = Array.isArray(kept[prediction.question]) ? kept[prediction.question] : [];
  if (before.some((one) => one.at === prediction.at)) return;
  kept[prediction.question] = [...before, prediction];
  notebook.setMetadata(KEPT, kept);
}

/** Say it to a screen reader: a region that was there before its words is read. */
function announce(words) {
  const region = document.getElementById(SAID) || make(document.body, "div", "", { id: SAID });
  region.setAttribute("role", "status");
  region.setAttribute("aria-live", "polite");
  region.textContent = "";
  setTimeout(() => (region.textContent = words), 100);
}

/** The keyboard goes on at the slider of the pictures that take the place of the form. */
function goOn(area) {
  let left = 100;
  const look = setInterval(() => {
    const slider = area.querySelector(".isthmus-rest input[type=range]");
    if (slider) slider.focus({ preventScroll: true });
    if (slider || !area.isConnected || !left--) clearInterval(look);
  }, 50);
}

function initialize({ model }) {
  if (!document.getElementById(SAID)) announce("");
  const take = (message) => {
    if (message.prediction) keep(model, message.prediction);
    if (message.say) announce(message.say);
  };
  model.on("msg:custom", take);
  return () => model.off("msg:custom", take);
}

function render({ model, el }) {
  const root = make(el, "div", "", { className: "isthmus-question" });
  make(root, "style", STYLE);
  const form = make(root, "form", "", { noValidate: true });
  const group = make(form, "fieldset");
  make(group, "legend", model.get("title"));
  const [name, options, fields] = [`q-${Math.random().toString(36).slice(2)}`, model.get("options"), []];
  for (const option of options) {
    const label = make(group, "label");
    fields.push(make(label, "input", "", { type: "radio", name, value: option }));
    make(label, "span", option);
  }
  if (!options.length) {
    const label = make(group, "label", "Your prediction", { className: "isthmus-number" });
    fields.push(make(label, "input", "", { type: "text", inputMode: "decimal", autocomplete: "off" }));
    make(label, "span", model.get("unit"));
  }
  const go = make(form, "button", "Predict, then look", { type: "submit" });
  const problem = make(form, "p", "", { className: "isthmus-problem", id: `${name}-problem` });
  problem.setAttribute("role", "alert");
  const buttons = [go];
  const before = earlier(model);
  if (before) {
    const line = make(form, "p", `You predicted ${before.said}${options.length ? "" : ` ${model.get("unit")}`} on ${new Date(before.at).toLocaleString()}. `);
    const again = make(line, "button", "Look at it again", { type: "button" });
    again.addEventListener("click", () => predict(before.said, before.at));
    buttons.push(again);
  }
  // JupyterLab takes arrows and letters for commands of the notebook, unless what has the focus says that it wants them.
  for (const own of [...fields, ...buttons]) own.setAttribute("data-lm-suppress-shortcuts", "true");
  root.addEventListener("keydown", (e) => e.stopPropagation());

  const predict = (words, at) => model.send({ predict: words, at });
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    predict(options.length ? (fields.find((f) => f.checked)?.value ?? "") : fields[0].value, null);
  });
  const refused = () => {
    problem.textContent = model.get("problem");
    for (const field of fields) {
      if (problem.textContent) field.setAttribute("aria-describedby", problem.id);
      if (!options.length) field.setAttribute("aria-invalid", String(Boolean(problem.textContent)));
    }
    if (problem.textContent) fields[0].focus();
  };
  const said = () => {
    if (!model.get("said")) return;
    root.replaceChildren(make(root, "style", STYLE), make(root, "p", model.get("said"))); // for a page that was loaded again and knows only the widget
  };
  const took = (message) => {
    const area = el.closest(".jp-OutputArea");
    if (message.say && area) goOn(area);
  };
  model.on("change:problem", refused);
  model.on("change:said", said);
  model.on("msg:custom", took);
  said();
  return () => {
    model.off("change:problem", refused);
    model.off("change:said", said);
    model.off("msg:custom", took);
  };
}

export default { initialize, render };
