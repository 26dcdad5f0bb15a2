// Draws the timeline of a training step: a lane per kernel, a bar per launch, as a profiler does. The launches are laid end to end in the order
// in which they run, each as long as it was measured.

import { duration } from "./units.js";
import { make } from "./ui.js";

const SVG = "http://www.w3.org/2000/svg";
/** Width of a lane in the units of its bars. */
const WIDTH = 1000;

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Returns the phases as runs: {phase, from, to}, in µs. */
function phases(launches) {
  const runs = [];
  for (const { phase, start, us } of launches) {
    if (runs.at(-1)?.phase !== phase) runs.push({ phase, from: start, to: start });
    runs.at(-1).to = start + us;
  }
  return runs;
}

const lane = (label, ...bars) => [label, svg("svg", { class: "lane", viewBox: `0 0 ${WIDTH} 10`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars)];

/** Draws into an element. `launches` are {kernel, phase, scope, us}, where `us` is null for launches that are too short to be timed. `link(kernel)` returns the
 * label of a kernel's lane. */
export function drawTimeline(element, kernels, launches, link) {
  let at = 0;
  const placed = launches.map((launch) => {
    const one = { ...launch, start: at, us: launch.us ?? 0 };
    at += one.us;
    return one;
  });
  const scale = WIDTH / (at || 1);
  const bar = ({ start, us }, name, title) => svg("rect", { class: name, x: (start * scale).toFixed(2), width: Math.max(1, us * scale).toFixed(2), y: 0, height: 10 }, svg("title", {}, document.createTextNode(title)));
  const runs = phases(placed);
  const phaseBars = runs.map(({ phase, from, to }) => bar({ start: from, us: to - from }, phase, `${phase}: ${duration(to - from)}`));
  const sums = Map.groupBy ? Map.groupBy(runs, (run) => run.phase) : runs.reduce((map, run) => map.set(run.phase, [...(map.get(run.phase) ?? []), run]), new Map());
  const key = [...sums].map(([phase, list]) => make("span", {}, make("i", { class: phase }), ` ${phase} ${duration(list.reduce((sum, { from, to }) => sum + to - from, 0))}`));
  const rows = [make("span", { class: "lane-label" }, "step"), lane("", ...phaseBars)[1]];
  kernels.forEach((kernel, index) => {
    const own = placed.filter((launch) => launch.kernel === index && launch.us > 0);
    rows.push(...lane(link(index), ...own.map((launch) => bar(launch, launch.phase, `${kernel.entry} ${launch.scope}: ${duration(launch.us)}`))));
  });
  const axis = make("div", { class: "axis" }, ...[0, at / 2, at].map((us) => make("span", {}, us ? duration(us) : "0")));
  element.replaceChildren(make("p", { class: "key quiet" }, ...key), make("div", { class: "lanes" }, ...rows, make("span", {}), axis));
}
