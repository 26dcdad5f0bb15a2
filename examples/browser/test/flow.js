// Does what a user does on the page. Works with any driver that has page.evaluate.

import assert from "node:assert/strict";

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until a function on the page returns a true value, and returns that value. Fails if the page shows an error meanwhile. */
export async function until(page, what, test, argument, seconds = 300) {
  const end = Date.now() + 1000 * seconds;
  for (;;) {
    const found = await page.evaluate(test, argument);
    if (found) return found;
    const error = await page.evaluate(() => (document.getElementById("error").hidden ? "" : document.getElementById("error").textContent));
    assert.equal(error, "", `waiting for ${what}`);
    assert.ok(Date.now() < end, `${what}: not after ${seconds} s`);
    await pause(100);
  }
}

/** Clicks an element once it is enabled: while the page works, it ignores clicks. */
export async function click(page, id) {
  const end = Date.now() + 60_000;
  const clicked = () =>
    page.evaluate((id) => {
      const element = document.getElementById(id);
      if (element.matches(":disabled")) return false;
      element.click();
      return true;
    }, id);
  while (!(await clicked())) {
    assert.ok(Date.now() < end, `${id} stays disabled`);
    await pause(50);
  }
}

export const value = (page, id) => page.evaluate((id) => document.getElementById(id).value, id);

/** Waits until the page is ready. Opens everything that is folded, so that a test reaches it. */
export async function ready(page) {
  await until(page, "the page", () => document.documentElement.dataset.ready === "true");
  await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
}

/** Waits for a pair that can be chosen. */
export const pair = (page) => until(page, "a pair", () => !document.getElementById("side-a").matches(":disabled, [aria-disabled=true]"));

/** Waits for a pair, then chooses a side. */
export async function choose(page, side) {
  await pair(page);
  const before = await page.evaluate(() => document.getElementById("side-a").querySelector(".response").textContent);
  await click(page, `side-${side}`);
  return before;
}

/** Fills in settings. Waits until the form takes them: while a run is on the way or can continue, it takes none. */
export const set = (page, fields) =>
  until(page, "the form to take settings", (fields) => {
    const elements = Object.keys(fields).map((name) => document.forms.settings.elements[name]);
    if (elements.some((element) => element.disabled)) return false;
    elements.forEach((element) => (element.value = fields[element.name]));
    return true;
  }, fields, 60);

export const runState = (page, pattern) =>
  until(page, `the run's state ${pattern}`, (p) => new RegExp(p).test(document.getElementById("run-state").value) && document.getElementById("run-state").value, pattern);

export const steps = (page, n) => until(page, `${n} steps`, async (n) => (await import("./session.js")).session.lines.length >= n, n);

/** Shows the heat map. Returns log π of each token except the first. */
export async function heatMap(page) {
  await page.evaluate(() => document.querySelector("#heat button").click());
  await until(page, "the heat map", () => !document.getElementById("heat-map").hidden);
  const tokens = await page.evaluate(() => [...document.querySelectorAll("#heat-map span")].map((s) => [s.title, s.style.background]));
  assert.ok(tokens.filter(([, background]) => background.includes("rgba")).length > 5, "the heat map has colours");
  return tokens.slice(1).map(([title]) => Number(title.match(/^log π (\S+),/)[1]));
}

/** Compares log π per token. The tolerance is half of the last digit on the page, plus float32 noise. */
export function sameTokens(shown, expected) {
  assert.equal(shown.length, expected.length);
  shown.forEach((logp, i) => assert.ok(Math.abs(logp - expected[i]) < 6e-4, `token ${i + 1}: ${logp}, native ${expected[i]}`));
}

/** Returns the losses of all steps so far, from the page's session. */
export const losses = (page) =>
  page.evaluate(async () => {
    const { session } = await import("./session.js");
    return session.lines.map((line) => line.loss);
  });

