// Tests the list of losses, the kernels of a training step, and the check of the kernels that a model needs. In headless Chromium, on its software
// adapter.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launchChromium, noChromium as skip } from "./browsers.js";
import { click, losses, ready, runState, same, set, steps, until, value } from "./flow.js";
import * as native from "./native.js";
import { SITE, serve } from "./site.js";

const SHOTS = join(SITE, "../screenshots");
const SETTINGS = { max_steps: 4, batch_size: 2 };

let site, context, page;
const complaints = [];

before(async () => {
  if (skip) return;
  site = await serve();
  context = await launchChromium();
  page = await context.newPage();
  page.setDefaultTimeout(120_000);
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
  mkdirSync(SHOTS, { recursive: true });
  await page.goto(site.url);
  await ready(page);
});

after(async () => {
  await context?.close();
  site?.close();
});

const text = (id) => page.evaluate((id) => document.getElementById(id).textContent, id);
const call = (method, ...args) => page.evaluate(async ([method, args]) => (await import("./engine.js")).engine[method](...args), [method, args]);
const idle = () => until(page, "the end of the work", () => document.getElementById("progress").hidden);

/** Returns the losses that the program names. */
function programLosses() {
  try {
    native.jointwise("train", "--loss", "nonsense");
  } catch ({ stderr }) {
    return stderr.match(/expected one of ([a-z_, ]+);/)[1].split(", ");
  }
  throw new Error("the program knows a loss `nonsense`");
}

/** Tells whether a shader module was checked, or has no other kernel that could take its place. */
const wasChecked = (module) => page.evaluate(async (module) => {
  const { checks } = await (await import("./store.js")).load("session", "checks");
  return JSON.parse(checks).shaders.some((key) => key.startsWith(`${module}/`));
}, module);

test("before the page is ready, only the kernels of generation are checked", { skip }, async () => {
  assert.ok(await wasChecked("sample"));
  assert.ok(!(await wasChecked("adamw")));
});

test("the form has every loss of the program, with its formula", { skip }, async () => {
  const shown = await page.evaluate(() => [...document.forms.settings.elements.loss.options].map((option) => option.value));
  const known = programLosses();
  assert.deepEqual(shown, known);
  assert.notDeepEqual(shown.slice(1), known, "a list without the first loss passes");
  const help = execFileSync(join(SITE, "../release/jointwise"), ["train", "--help"], { encoding: "utf8" }).replace(/\s+/g, " ");
  for (const name of ["sppo_hard", "exo_pair", "apo_down"]) {
    await page.selectOption("[name=loss]", name);
    const formula = await page.evaluate(() => document.querySelector("#loss-formula code").textContent);
    assert.ok(formula.length > 10 && help.includes(formula), `${name}: ${formula}`);
    assert.doesNotMatch(await text("loss-formula"), /--[a-z]/);
    assert.equal(await page.isVisible("[name=label_smoothing]"), name === "exo_pair");
  }
  await page.selectOption("[name=loss]", "sigmoid");
});

test("the engine takes every loss", { skip }, async () => {
  await click(page, "draw-rows");
  await until(page, "the grader's rows", () => Number.parseInt(document.getElementById("count").value) >= 64);
  const rows = await value(page, "rows");
  const settings = { ...SETTINGS, objective: "dpo", learning_rate: 1e-3 };
  const begin = (loss, label_smoothing) => call("begin", rows, { ...settings, loss, label_smoothing }, null);
  for (const loss of programLosses()) {
    await begin(loss, loss === "exo_pair" ? 0.001 : 0);
    if (["aot", "dpop", "nca_pair"].includes(loss)) assert.ok(Number.isFinite((await call("step")).loss), loss);
  }
  await assert.rejects(begin("exo_pair", 0), /exo_pair needs a value above 0/);
  assert.ok(await wasChecked("adamw"), "the kernels of training are checked when a run begins");
});

