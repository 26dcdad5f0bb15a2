// Section 1: loads a model from this site, a folder, or the hub. For a hub model it first estimates the GPU memory, before the download.

import { cancel, engine, listeners } from "./engine.js";
import { CANCELLED, modelId } from "./hub.js";
import { showModels } from "./models.js";
import { keep, modelKey, openRun, session } from "./session.js";
import { fill, isTraining, settings } from "./training.js";
import { noteSettings } from "./typed.js";
import { $, act, make, mib, progress, status } from "./ui.js";
import { plain } from "./words.js";

const DEMO = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
/** Column headings of the plan's table, by value of `recompute`. */
const RECOMPUTE = { none: "nothing recomputed", elementwise: "norms recomputed", linear: "all but attention recomputed", block: "layers recomputed" };

async function demoFiles() {
  const one = async (name) => {
    const response = await fetch(`model/${name}`);
    if (!response.ok) throw new Error(`model/${name}: ${response.status}`);
    return new File([await response.blob()], name);
  };
  return Promise.all(DEMO.map(one));
}

/** Notes of the worker on the model that is being loaded. */
let notes = [];
/** Model on the device, or null. */
let loaded = null;

const nameOf = (model) => model.id ?? model.name ?? "the demo model";

/** Returns the format of frozen weights: that of the saved run, if the model is loaded for it, or that of the form. */
function baseDtype(isForRun) {
  const known = [...$("settings").elements.base_dtype.options].map((option) => option.value);
  const saved = isForRun ? session.settings?.base_dtype : undefined;
  return known.includes(saved) ? saved : settings().base_dtype;
}

/** Loads a model and tells the rest of the page with an event, "model". The run of another model stays saved, and comes back with it. */
async function load(model, files) {
  if (isTraining()) throw new Error("A model is being trained. Press Stop in section 3, then load another one");
  const isSame = modelKey(model) === modelKey(session.model);
  try {
    notes.push(...(await engine.load(model.id ?? model.name ?? "demo", files, baseDtype(isSame))));
  } catch (error) {
    if (!error.lost && !(await engine.hasModel())) loaded = null;
    throw error;
  }
  loaded = model;
  if (!isSame) {
    session.model = model;
    await openRun(model);
  }
  await keep();
  $("model-name").textContent = plain([model.kind === "demo" ? "The demo model: 1 million parameters, trained on small tasks" : model.id ?? model.name, ...notes].join(". "));
  $("plan").hidden = true;
  document.dispatchEvent(new CustomEvent("model", { detail: model }));
  return true;
}

/** Runs an action that loads a model. Afterwards the list of models is shown, and the model before is loaded again if it had to go. */
async function loading(what, run) {
  const before = loaded;
  notes = [];
  const isLoaded = await act(what, run);
  if (!isLoaded && before && !loaded) await reload(before);
  await list();
  return isLoaded;
}

/** Runs requests to the hub. Shows a button that cancels them. */
async function withHub(run) {
  $("cancel").hidden = false;
  try {
    return await run();
  } catch (error) {
    if (error.message !== CANCELLED) throw error;
    return undefined;
  } finally {
    $("cancel").hidden = true;
  }
}

export const loadDemo = () => loading("Loading the demo model…", async () => load({ kind: "demo" }, await demoFiles()));

export const loadHub = (id) => loading(`Loading ${id}…`, async () => {
  const files = await withHub(() => engine.download(id));
  return files && load({ kind: "hub", id }, files);
});

/** Loads the saved session's model again. A folder cannot be reopened without the user, so the page asks for it. */
export async function reload(model) {
  loaded = null;
  if (model?.kind === "folder") {
    $("model-name").textContent = `Choose the folder ${model.name} again to continue. A page may not reopen a folder by itself`;
    $("other-model").open = true;
    return list();
  }
  $("model-name").textContent = `${nameOf(model ?? {})} is being loaded`.replace(/^t/, "T");
  const isLoaded = model?.kind === "hub" ? await loadHub(model.id) : await loadDemo();
  if (isLoaded) return;
  const kept = session.kept ? ", and you can download the adapter" : "";
  $("model-name").textContent = `${nameOf(model ?? {})} is not loaded. Your preferences are still here${kept}`;
  $("other-model").open = true;
}

