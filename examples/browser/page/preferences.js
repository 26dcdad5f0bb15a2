// Section 2: shows two instruction-response pairs side by side. Each choice adds a row of preferences.

import { engine, listeners } from "./engine.js";
import { amount } from "./form.js";
import { drawPair, seed } from "./pairs.js";
import { fromJsonl, keep, session, toJsonl } from "./session.js";
import { ownPrompts } from "./typed.js";
import { $, act, download, keepFocus } from "./ui.js";

const NOTES = {
  conditional: "Both answer the same instruction. Your choice says which answer is better.",
  joint: "The instructions differ. Your choice says which instruction and answer you prefer, taken together. The model can learn from this even if no two answers to one instruction are compared.",
};
const GENERAL = ["Name three uses of a paper clip.", "Explain rain to a child.", "Write a polite refusal.", "Give a tip for better sleep.", "Describe the sea in one sentence.", "What makes a good friend?"];
/** Number of preferences after which training shows a change. */
const ENOUGH = 20;
/** Number of times that a pair is drawn until two answers can be compared. */
const TRIES = 4;

/** The two sides on the page: [{instruction, response}]. It is null while there is nothing to choose. */
let shown = null;
/** Number of pairs asked for, and of the last one drawn. They are equal unless the user asks while a pair is drawn. */
let asked = 0;
let drawn = 0;
let drawing = false;
/** Earlier lists of rows, the newest last: {rows, pair}. `pair` is what was on the page when its side was chosen. */
const past = [];
/** True while the text with the rows has edits that were not applied. */
let edited = false;

const sides = () => [$("side-a"), $("side-b")];
const pairing = () => document.querySelector("[name=pairing]:checked").value;
const prompts = () => $("prompts").value.split("\n").map((l) => l.trim()).filter(Boolean);
const template = () => document.forms.settings?.template.value ?? "paper";
const note = (text) => ($("pair-note").textContent = text);

function update() {
  const n = session.rows.length;
  $("count").value = n < ENOUGH ? `${n} of about ${ENOUGH}` : `${n} preferences, enough to train`;
  $("enough").value = Math.min(n, ENOUGH);
  keepFocus(() => ($("undo").disabled = past.length === 0), $("side-a"));
  if (!edited) $("rows").value = toJsonl(session.rows);
  $("pairing-note").textContent = NOTES[pairing()];
}

/** Replaces the rows, shows them and saves them. Undo returns to the rows before. */
async function change(rows, pair = null) {
  past.push({ rows: session.rows, pair });
  session.rows = rows;
  update();
  await keep();
}

/** Shows two sides. Without responses, they are still being sampled. */
function show(pair, isReady) {
  shown = isReady ? pair : null;
  const isShared = pair[0].instruction === pair[1].instruction;
  $("task").textContent = isShared ? pair[0].instruction : "";
  sides().forEach((side, i) => {
    side.querySelector(".instruction").textContent = pair[i].instruction;
    side.querySelector(".response").textContent = pair[i].response ?? "";
    // A disabled button would lose the focus.
    side.setAttribute("aria-disabled", !isReady);
    side.classList.toggle("busy", pair[i].response === undefined);
    side.classList.toggle("shares", isShared);
  });
}

/** Returns the reason why two sides make no preference, or "". */
function incomparable([a, b]) {
  if (!a.response.trim() || !b.response.trim()) return "An answer was empty";
  return a.instruction === b.instruction && a.response === b.response ? "Both answers were the same" : "";
}

/** Draws one pair and shows it. A pair that makes no preference is drawn again. */
async function draw() {
  const number = (drawn = asked);
  note("");
  for (let tries = 1; ; tries++) {
    const [all, isJoint] = [prompts(), pairing() === "joint"];
    if (!all.length) {
      note("There are no instructions. Write some in the options below, then press Skip.");
      return show(Array(2).fill({ instruction: "", response: "" }), false);
    }
    const instructions = drawPair(all, isJoint);
    show(instructions.map((instruction) => ({ instruction })), false);
    const settings = () => ({ temperature: amount("temperature"), max_new_tokens: amount("new-tokens"), seed: seed(), template: template() });
    const responses = await act("", async () => engine.sample(instructions, settings()));
    if (number !== asked) return;
    const pair = instructions.map((instruction, i) => ({ instruction, response: responses?.[i] ?? "" }));
    if (!responses) return show(pair, false);
    const reason = incomparable(pair);
    if (!reason || tries === TRIES) {
      if (isJoint && instructions[0] === instructions[1]) note("There is only one instruction, so two answers to it are compared.");
      if (reason) note(`${reason}, ${TRIES} times in a row. Raise the temperature in the options below, or press Skip to try again.`);
      return show(pair, !reason);
    }
    note(`${reason}, so another pair is drawn.`);
  }
}