/** Tolerance for float32 noise in a loss. A loss sums a few hundred log-probs near 1e2, with an epsilon of 6e-8, and multiplies by β. */
export const NOISE = 2e-5;

/** Compares the losses of two runs. */
export function same(actual, expected) {
  assert.equal(actual.length, expected.length);
  actual.forEach((loss, i) => assert.ok(Math.abs(loss - expected[i]) < NOISE, `step ${i + 1}: ${loss}, native ${expected[i]}`));
  // The first loss is ln 2 for every model. The last loss must differ from it, because otherwise the comparison proves nothing.
  assert.ok(Math.abs(actual.at(-1) - actual[0]) > 100 * NOISE, `nothing was learnt: ${actual}`);
}

/** Runs on the page, before its scripts. Answers requests to the engine with the functions of a global object, `fake`, so that a test of the page
 * alone needs no GPU. `fake.asked` lists the requests: {method, args}. */
export function fakeEngine() {
  const run = { step: 0, most: 0 };
  const row = (n) => JSON.stringify({ i_chosen: `Instruction ${n}`, r_chosen: "good", i_reject: `Instruction ${n}`, r_reject: "bad" });
  const caps = () => ({ name: "no GPU", max_binding_bytes: 2 ** 27, workgroup_bytes: 2 ** 14, variants: [], switched_off: [] });
  globalThis.fake = {
    asked: [],
    losses: () => ({ legend: "s, β", losses: [{ name: "sigmoid", formula: "−log σ(βΔ)", source: "a paper", is_smoothed: true }, { name: "ipo", formula: "(Δ − 1/(2β))²", source: "a paper", is_smoothed: false }] }),
    stepKernels: () => ({ kernels: [], launches: [] }),
    open: caps,
    caps,
    load: () => [],
    models: () => [],
    hasModel: () => true,
    hasRun: () => run.most > 0,
    demoPrompts: (seed, n) => Array.from({ length: n }, (_, i) => `Instruction ${i + 1}`),
    demoPreferences: (seed, n) => Array.from({ length: n }, (_, i) => row(i)).join("\n"),
    readRows: (name, bytes) => new TextDecoder().decode(bytes),
    sample: (instructions, { seed, tuned }) => instructions.map((_, i) => `answer ${seed} ${i} ${tuned ?? ""}`),
    begin: (jsonl, settings) => (Object.assign(run, { step: 0, most: settings.max_steps }), ""),
    step: () => (run.step === run.most ? null : { step: ++run.step, loss: 0.69, tokens: 100, seconds: 1, grad_norm: 1 }),
    state: () => ({ state: JSON.stringify({ state: { step: run.step } }), arena: new Uint8Array(1) }),
    savedFiles: ({ lines }) => [{ name: "adapter_model.safetensors", bytes: new Uint8Array(lines.length) }],
  };
  globalThis.Worker = class {
    terminate() {}
    async postMessage({ id, method, args }) {
      fake.asked.push({ method, args: structuredClone(args) });
      const answer = await new Promise((resolve) => resolve(fake[method](...args))).then((result) => ({ id, result }), (error) => ({ id, error: String(error.message ?? error), lost: error.name === "GpuError" }));
      this.onmessage({ data: answer });
    }
  };
}

/** Opens the page without a session from before, with the engine of `fakeEngine`. `context` is Playwright's. Nothing is unfolded. */
export async function openFake(context, url) {
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  await page.goto(`${url}style.css`);
  await page.evaluate(() => new Promise((resolve) => (indexedDB.deleteDatabase("jointwise").onsuccess = resolve)));
  await page.addInitScript(fakeEngine);
  await page.goto(url);
  await page.waitForFunction(() => document.documentElement.dataset.ready === "true");
  await pair(page);
  return page;
}

/** Reads a value that the page has stored. */
export const stored = (page, name, key) =>
  page.evaluate(async (name, key) => {
    const store = await import("./store.js");
    return store.load(name, key);
  }, name, key);
