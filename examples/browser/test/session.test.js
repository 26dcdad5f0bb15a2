// Tests in Firefox, with the engine, what the page keeps: a stopped run, the adapter when a new run is refused, settings that are damaged, and the
// result of the kernel checks.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchFirefox, noFirefox as skip } from "./browsers.js";
import { click, ready, runState, set, steps, stored, until, value } from "./flow.js";
import { serve } from "./site.js";

let site, browser, page;
const complaints = [];

before(async () => {
  if (skip) return;
  site = await serve();
  browser = await launchFirefox();
  page = await browser.newPage();
  page.setDefaultTimeout(300_000);
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
  await page.goto(site.url);
  await ready(page);
});

after(async () => {
  await browser?.close();
  site?.close();
});

async function reload() {
  await page.reload();
  await ready(page);
}

/** Waits for an error on the page, and returns it. */
const failed = async (pattern) => {
  await page.waitForFunction((p) => new RegExp(p).test(document.getElementById("error").textContent) && !document.getElementById("error").hidden, {}, pattern);
  await page.evaluate(() => (document.getElementById("error").hidden = true));
};

const idle = () => until(page, "the end of the run", () => !document.getElementById("start").disabled);

/** Begins a run that replaces the adapter. */
async function replace() {
  await idle();
  await click(page, "start");
  await until(page, "the question", () => document.querySelector("dialog") !== null);
  await page.evaluate(() => document.querySelector("dialog button.primary").click());
}

/** Returns a digest of the adapter that Download gives: from the device, and from the saved state. */
const adapters = () =>
  page.evaluate(async () => {
    const [{ engine }, { currentRun }] = [await import("./engine.js"), await import("./session.js")];
    const digest = async (files) => {
      const { bytes } = files.find(({ name }) => name === "adapter_model.safetensors");
      return Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))).join(" ");
    };
    const saved = await engine.savedFiles(currentRun());
    return { device: await digest(await engine.adapter()), saved: await digest(saved), names: saved.map(({ name }) => name).sort() };
  });

test("a stopped run comes back after a reload, with its adapter", { skip }, async () => {
  await click(page, "draw-rows");
  await until(page, "the grader's rows", () => Number.parseInt(document.getElementById("count").value) >= 64);
  await set(page, { max_steps: 40, batch_size: 2 });
  await click(page, "start");
  await steps(page, 2);
  await click(page, "stop");
  await runState(page, "Stopped after step \\d+");
  await until(page, "the comparison", () => !document.getElementById("comparison").hidden);
  const before = await adapters();
  assert.equal(before.device, before.saved);
  assert.deepEqual(before.names, ["adapter_config.json", "adapter_model.safetensors", "report.html"]);
  await reload();
  await runState(page, "Restored: step \\d+ of 40");
  assert.equal((await adapters()).device, before.device);
  assert.ok(await page.evaluate(() => !document.getElementById("download").disabled));
  assert.equal(await page.evaluate(() => document.getElementById("start").textContent), "Train");
});

test("settings that the engine refuses leave the adapter where it is", { skip }, async () => {
  const before = await adapters();
  // All rows are longer.
  await set(page, { max_length: 2 });
  await replace();
  await failed("2");
  await idle();
  assert.deepEqual(await adapters(), before);
  await reload();
  assert.deepEqual(await adapters(), before);
});

test("saved settings that the engine does not know are a way on and no dead end", { skip }, async () => {
  await page.evaluate(async () => {
    const store = await import("./store.js");
    const run = await store.load("runs", "demo");
    await store.save(["runs", "demo", { ...run, settings: { ...run.settings, loss: "of the future" } }]);
  });
  await reload();
  await page.waitForFunction(() => !document.getElementById("run-problem").hidden);
  assert.ok(Number.parseInt(await value(page, "count")) >= 64);
  await click(page, "start-anew");
  await idle();
  await set(page, { max_steps: 1, batch_size: 2, max_length: 512 });
  await click(page, "start");
  await runState(page, "Done: 1 steps");
  await until(page, "the comparison", () => !document.getElementById("comparison").hidden);
});

test("rows that are too long for a run are named", { skip }, async () => {
  await set(page, { max_steps: 1, max_length: 24 });
  await replace();
  await until(page, "the note", () => !document.getElementById("run-note").hidden);
  assert.match(await page.evaluate(() => document.getElementById("run-note").textContent), /^Left out of \d+ preferences, .*: numbers \d+, \d+/);
});

test("the kernel checks are kept for this program, browser and adapter, and a failed variant stays off", { skip }, async () => {
  const { key, checks } = await stored(page, "session", "checks");
  const found = JSON.parse(checks);
  assert.ok(found.shaders.length > 10 && !checks.includes("nf4"), checks);
  // Another format of weights needs kernels that were not checked yet.
  await set(page, { base_dtype: "nf4", max_length: 512 });
  await replace();
  await until(page, "the check of nf4", async () => JSON.parse((await (await import("./store.js")).load("session", "checks")).checks).shaders.some((key) => key.includes("nf4")));
  await until(page, "the run", async () => {
    const { session } = await import("./session.js");
    return session.settings?.base_dtype === "nf4" && session.kept !== null;
  });
  await idle();
  await set(page, { base_dtype: "auto" });
  const used = () => page.evaluate(async () => (await (await import("./engine.js")).engine.caps()).variants);
  const [variant] = await used();
  await page.evaluate(async (key, checks) => {
    const store = await import("./store.js");
    await store.save(["session", "checks", { key, checks }]);
  }, key, JSON.stringify({ shaders: found.shaders, wrong: [variant] }));
  await reload();
  assert.ok(!(await used()).includes(variant));
  assert.match(await page.evaluate(() => document.getElementById("caps").textContent), new RegExp(`Failed the self-test${variant}`));
  // Of another program's checks nothing is believed.
  await page.evaluate(async (checks) => (await import("./store.js")).save(["session", "checks", { key: "another program", checks }]), JSON.stringify({ shaders: found.shaders, wrong: [variant] }));
  await reload();
  assert.ok((await used()).includes(variant));
});

test("training goes on in a tab that is really hidden", { skip }, async () => {
  await set(page, { max_steps: 40, batch_size: 2, max_length: 512 });
  await replace();
  await steps(page, 1);
  const other = await browser.newPage();
  await other.goto(`${site.url}style.css`);
  await other.bringToFront();
  const isHidden = await page.evaluate(() => document.hidden);
  const from = await page.evaluate(async () => (await import("./session.js")).session.lines.length);
  await steps(page, from + 3);
  if (isHidden) assert.match(await page.title(), /^Step \d+ of 40 – jointwise$/);
  await other.close();
  await click(page, "stop");
  await runState(page, "Stopped after step \\d+");
  console.log(`the tab was ${isHidden ? "" : "not "}hidden`);
});

test("the console has no errors", { skip }, () => assert.deepEqual(complaints, []));