/** Shows the next pair. */
export async function next() {
  if (!session.model) return;
  asked++;
  if (drawing) return;
  drawing = true;
  while (drawn !== asked) await draw();
  drawing = false;
}

/** Skips the pair on the page. A pair that nobody has seen yet is not skipped, so a held key asks for one pair and not for many. */
const skip = () => drawing || next();

async function choose(side) {
  if (!shown) return;
  const pair = shown;
  // From here on, a second click or a held key finds no pair.
  shown = null;
  const [chosen, reject] = [pair[side], pair[1 - side]];
  const row = { i_chosen: chosen.instruction, r_chosen: chosen.response, i_reject: reject.instruction, r_reject: reject.response };
  const saved = change([...session.rows, row], pair);
  if (edited) $("rows").value = `${$("rows").value.trimEnd()}\n${toJsonl([row])}`;
  await Promise.all([saved, next()]);
}

/** Takes the last change of the rows back. The pair of a choice is shown again. */
async function undo() {
  const last = past.pop();
  if (!last) return;
  session.rows = last.rows;
  if (last.pair) {
    // A pair that is being drawn comes after this one.
    asked++;
    drawn = asked;
    note("");
    show(last.pair, true);
  }
  update();
  await keep();
}

/** Replaces all rows by those of a file, in any format that the engine reads. */
async function replaceRows(name, blob) {
  await act("", async () => {
    const isPacked = /\.gz$/i.test(name);
    const stream = isPacked ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream();
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const rows = fromJsonl(await engine.readRows(name, bytes));
    edited = false;
    await change(rows);
  });
}

/** Adds `n` rows that the demo's grader decides, and returns them. Half of them compare two instructions, unless all are to compare answers. */
export const generate = (n, isConditional = false) => act(`A grader picks ${n} answers…`, async () => {
  const drawn = fromJsonl(await engine.demoPreferences(session.rows.length, isConditional ? 2 * n : n));
  const rows = isConditional ? drawn.filter((row) => row.i_chosen === row.i_reject).slice(0, n) : drawn;
  await change([...session.rows, ...rows]);
  return rows;
});

/** Removes rows. Undo brings them back. */
export const remove = (rows) => change(session.rows.filter((row) => !rows.includes(row)));

async function clear() {
  edited = false;
  await change([]);
}

/** Tells whether a key may choose: nothing outside of the pair has the focus. */
function mayChoose() {
  const focused = document.activeElement;
  return $("keys").checked && !$("main").inert && (!focused || focused === document.body || $("choosing").contains(focused));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !mayChoose()) return;
  const [a, b] = [() => choose(0), () => choose(1)];
  const found = { a, b, arrowleft: a, arrowright: b, s: skip, u: undo }[event.key.toLowerCase()];
  // A held Enter would press the button with the focus again and again.
  if (found || (event.repeat && event.key === "Enter")) event.preventDefault();
  if (found && !event.repeat) found();
}

export function setUp() {
  // The second click of a double click may meet the next pair already.
  sides().forEach((side, i) => (side.onclick = ({ detail }) => detail < 2 && choose(i)));
  $("pass").onclick = ({ detail }) => detail < 2 && skip();
  $("undo").onclick = undo;
  document.querySelectorAll("[name=pairing]").forEach((radio) => (radio.onchange = () => (update(), next())));
  $("rows").oninput = () => (edited = true);
  $("apply-rows").onclick = () => {
    const text = $("rows").value;
    return text.trim() ? replaceRows("preferences.jsonl", new Blob([text])) : clear();
  };
  $("load-rows").onchange = async ({ target }) => {
    const [file] = target.files;
    if (file) await replaceRows(file.name, file);
    target.value = "";
  };
  $("export-rows").onclick = () => download("preferences.jsonl", new Blob([toJsonl(session.rows)]));
  $("draw-rows").onclick = () => generate(64);
  $("clear-rows").onclick = clear;
  document.addEventListener("keydown", onKey);
  document.addEventListener("rows", () => {
    past.length = 0;
    update();
  });
  document.addEventListener("model", async ({ detail }) => {
    $("prompts").value = ownPrompts() ?? (detail.kind === "demo" ? await engine.demoPrompts(0, 24) : GENERAL).join("\n");
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
