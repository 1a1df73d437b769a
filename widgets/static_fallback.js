// While nothing runs, a notebook is saved with words in place of controls, which are dead without their kernel. The page keeps
// them. A page without a notebook model of JupyterLab's (the context of its widget manager) saves whatever it saves.

const VIEW = "application/vnd.jupyter.widget-view+json";

function initialize({ model }) {
  const notebook = model.widget_manager?.context?.model;
  if (!notebook) return undefined;
  const before = notebook.toJSON;
  notebook.toJSON = function () {
    const saved = before.call(this);
    if (!model.get("words")) return saved;
    const shown = (output) => output.data?.[VIEW]?.model_id === model.get("controls");
    const kept = (output) => (shown(output) ? { ...output, data: { "text/plain": model.get("words") } } : output);
    const cells = saved.cells.map((cell) => (cell.outputs ? { ...cell, outputs: cell.outputs.map(kept) } : cell));
    return { ...saved, cells };
  };
  const changed = () => (notebook.dirty = true); // so that words or controls are what is saved next
  model.on("change:words", changed);
  return () => {
    model.off("change:words", changed);
    notebook.toJSON = before;
  };
}

export default { initialize, render: () => {} };
