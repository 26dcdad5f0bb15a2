// The kernels of a training step, in section 6: formula, WGSL, launches, work, time and share of what this GPU can reach.

import { engine } from "./engine.js";
import { drawTimeline } from "./timeline.js";
import { $, act, make, status } from "./ui.js";
import { bytes, duration, operations, percent } from "./units.js";
import { wgsl } from "./wgsl.js";

/** Seconds for which the launches of a step are repeated, beside one run of the step. */
const SECONDS = 2;

/** Kernels and launches of the step that is shown: {kernels, launches}, or null. After a measurement the launches have `us` and `least_us`. */
let step = null;
/** How the step was timed: {method, repetitions, whole_us}, or null. */
let timing = null;

const sum = (list, value) => list.reduce((total, one) => total + value(one), 0);
const launchesOf = (index) => step.launches.filter((launch) => launch.kernel === index);
const isTimed = (launches) => launches.every((launch) => launch.us !== null && launch.us !== undefined);
const shareOf = (launches) => sum(launches, (l) => l.least_us) / sum(launches, (l) => l.us);

/** Address of a source file of this build, at the line with a text. Browsers that do not know text fragments show the file from its beginning. */
const source = (file, text) => `source/${file}.txt${text ? `#:~:text=${encodeURIComponent(text)}` : ""}`;

const link = (file, text) => make("a", { href: source(file, text), target: "_blank", rel: "noopener" }, file);

/** Returns the layers of launches in few characters: "L0 to L3", or "". */
function scopes(launches) {
  const names = [...new Set(launches.map((launch) => launch.scope).filter(Boolean))];
  return names.length > 2 ? `${names[0]} … ${names.at(-1)}` : names.join(", ");
}

/** Returns the parts in which a kernel differs from the others of its entry point: constants and replaced modules. */
function speciality(kernel) {
  const parts = (one) => [...one.constants, ...one.substitutions.map((name) => name.replace("shared/", ""))];
  const others = step.kernels.filter((other) => other !== kernel && other.entry === kernel.entry);
  return parts(kernel).filter((part) => others.some((other) => !parts(other).includes(part)));
}

/** Returns a kernel's name: its entry point, with a number if there are several specialisations. */
function nameOf(kernel) {
  const alike = step.kernels.filter((other) => other.entry === kernel.entry);
  return alike.length > 1 ? `${kernel.entry} #${alike.indexOf(kernel) + 1}` : kernel.entry;
}

/** Joins the lines of a comment that were broken because they are long. Other line breaks belong to the formulas. */
function unwrapped(comment) {
  const lines = comment.split("\n");
  return lines.reduce((text, line, i) => {
    const before = lines[i - 1] ?? "";
    const isContinued = before.length > 105 && /^\S/.test(line);
    return text + (i === 0 ? "" : isContinued ? " " : "\n") + line;
  }, "");
}

/** Groups the launches of a kernel that are alike. */
function groups(launches) {
  const alike = new Map();
  for (const launch of launches) {
    const key = JSON.stringify([launch.phase, launch.workgroups, launch.bytes, launch.flops]);
    alike.set(key, [...(alike.get(key) ?? []), launch]);
  }
  return [...alike.values()];
}

const times = (list) => {
  while (list.length > 1 && list.at(-1) === 1) list = list.slice(0, -1);
  return list.map((n) => n.toLocaleString("en")).join(" × ");
};

