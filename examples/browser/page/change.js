// Sections 4 and 5: compare answers and token probabilities before and after training, and download the result.

import { engine } from "./engine.js";
import { forget, session } from "./session.js";
import { $, act, download, make } from "./ui.js";
import { zip } from "./zip.js";

const COMPARED = 5;

const template = () => session.settings?.template ?? "paper";

async function compare() {
  const prompts = $("prompts").value.split("\n").filter((l) => l.trim()).slice(0, COMPARED);
  const settings = { temperature: Number($("temperature").value), max_new_tokens: Number($("new-tokens").value), seed: 1, template: template() };
  const before = await engine.sample(prompts, { ...settings, tuned: false });
  const after = await engine.sample(prompts, { ...settings, tuned: true });
  const rows = prompts.map((p, i) => make("tr", {}, ...[p, before[i], after[i]].map((text) => make("td", {}, text))));
  $("comparison").tBodies[0].replaceChildren(...rows);
  $("comparison").hidden = false;
}

/** Smallest end of the heat map's scale. Smaller changes stay nearly without colour, so that noise is not shown as a change. */
const LEAST = 0.01;

/** Returns a token's CSS: blue is more likely than before, orange is less likely. `most` is the end of the scale. */
function colour(change, most) {
  const strength = (Math.abs(change) / most) * 0.6;
  return change === null ? "" : `background: rgba(var(--${change >= 0 ? "up" : "down"}), ${strength.toFixed(3)})`;
}

async function heat() {
  const [instruction, response] = [$("heat-instruction").value, $("heat-response").value];
  const tokens = await engine.score(instruction, response, template());
  const changes = tokens.map((t) => (t.logp === null ? null : t.logp - t.reference));
  const most = Math.max(LEAST, ...changes.map(Math.abs));
  const spans = tokens.map((t, i) => {
    const change = changes[i];
    const title = change === null ? "The first token has no score" : `log π ${t.logp.toFixed(3)}, before ${t.reference.toFixed(3)}, change ${change.toFixed(3)}`;
    return make("span", { style: colour(change, most), title, class: t.response ? "response" : "instruction" }, t.text);
  });
  $("heat-map").replaceChildren(...spans);
  $("heat-factor").textContent = Math.exp(most).toPrecision(3);
  $("heat-map").hidden = $("heat-key").hidden = false;
  const sum = (part) => part.reduce((n, t) => n + (t.logp ?? 0) - (t.reference ?? 0), 0);
  const [all, answer] = [sum(tokens), sum(tokens.filter((t) => t.response))];
  $("heat-sum").value = `Log-ratio: ${all.toFixed(3)} in total, ${answer.toFixed(3)} for the response`;
}

async function takeHome() {
  const files = await engine.adapter();
  const text = (name, content) => files.push({ name, bytes: new TextEncoder().encode(content) });
  text("metrics.jsonl", session.lines.map((line) => JSON.stringify(line)).join("\n") + "\n");
  text("report.html", await engine.report(session.lines, session.started));
  text("preferences.jsonl", session.data);
  download("jointwise-adapter.zip", zip(files));
}

export function setUp() {
  $("compare").onclick = () => act("Sampling…", compare);
  $("heat").onsubmit = (event) => {
    event.preventDefault();
    act("Scoring…", heat);
  };
  $("download").onclick = () => act("Preparing the download…", takeHome);
  $("forget").onclick = () => act("", async () => {
    await forget();
    location.reload();
  });
  document.addEventListener("trained", () => act("Sampling…", compare));
}
