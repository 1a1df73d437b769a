// JupyterLab's way to `view.js` for pictures at rest: a prebuilt extension as it loads them, written by hand, since all that it
// has to do is to hand a place in the page and one JSON object to `rest`.

(() => {
  const MIME = "application/vnd.isthmus.board+json";
  const module = new URL("view.js", document.currentScript.src);
  let shared = {}; // modules of JupyterLab, by name and version

  /** What JupyterLab calls a plugin of a MIME type. */
  async function plugin() {
    const [lumino] = Object.values(shared["@lumino/widgets"]);
    const [{ Widget }, { rest }] = [(await lumino.get())(), await import(module)];
    class Picture extends Widget {
      async renderModel(model) {
        this.leave?.();
        this.leave = rest(this.node, model.data[MIME]);
      }
      dispose() {
        this.leave?.();
        super.dispose();
      }
    }
    const rendererFactory = { safe: true, mimeTypes: [MIME], createRenderer: () => new Picture() };
    return { id: "isthmus:board", rendererFactory, rank: 0, dataType: "json" };
  }

  window._JUPYTERLAB ??= {};
  window._JUPYTERLAB.isthmus = {
    init: (scope) => {
      shared = scope;
    },
    get: async () => {
      const made = { default: await plugin(), __esModule: true };
      return () => made;
    },
  };
})();
