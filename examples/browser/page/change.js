// Sections 4 and 5: compare answers and token probabilities before and after training, and download the result.

import { ask } from "./ask.js";
import { engine } from "./engine.js";
import { amount } from "./form.js";
import { forget, keepRun, session } from "./session.js";
import { adapterFiles } from "./training.js";
import { $, act, download, make } from "./ui.js";
import { zip } from "./zip.js";

/** Number of instructions that are compared: the first ones in section 2. */
const COMPARED = 8;

const template = () => session.settings?.template ?? "paper";

/** Compares the most likely answers before and after training, so that chance changes none. The instructions whose answer changed come first. */
async function compare() {
  const prompts = $("prompts").value.split("\n").map((l) => l.trim()).filter(Boolean).slice(0, COMPARED);
  const settings = { temperature: 0, max_new_tokens: amount("new-tokens"), seed: 1, template: template() };
  const before = await engine.sample(prompts, { ...settings, tuned: false });
  const after = await engine.sample(prompts, { ...settings, tuned: true });
  const lines = prompts.map((prompt, i) => ({ prompt, before: before[i], after: after[i], isChanged: before[i] !== after[i] }));
  const changed = lines.filter((line) => line.isChanged);
  const row = ({ prompt, before, after, isChanged }) =>
    make("tr", isChanged ? {} : { class: "same" }, make("th", { scope: "row" }, prompt), cell("Before", before), isChanged ? cell("After", after) : cell("After", "no change"));
  $("comparison").tBodies[0].replaceChildren(...[...changed, ...lines.filter((line) => !line.isChanged)].map(row));
  $("comparison").hidden = false;
  $("compared").value = `${changed.length} of ${lines.length} answers changed. ${changed.length ? "Good: after training, an answer is more like those that were chosen." : "Train first, or train for more steps."}`;
  document.dispatchEvent(new CustomEvent("compared"));
}

/** Makes a cell of the comparison. A narrow screen shows its column's name in front of it. */
const cell = (column, text) => make("td", { "data-column": column }, text || "(empty)");

/** Smallest end of the heat map's scale. Smaller changes stay nearly without colour, so that noise is not shown as a change. */
const LEAST = 0.01;

/** Smallest strength, from 0 to 1, that forced colours show. */
const SHOWN = 0.05;

/** Makes a token of the heat map: blue is more likely than before, orange is less likely. `most` is the end of the scale. Forced colours show
 * lines instead: their thickness is the strength. */
function token({ text, logp, reference, n_tokens, response }, most) {
  const change = logp === null ? null : logp - reference;
  const numbers = () => `log π ${logp.toFixed(3)}, before ${reference.toFixed(3)}, change ${change.toFixed(3)}${n_tokens > 1 ? ` (${n_tokens} tokens)` : ""}`;
  const span = make("span", { title: change === null ? "The first token has no score" : numbers(), class: response ? "response" : "instruction" }, text);
  if (change === null) return span;
  const strength = Math.abs(change) / most;
  const direction = change >= 0 ? "up" : "down";
  span.style.background = `rgba(var(--${direction}), ${(0.6 * strength).toFixed(3)})`;
  span.style.setProperty("--strength", strength.toFixed(3));
  if (strength >= SHOWN) span.classList.add(direction);
  return span;
}

async function heat() {
  const [instruction, response] = [$("heat-instruction").value, $("heat-response").value];
  const tokens = await engine.score(instruction, response, template());
  const most = Math.max(LEAST, ...tokens.map((t) => (t.logp === null ? 0 : Math.abs(t.logp - t.reference))));
  $("heat-map").replaceChildren(...tokens.map((t) => token(t, most)));
  $("heat-factor").textContent = Math.exp(most).toPrecision(3);
  $("heat-map").hidden = $("heat-key").hidden = false;
  const sum = (part) => part.reduce((n, t) => n + (t.logp ?? 0) - (t.reference ?? 0), 0);
  const [all, answer] = [sum(tokens), sum(tokens.filter((t) => t.response))];
  $("heat-sum").value = `Log-ratio: ${all.toFixed(3)} in total, ${answer.toFixed(3)} for the response`;
}

async function takeHome() {
  const files = await adapterFiles();
  const text = (name, content) => files.push({ name, bytes: new TextEncoder().encode(content) });
  text("metrics.jsonl", session.lines.map((line) => JSON.stringify(line)).join("\n") + "\n");
  text("preferences.jsonl", session.data);
  download("jointwise-adapter.zip", zip(files));
  session.downloaded = true;
  await keepRun();
}

/** Deletes the saved session, after a question. */
async function forgetAll() {
  const n = session.rows.length;
  const question = `This deletes the saved adapters, your ${n === 1 ? "preference" : `${n} preferences`}, instructions and settings from this browser. Downloaded models stay; the list in section 1 deletes them.`;
  if (!(await ask(question, "Delete the session"))) return;
  await act("", async () => {
    await forget();
    location.reload();
  });
}

export function setUp() {
  $("compare").onclick = () => act("Sampling…", compare);
  $("heat").onsubmit = (event) => {
    event.preventDefault();
    act("Scoring…", heat);
  };
  $("download").onclick = () => act("Preparing the download…", takeHome);
  $("forget").onclick = forgetAll;
  document.addEventListener("trained", () => act("Sampling…", compare));
}