/** Shows the list of models that this browser keeps. */
function list() {
  const again = { hub: (model) => loadHub(model.id), demo: loadDemo, folder: () => $("load-folder").click() };
  return showModels(loaded, (model) => again[model.kind](model));
}

/** Shows a table of the GPU memory that each setting needs. A click on a cell uses its setting for training. */
function planTable(lines, id) {
  const keeps = Object.keys(RECOMPUTE);
  const fits = lines.filter((l) => !l.refused);
  const best = fits.reduce((a, b) => (a && a.max_length * a.batch_size >= b.max_length * b.batch_size ? a : b), null);
  const cell = (line) => {
    if (line.refused) return make("td", { class: "n", title: plain(line.refused) }, "too large");
    const button = make("button", { type: "button", "aria-pressed": "false" }, mib(line.peak_bytes).replace(" MiB", ""));
    button.onclick = () => {
      fill({ max_length: line.max_length, batch_size: line.batch_size, recompute: line.recompute });
      noteSettings();
      $("plan").querySelectorAll("[aria-pressed]").forEach((other) => other.setAttribute("aria-pressed", other === button));
    };
    if (line === best) button.dataset.best = "";
    return make("td", { class: "n" }, button);
  };
  const rows = [];
  for (let i = 0; i < lines.length; i += keeps.length) {
    const { batch_size, max_length } = lines[i];
    rows.push(make("tr", {}, make("td", {}, `${batch_size} × 2 × ${max_length}`), ...lines.slice(i, i + keeps.length).map(cell)));
  }
  const head = make("tr", {}, make("th", {}, "pairs × 2 × tokens"), ...keeps.map((k) => make("th", { class: "n" }, RECOMPUTE[k])));
  const load = make("button", { class: "primary" }, "Download and load");
  load.onclick = () => loadHub(id);
  const base = $("settings").elements.base_dtype.cloneNode(true);
  base.value = settings().base_dtype;
  base.onchange = () => {
    fill({ base_dtype: base.value });
    noteSettings();
    plan(id);
  };
  const verdict = best
    ? `The table shows the GPU memory per setting, in MiB. Click a number to use its setting. The largest batch within this GPU's limits is ${best.batch_size} pairs of ${best.max_length} tokens (${mib(best.peak_bytes)}). A browser cannot tell how much memory the GPU has, so choose a number that fits yours.`
    : `No setting fits within this GPU's limits: ${plain(lines[0].refused)}`;
  const controls = make("div", { class: "row" }, load, make("label", {}, "Format of frozen weights ", base));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  $("plan").replaceChildren(make("p", {}, verdict), controls, make("div", { class: "wide" }, table));
  $("plan").querySelector("[data-best]")?.click();
  $("plan").hidden = false;
}

const plan = (id) => act(`Estimating the memory for ${id}…`, async () => {
  const lines = await withHub(() => engine.planHub(id, settings()));
  if (lines) planTable(lines, id);
});

export function setUp() {
  $("load-demo").onclick = loadDemo;
  $("load-folder").onchange = ({ target }) => {
    const files = [...target.files];
    target.value = "";
    if (!files.length) return;
    const name = files[0].webkitRelativePath.split("/")[0] || "a folder";
    loading(`Loading ${name}…`, () => load({ kind: "folder", name }, files));
  };
  $("hub").onsubmit = (event) => {
    event.preventDefault();
    const typed = $("hub-id").value.trim();
    if (!typed) return;
    act("", async () => ($("hub-id").value = modelId(typed))).then((id) => id && plan(id));
  };
  $("cancel").onclick = cancel;
  // The engine has no model any more, although the session has one.
  document.addEventListener("unloaded", () => reload(session.model));
  listeners.add(({ event, done, total, name, seconds, text }) => {
    if (event === "note") notes.push(text);
    if (event === "stalled") status(`The hub has not answered for ${seconds} seconds${name ? ` (${name})` : ""}. Wait, or press Cancel`);
    if (event !== "download") return;
    status(`Downloading ${name}: ${mib(done)}${total ? ` of ${mib(total)}` : ""}`);
    progress(total ? done / total : null);
  });
}
