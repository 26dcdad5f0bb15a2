// Draws line charts of a run's metrics, again after each step. They are SVG, so screenshots and prints stay sharp.

import { make } from "./ui.js";

/** `good` says what a good curve looks like. */
const CHARTS = [
  { title: "Loss", lines: ["loss"], good: "Good: it falls. Some zigzag is normal." },
  { title: "Reward margin", lines: ["rewards/margins"], good: "Good: it rises above 0. The model then prefers what you chose more than it did before." },
  { title: "Reward accuracy", lines: ["rewards/accuracies"], range: [0, 1], good: "Good: it rises towards 1, the share of pairs on which the model agrees with you." },
  { title: "log π", lines: ["logps/instruction", "logps/response"], good: "Log-probability of the instructions (solid) and the responses (dashed). Good: no steep fall. If both sink, raise β or lower the learning rate." },
  { title: "Gradient norm", lines: ["grad_norm"], good: "Good: no high peaks. If there are many, lower the learning rate." },
  { title: "Tokens per second", value: (line) => line.tokens / line.seconds, good: "Good: it is steady. The first step is slow, because the GPU's programs are compiled." },
];
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [260, 130, 46, 8, 8, 18];
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Formats a number with about three digits, in at most seven characters: the axis has no room for more. */
function short(x) {
  if (x === undefined) return "";
  const size = Math.abs(x);
  if (size >= 100) return size < 1e6 ? x.toFixed(0) : x.toExponential(1);
  return size > 0 && size < 0.01 ? x.toExponential(1) : Number(x.toPrecision(3)).toString();
}

function chart({ title, lines: names = [], value, range, good }, lines) {
  const series = value ? [lines.map(value)] : names.map((name) => lines.map((line) => line[name]));
  const known = series.flat().filter((y) => Number.isFinite(y));
  const figure = make("figure", {}, make("figcaption", {}, title, make("output", {}, series.map((s) => short(s.at(-1))).join(", "))));
  const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}, ${lines.length} steps` });
  let [low, high] = range ?? [Math.min(...known), Math.max(...known)];
  if (!(high - low > 1e-9)) [low, high] = known.length ? [low - 0.5, high + 0.5] : [0, 1];
  const last = Math.max(2, lines.length);
  const x = (i) => LEFT + ((WIDTH - LEFT - RIGHT) * i) / (last - 1);
  const y = (v) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (v - low) / (high - low));
  for (const v of [low, (low + high) / 2, high]) {
    root.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }));
    root.append(svg("text", { x: LEFT - 4, y: y(v) + 3, "text-anchor": "end" }, short(v)));
  }
  root.append(svg("text", { x: LEFT, y: HEIGHT - 5 }, "1"), svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, `step ${last}`));
  series.forEach((values, n) => {
    const points = values.map((v, i) => (Number.isFinite(v) ? `${x(i).toFixed(1)},${y(v).toFixed(1)}` : "")).filter(Boolean);
    root.append(svg("polyline", { class: `line l${n}`, points: points.join(" ") }));
  });
  figure.append(root, make("p", { class: "note" }, good));
  return figure;
}

/** Draws all charts into an element. `lines` are the run's lines of `metrics.jsonl`. */
export function draw(element, lines) {
  element.replaceChildren(...(lines.length ? CHARTS.map((c) => chart(c, lines)) : []));
}