/** Returns the table of a kernel's launches. */
function launchTable(kernel, launches) {
  const columns = ["Phase", "Where", "Launches", "Workgroups", "Bytes", "Operations", "Time each", "GB/s", "GFLOP/s", "Share of peak"];
  const row = (group) => {
    const [{ phase, workgroups, bytes: moved, flops }] = group;
    const us = isTimed(group) ? sum(group, (l) => l.us) / group.length : null;
    const timed = us === null ? Array(4).fill(timing ? "too short" : "–") : [duration(us), (moved / us / 1e3).toFixed(2), flops ? (flops / us / 1e3).toFixed(2) : "–", percent(shareOf(group))];
    const cells = [phase, scopes(group), group.length, times(workgroups), bytes(moved), flops ? operations(flops) : "–", ...timed];
    return make("tr", {}, ...cells.map((text, i) => make("td", i < 2 ? {} : { class: "n" }, String(text))));
  };
  const head = make("tr", {}, ...columns.map((text, i) => make("th", i < 2 ? { scope: "col" } : { scope: "col", class: "n" }, text)));
  const table = make("table", {}, make("caption", {}, `Launches of ${nameOf(kernel)} in a step`), make("thead", {}, head), make("tbody", {}, ...groups(launches).map(row)));
  return make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Launches of ${nameOf(kernel)}` }, table);
}

/** Fills in what a kernel's line unfolds. */
function detail(kernel, launches) {
  const invocations = kernel.workgroup_size.reduce((a, b) => a * b);
  const facts = {
    Workgroup: `${times(kernel.workgroup_size)}${kernel.workgroup_size[1] > 1 ? ` = ${invocations}` : ""} invocations`,
    Constants: kernel.constants.join(", ") || "none",
    "Replaced modules": kernel.substitutions.join(", ") || "none",
  };
  const lines = kernel.wgsl.split("\n").length;
  const text = make("details", {}, make("summary", {}, `WGSL of ${kernel.entry} as linked for this GPU, ${lines} lines`));
  text.ontoggle = () => text.open && text.children.length === 1 && text.append(wgsl(kernel.wgsl));
  return [
    make("pre", { class: "formula" }, unwrapped(kernel.formula)),
    ...(kernel.about ? [make("pre", { class: "formula quiet" }, unwrapped(kernel.about))] : []),
    make("dl", {}, ...Object.entries(facts).flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])),
    launchTable(kernel, launches),
    text,
    make("p", { class: "quiet" }, "Source: ", link(kernel.shader_file, `fn ${kernel.entry}(`), " (WGSL), ", link(kernel.rust_file), " (launcher, f64 twin, test cases)"),
  ];
}

/** Returns the line of a kernel, which unfolds. */
function line(kernel, index, longest, wasOpen) {
  const launches = launchesOf(index);
  const total = isTimed(launches) ? sum(launches, (l) => l.us) : null;
  const cell = (name, ...children) => make("span", { class: name }, ...children);
  const time = total === null ? [timing ? "too short to time" : "not timed"] : [duration(total)];
  const bar = total === null ? [] : [make("span", { class: "bar", style: `width: ${((100 * total) / longest).toFixed(1)}%` })];
  const summary = make(
    "summary",
    {},
    cell("name", make("code", {}, nameOf(kernel)), " ", make("small", {}, speciality(kernel).join(", "))),
    cell("n count", `${launches.length} ${launches.length === 1 ? "launch" : "launches"}`),
    cell("n time", ...time),
    cell("n peak", total === null ? "" : `${percent(shareOf(launches))} of peak`),
    make("span", { class: "track", "aria-hidden": "true" }, ...bar),
  );
  const element = make("details", { class: "kernel", id: `kernel-${index}` }, summary);
  const fill = () => element.open && element.children.length === 1 && element.append(make("div", { class: "about" }, ...detail(kernel, launches)));
  element.ontoggle = fill;
  element.open = wasOpen;
  fill();
  return element;
}

/** Says what was measured, and how. */
function words() {
  const n = step.launches.length;
  const launched = `A step launched ${step.kernels.length} kernels ${n} times. They read and write ${bytes(sum(step.launches, (l) => l.bytes))}, each tensor once per launch, and do ${operations(sum(step.launches, (l) => l.flops))} floating-point operations.`;
  if (!timing) return [launched, "Not timed yet."];
  const short = step.launches.filter((launch) => launch.us === null).length;
  const how =
    timing.method === "timestamps"
      ? `Each launch ran ${timing.repetitions === 1 ? "once" : `${timing.repetitions} times`} in its place, between two timestamps of the GPU. A browser may round timestamps to 0.1 ms${timing.repetitions === 1 ? "" : `, which is ${duration(100 / timing.repetitions)} per run`}.`
      : `This browser gives no usable timestamps of the GPU. Each kernel was submitted alone, up to ${timing.repetitions} times together, and timed by the clock, less the time of an empty submission. Launches that are alike were timed once.`;
  const total = `Together the launches take ${duration(sum(step.launches, (l) => l.us ?? 0))}. The whole step, submitted as in training, takes ${duration(timing.whole_us)}: there, launches have no passes or submissions of their own.`;
  return [launched, how, total, ...(short ? [`${short} launches are too short to be timed here. They have no bar.`] : [])];
}

/** Shows the step. */
function show() {
  const open = new Set([...$("kernels").querySelectorAll(".kernel[open]")].map((element) => element.id));
  $("kernels-note").textContent = words().join(" ");
  const totals = step.kernels.map((_, i) => sum(launchesOf(i), (l) => l.us ?? 0));
  const order = step.kernels.map((_, i) => i).sort((a, b) => totals[b] - totals[a] || a - b);
  const longest = Math.max(...totals, 1e-9);
  $("kernels").replaceChildren(...order.map((i) => line(step.kernels[i], i, longest, open.has(`kernel-${i}`))));
  $("timeline").hidden = $("about-peak").hidden = !timing;
  if (timing) drawTimeline($("timeline").lastElementChild, step.kernels, step.launches, jump);
  $("time-step").textContent = timing ? "Measure again" : "Measure each kernel";
}

/** Returns the label of a kernel's lane: a link that unfolds the kernel. */
function jump(index) {
  const label = make("a", { class: "lane-label", href: `#kernel-${index}` }, nameOf(step.kernels[index]));
  label.onclick = () => ($(`kernel-${index}`).open = true);
  return label;
}

/** Lists the kernels of the last step. Without a run there is nothing to list. */
async function list() {
  if (!$("card-fold").open || !(await engine.hasRun())) return;
  [step, timing] = [await engine.stepKernels(), null];
  show();
}

async function measure() {
  if (!(await engine.hasRun())) throw new Error("Train at least one step first. The list has the kernels that a step launched");
  status("Measuring the peak speed of this GPU…");
  const ceilings = await engine.ceilings();
  status("Measuring each kernel of a step…");
  const { kernels, launches_us, least_us, ...found } = await engine.timeStep(SECONDS, ceilings);
  const launches = found.launches.map((launch, i) => ({ ...launch, us: launches_us[i], least_us: least_us[i] }));
  [step, timing] = [{ kernels, launches }, found];
  show();
}

export function setUp() {
  $("time-step").onclick = () => act("Measuring…", measure);
  const update = () => act("", list);
  $("card-fold").ontoggle = () => !step && update();
  document.addEventListener("trained", update);
  // The kernels of another model, or of another run, are others.
  document.addEventListener("model", () => {
    [step, timing] = [null, null];
    $("kernels").replaceChildren();
    $("timeline").hidden = $("about-peak").hidden = true;
    $("time-step").textContent = "Measure each kernel";
    $("kernels-note").textContent = $("kernels-note").dataset.empty;
    update();
  });
}
