// Section 2: shows two instruction-response pairs side by side. Each choice adds a row of preferences.

import { engine, listeners } from "./engine.js";
import { fromJsonl, keep, session, toJsonl } from "./session.js";
import { $, act, download } from "./ui.js";

const NOTES = {
  conditional: "Both answer the same instruction. Your choice says which answer is better.",
  joint: "The instructions differ. Your choice says which instruction and answer you prefer, taken together. The model can learn from this even if no two answers to one instruction are compared.",
};
const GENERAL = ["Name three uses of a paper clip.", "Explain rain to a child.", "Write a polite refusal.", "Give a tip for better sleep.", "Describe the sea in one sentence.", "What makes a good friend?"];

/** The two pairs on the page: [{instruction, response}]. It is null while responses are sampled. */
let shown = null;
/** Number of pairs drawn so far. It seeds the sampling, so that no pair of responses is repeated. */
let draw = 0;

const sides = () => [$("side-a"), $("side-b")];
const pairing = () => document.querySelector("[name=pairing]:checked").value;
const prompts = () => $("prompts").value.split("\n").map((l) => l.trim()).filter(Boolean);

function update() {
  $("count").value = `${session.rows.length} ${session.rows.length === 1 ? "preference" : "preferences"}`;
  $("undo").disabled = session.rows.length === 0;
  $("rows").value = toJsonl(session.rows);
  $("pairing-note").textContent = NOTES[pairing()];
}

/** Shows and saves the changed rows. */
async function changed() {
  update();
  await keep();
}

export async function next() {
  const instructions = prompts();
  if (!session.model || !instructions.length) return;
  shown = null;
  const number = ++draw;
  const first = instructions[(number * 7) % instructions.length];
  const others = instructions.filter((i) => i !== first);
  const second = pairing() === "joint" && others.length ? others[(number * 5) % others.length] : first;
  const pair = [first, second];
  sides().forEach((side, i) => {
    side.disabled = true;
    side.classList.add("busy");
    side.querySelector(".instruction").textContent = pair[i];
    side.querySelector(".response").textContent = "";
  });
  const settings = { temperature: Number($("temperature").value), max_new_tokens: Number($("new-tokens").value), seed: number, template: template() };
  const responses = await act("", () => engine.sample(pair, settings));
  sides().forEach((side) => side.classList.remove("busy"));
  if (!responses || number !== draw) return;
  shown = pair.map((instruction, i) => ({ instruction, response: responses[i] }));
  sides().forEach((side, i) => {
    side.querySelector(".response").textContent = responses[i] || "(empty response)";
    side.disabled = false;
  });
}

const template = () => document.forms.settings?.template.value ?? "paper";

async function choose(side) {
  if (!shown) return;
  const [chosen, reject] = [shown[side], shown[1 - side]];
  // An empty response cannot be scored, so the pair makes no preference.
  if (chosen.response.trim() && reject.response.trim()) {
    session.rows.push({ i_chosen: chosen.instruction, r_chosen: chosen.response, i_reject: reject.instruction, r_reject: reject.response });
    await changed();
  }
  await next();
}

async function undo() {
  session.rows.pop();
  await changed();
}

/** Replaces all rows by those of a file, in any format that the engine reads. */
async function replaceRows(name, blob) {
  await act("", async () => {
    const isPacked = /\.gz$/i.test(name);
    const stream = isPacked ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream();
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    session.rows = fromJsonl(await engine.readRows(name, bytes));
    await changed();
  });
}

export function setUp() {
  sides().forEach((side, i) => (side.onclick = () => choose(i)));
  $("pass").onclick = next;
  $("undo").onclick = undo;
  document.querySelectorAll("[name=pairing]").forEach((radio) => (radio.onchange = () => (update(), next())));
  $("apply-rows").onclick = () => {
    const text = $("rows").value;
    return text.trim() ? replaceRows("preferences.jsonl", new Blob([text])) : $("clear-rows").onclick();
  };
  $("load-rows").onchange = async ({ target }) => {
    const [file] = target.files;
    if (file) await replaceRows(file.name, file);
    target.value = "";
  };
  $("export-rows").onclick = () => download("preferences.jsonl", new Blob([toJsonl(session.rows)]));
  $("draw-rows").onclick = () => act("Generating preferences…", async () => {
    session.rows.push(...fromJsonl(await engine.demoPreferences(session.rows.length, 64)));
    await changed();
  });
  $("clear-rows").onclick = async () => {
    session.rows = [];
    await changed();
  };
  document.addEventListener("keydown", (event) => {
    const isRadio = event.target.matches?.("[type=radio]");
    const types = event.target.matches?.("input, textarea, select") && !isRadio;
    if (types || event.ctrlKey || event.metaKey || event.altKey) return;
    const letters = { a: () => choose(0), b: () => choose(1), s: next, u: undo };
    // The arrow keys move between radio buttons, so they do not choose there.
    const acts = isRadio ? letters : { ...letters, arrowleft: letters.a, arrowright: letters.b };
    const found = acts[event.key.toLowerCase()];
    if (found && !document.querySelector("main").inert) {
      event.preventDefault();
      found();
    }
  });
  document.addEventListener("model", async ({ detail }) => {
    $("prompts").value = (detail.kind === "demo" ? await engine.demoPrompts(0, 24) : GENERAL).join("\n");
    $("draw-rows").hidden = detail.kind !== "demo";
    update();
    await next();
  });
  listeners.add(({ event, prompt, text }) => {
    const side = sides()[prompt];
    if (event === "text" && side?.classList.contains("busy")) side.querySelector(".response").textContent = text;
  });
  update();
}
