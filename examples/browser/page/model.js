// Section 1: a model from this site, a folder, or the hub; what it would take is told before it is downloaded.

import { engine, listeners } from "./engine.js";
import { keep, session } from "./session.js";
import { $, act, make, mib, progress, status } from "./ui.js";

const DEMO = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

async function demoFiles() {
  const one = async (name) => {
    const response = await fetch(`model/${name}`);
    if (!response.ok) throw new Error(`model/${name}: ${response.status}`);
    return new File([await response.blob()], name);
  };
  return Promise.all(DEMO.map(one));
}

/** Loads, and tells the rest of the page. */
async function load(model, files) {
  const name = model.id ?? model.name ?? "demo";
  const notes = await engine.load(name, files);
  if (JSON.stringify(model) !== JSON.stringify(session.model)) Object.assign(session, { model, lines: [], kept: null, settings: null, data: null });
  await keep();
  $("model-name").textContent = [model.kind === "demo" ? "The demo model: a million parameters, trained on small tasks" : name, ...notes].join(". ");
  $("plan").hidden = true;
  document.dispatchEvent(new CustomEvent("model", { detail: model }));
}

export const loadDemo = () => act("Loading the demo model…", async () => load({ kind: "demo" }, await demoFiles()));

export const loadHub = (id) => act(`Loading ${id}…`, async () => load({ kind: "hub", id }, await engine.download(id)));

/** The kept session's model, where it can be had without asking. */
export async function reload(model) {
  if (model?.kind === "hub") return loadHub(model.id);
  if (model?.kind === "folder") $("model-name").textContent = `Choose ${model.name} again to go on: a page may not reopen folders by itself`;
  else return loadDemo();
}

function planTable(lines, id) {
  const fits = lines.filter((l) => !l.refused);
  const best = fits.reduce((a, b) => (a && a.max_length * a.batch_size >= b.max_length * b.batch_size ? a : b), null);
  const row = (l) => {
    const cells = [`${l.batch_size} × 2 × ${l.max_length}`, l.recompute === "none" ? "" : "layers run twice", l.refused ?? mib(l.peak_bytes)];
    return make("tr", l.refused ? { class: "bad" } : {}, ...cells.map((c) => make("td", {}, c)));
  };
  const head = make("tr", {}, ...["pairs × sides × tokens", "", "memory on the GPU"].map((h) => make("th", {}, h)));
  const button = make("button", { class: "primary" }, "Download and load");
  button.onclick = () => loadHub(id);
  const verdict = best
    ? `The largest that fits a binding of this adapter: ${best.batch_size} pairs of ${best.max_length} tokens, ${mib(best.peak_bytes)}. How much memory the GPU has, a browser does not tell.`
    : "No setting fits this adapter.";
  $("plan").replaceChildren(make("p", {}, verdict), make("div", { class: "row" }, button), make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines.map(row))));
  $("plan").hidden = false;
}

export function setUp() {
  $("load-demo").onclick = loadDemo;
  $("load-folder").onchange = ({ target }) => {
    const files = [...target.files];
    target.value = "";
    if (!files.length) return;
    const name = files[0].webkitRelativePath.split("/")[0] || "a folder";
    act(`Loading ${name}…`, () => load({ kind: "folder", name }, files));
  };
  $("hub").onsubmit = (event) => {
    event.preventDefault();
    const id = $("hub-id").value.trim();
    if (id) act(`Asking the hub about ${id}…`, async () => planTable(await engine.planHub(id, {}), id));
  };
  listeners.add(({ event, done, total, name }) => {
    if (event !== "download") return;
    status(`${name}: ${mib(done)}${total ? ` of ${mib(total)}` : ""}`);
    progress(total ? done / total : null);
  });
}
