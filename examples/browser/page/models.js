// Lists the models that this browser keeps: downloads from the hub, and models with a saved adapter. Each can be loaded and deleted.

import { ask } from "./ask.js";
import { engine } from "./engine.js";
import { forgetRun, modelKey, session } from "./session.js";
import { $, act, make, mib } from "./ui.js";

const TITLES = { demo: () => "The demo model", hub: (model) => model.id, folder: (model) => `The folder ${model.name}` };

/** Returns everything that is kept: [{model, bytes, isComplete, steps}]. */
async function kept() {
  const all = new Map();
  for (const { model, steps } of Object.values(session.runs)) if (model?.kind in TITLES) all.set(modelKey(model), { model, bytes: 0, isComplete: true, steps });
  for (const { id, bytes, isComplete } of await engine.models()) {
    const model = { kind: "hub", id };
    all.set(modelKey(model), { steps: 0, ...all.get(modelKey(model)), model, bytes, isComplete });
  }
  return [...all.values()];
}

const download = ({ bytes, isComplete }) => (bytes ? `${mib(bytes)}${isComplete ? "" : ", not complete"}` : "");
const adapter = ({ steps }) => (steps ? `${steps} ${steps === 1 ? "step" : "steps"}` : "");

/** Deletes a model's download and its adapter, after a question. */
async function remove(entry) {
  const parts = [entry.bytes && `the download (${mib(entry.bytes)})`, entry.steps && `the adapter (${adapter(entry)})`].filter(Boolean);
  const title = TITLES[entry.model.kind](entry.model);
  if (!(await ask(`${title}: this deletes ${parts.join(" and ")} from this browser.`, "Delete"))) return;
  await act("Deleting…", async () => {
    if (entry.model.kind === "hub") await engine.deleteModel(entry.model.id);
    if (entry.steps) await forgetRun(entry.model);
  });
}

/** Shows the list. `loaded` is the model on the device, `load(model)` loads one. */
export async function showModels(loaded, load) {
  let entries;
  try {
    entries = await kept();
  } catch (error) {
    // Without the list, everything else works.
    console.warn("the kept models could not be listed:", error);
    return;
  }
  const row = (entry) => {
    const isLoaded = loaded && modelKey(loaded) === modelKey(entry.model);
    const buttons = [make("button", { type: "button" }, "Load"), make("button", { type: "button" }, "Delete")];
    const title = TITLES[entry.model.kind](entry.model);
    buttons.forEach((button) => button.setAttribute("aria-label", `${button.textContent} ${title}`));
    buttons[0].onclick = () => load(entry.model);
    buttons[1].onclick = async () => {
      await remove(entry);
      await showModels(loaded, load);
    };
    // The engine reads the files of the loaded model again when a run begins.
    return make("tr", {}, make("th", { scope: "row" }, title), make("td", { "data-column": "Download" }, download(entry)), make("td", { "data-column": "Adapter" }, adapter(entry)), make("td", {}, ...(isLoaded ? ["loaded"] : buttons)));
  };
  $("models").hidden = entries.length === 0;
  $("models").tBodies[0].replaceChildren(...entries.map(row));
}