test("lists the kernels that a step launched, with formula, WGSL, launches and links", { skip }, async () => {
  await page.reload();
  await ready(page);
  assert.match(await text("kernels-note"), /Train for at least one step/);
  await page.click("#time-step");
  await page.waitForFunction(() => /Train at least one step first/.test(document.getElementById("error").textContent));
  await page.click("#card h3");
  await set(page, SETTINGS);
  await click(page, "start");
  await steps(page, 2);
  await click(page, "pause");
  await runState(page, "Paused after step");
  await click(page, "time-step");
  await until(page, "the timeline", () => !document.getElementById("timeline").hidden);
  const { kernels, launches } = await call("stepKernels");
  assert.ok(kernels.length > 20 && launches.length > 100, `${kernels.length} kernels, ${launches.length} launches`);
  assert.ok(["embedding", "attention", "matmul", "objective", "adamw"].every((family) => kernels.some((kernel) => kernel.family === family)));
  assert.deepEqual([...new Set(launches.map((launch) => launch.phase))], ["forward", "backward", "update"]);
  const shown = await page.evaluate(() => [...document.querySelectorAll("#kernels .kernel")].map((line) => {
    line.open = true;
    line.ontoggle();
    const cells = (selector) => [...line.querySelectorAll(selector)].map((one) => one.textContent);
    return { id: Number(line.id.replace("kernel-", "")), name: cells(".name code")[0], count: Number.parseInt(cells(".count")[0]), peak: cells(".peak")[0], formula: cells(".formula").join("\n"), rows: cells("tbody tr"), links: [...line.querySelectorAll("a")].map((link) => link.href) };
  }));
  assert.deepEqual(shown.map(({ id }) => id).sort((a, b) => a - b), kernels.map((_, i) => i));
  const count = (id) => launches.filter((launch) => launch.kernel === id).length;
  for (const { id, name, count: n, formula, rows } of shown) {
    assert.equal(name.replace(/ #\d+$/, ""), kernels[id].entry);
    assert.equal(n, count(id), name);
    assert.ok(formula.includes("=") && rows.length > 0, `${name}: ${formula}`);
  }
  // A list without one launch has another count.
  assert.notEqual(shown[0].count, count(shown[0].id) - 1);
  assert.ok(shown.filter(({ peak }) => /\d %/.test(peak)).length > 10, "kernels with a share of peak");
  // The WGSL is what the GPU was given, and the links lead to its sources.
  for (const { id, links } of shown.slice(0, 6)) {
    const { entry, wgsl } = kernels[id];
    assert.ok(wgsl.includes(`fn ${entry}(`) && !wgsl.includes("import package"), entry);
    const files = await Promise.all(links.map(async (link) => (await fetch(link.split("#")[0])).text()));
    assert.equal(links.length, 2);
    assert.ok(files[0].includes(`fn ${entry}(`), `${links[0]} has no ${entry}`);
    assert.match(files[1], /impl Kernel for/);
  }
  assert.equal((await fetch(`${site.url}source/shaders/none.wgsl.txt`)).status, 404);
});

test("the measured times add up, and the timeline shows each launch", { skip }, async () => {
  const { kernels, launches } = await call("stepKernels");
  const bars = await page.evaluate(() => [...document.querySelectorAll("#timeline .lanes > svg")].map((lane) => [...lane.querySelectorAll("rect")].map((bar) => [Number(bar.getAttribute("x")), Number(bar.getAttribute("width"))])));
  // The first lane has the phases.
  assert.equal(bars.length, 1 + kernels.length);
  const short = Number((await text("kernels-note")).match(/(\d+) launches are too short/)?.[1] ?? 0);
  assert.equal(bars.slice(1).flat().length, launches.length - short);
  const ends = bars.slice(1).flat().map(([x, width]) => x + width);
  assert.ok(Math.max(...ends) <= 1001 && Math.max(...ends) > 990, "the bars fill the lanes");
  const [, sum, , whole] = (await text("kernels-note")).match(/launches take ([\d.]+ (µs|ms|s))\. .*takes ([\d.]+ (?:µs|ms|s)):/);
  const seconds = (shown) => Number.parseFloat(shown) * { "µs": 1e-6, ms: 1e-3, s: 1 }[shown.split(" ")[1]];
  assert.ok(seconds(sum) > 0.2 * seconds(whole) && seconds(sum) < 5 * seconds(whole), `${sum} beside ${whole}`);
  for (const [colorScheme, width] of [["light", 1100], ["dark", 1100], ["light", 400], ["dark", 400]]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 900 });
    await page.screenshot({ path: join(SHOTS, `8-kernels-${colorScheme}-${width}.png`), fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${wide} pixels wider than a screen of ${width}`);
  }
});

test("the keyboard reaches a kernel from the timeline, and its WGSL", { skip }, async () => {
  await page.evaluate(() => document.querySelectorAll("#kernels .kernel").forEach((line) => (line.open = false)));
  await page.focus("#timeline a.lane-label");
  await page.keyboard.press("Enter");
  assert.ok(await page.evaluate(() => document.querySelector("#kernel-0").open));
  await page.focus("#kernel-0 .about summary");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#kernel-0 .wgsl");
  assert.ok(await page.evaluate(() => document.querySelector("#kernel-0 .wgsl").tabIndex === 0 && document.querySelectorAll("#kernel-0 .wgsl .keyword").length > 5));
});

test("a measurement leaves the run as it was, while it is paused and while it goes on", { skip }, async () => {
  await idle();
  await click(page, "pause");
  await click(page, "time-step");
  await runState(page, "Done: 4 steps");
  same(await losses(page), native.losses(await value(page, "rows"), SETTINGS));
});

test("a kernel that computes wrongly is found before the page is ready, and is not used", { skip }, async () => {
  const wasm = readFileSync(join(SITE, "pkg/jointwise_browser_bg.wasm"));
  const [right, wrong] = ["acc0[r] += value * b0;", "acc0[r] -= value * b0;"].map((line) => Buffer.from(line));
  let n = 0;
  for (let at = wasm.indexOf(right); at >= 0; at = wasm.indexOf(right, at + 1)) n += wrong.copy(wasm, at) > 0 ? 1 : 0;
  assert.ok(n > 0, "the shader's line is in the engine");
  const planted = await launchChromium();
  try {
    const own = await planted.newPage();
    await own.route("**/jointwise_browser_bg.wasm", (route) => route.fulfill({ body: wasm, contentType: "application/wasm" }));
    await own.goto(site.url);
    await ready(own);
    assert.match(await own.evaluate(() => document.getElementById("caps").textContent), /Failed the self-testcpu/);
    assert.match(await page.evaluate(() => document.getElementById("caps").textContent), /Failed the self-testnone/);
    assert.match(await own.evaluate(() => document.getElementById("model-name").textContent), /^The demo model:/);
  } finally {
    await planted.close();
  }
});

test("the console has no errors", { skip }, () => assert.deepEqual(complaints, []));
