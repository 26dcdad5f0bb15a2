// Tests that nothing a user brought is lost: runs, adapters, instructions, settings. In Chromium, with the test's answers in the engine's place,
// so these tests need no GPU.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, noChromium as skip } from "./browsers.js";
import { click, fakeEngine, openFake, pair, runState, set, until, value } from "./flow.js";
import { serve } from "./site.js";

let site, context, page;

before(async () => {
  if (skip) return;
  site = await serve();
  context = await launchChromium();
  page = await openFake(context, site.url);
});

after(async () => {
  await context?.close();
  site?.close();
});

const session = () =>
  page.evaluate(async () => {
    const { session } = await import("./session.js");
    return { ...session, kept: session.kept && { ...session.kept, arena: session.kept.arena.length } };
  });
const load = (name, key) => page.evaluate(async ([name, key]) => (await import("./store.js")).load(name, key), [name, key]);
const save = (name, key, change) =>
  page.evaluate(async ([name, key, change]) => {
    const store = await import("./store.js");
    await store.save([name, key, { ...(await store.load(name, key)), ...change }]);
  }, [name, key, change]);
const isReady = () => page.waitForFunction(() => document.documentElement.dataset.ready === "true");
const error = () => page.evaluate(() => (document.getElementById("error").hidden ? "" : document.getElementById("error").textContent));
const answer = async (name) => {
  await page.waitForSelector("dialog");
  const question = await page.textContent("dialog p");
  await page.click(`dialog button:text-is("${name}")`);
  return question;
};

async function reload() {
  await page.reload();
  await isReady();
}

/** Trains for some steps and waits for the end. */
async function train(steps) {
  await set(page, { max_steps: steps });
  await click(page, "start");
  await runState(page, `Done: ${steps} steps`);
}

test("own instructions and settings come back after a reload", { skip }, async () => {
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
  await page.fill("#prompts", "Own one.\nOwn two.");
  await page.fill("[name=beta]", "0.25");
  await page.selectOption("[name=loss]", "ipo");
  await page.fill("#temperature", "0.5");
  await page.click("[value=joint]");
  await until(page, "the saved fields", async () => (await (await import("./store.js")).load("session", "form"))?.pairing === "joint");
  await reload();
  await pair(page);
  const found = await page.evaluate(() => ["prompts", "temperature"].map((id) => document.getElementById(id).value));
  assert.deepEqual(found, ["Own one.\nOwn two.", "0.5"]);
  assert.deepEqual(await page.evaluate(() => ["beta", "loss"].map((name) => document.forms.settings.elements[name].value)), ["0.25", "ipo"]);
  assert.ok(await page.evaluate(() => document.querySelector("[value=joint]").checked));
  assert.match(await page.evaluate(() => document.querySelector("#side-a .instruction").textContent), /^Own /);
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
  await page.fill("#prompts", "");
  await set(page, { beta: 0.1, loss: "sigmoid" });
});

test("a refused start leaves the adapter, the session and the saved run as they were", { skip }, async () => {
  await click(page, "draw-rows");
  await train(3);
  await page.evaluate(() => (fake.begin = () => Promise.reject(new Error("--lora-r: expected 1 ..= 4096, found 0"))));
  await click(page, "start");
  assert.match(await answer("Replace it"), /replaces the adapter that was trained for 3 steps\. It has not been downloaded/);
  await page.waitForFunction(() => /LoRA rank/.test(document.getElementById("error").textContent));
  assert.deepEqual([(await session()).lines.length, (await session()).kept.arena], [3, 1]);
  assert.equal((await load("runs", "demo")).lines.length, 3);
  assert.ok(!(await page.isDisabled("#download")));
});

test("a second click on Train begins no second run", { skip }, async () => {
  const begun = () => page.evaluate(() => fake.asked.filter(({ method }) => method === "begin").length);
  const before = await begun();
  // An error of its own: the page shows the one of the test before until the run begins.
  await page.evaluate(() => (fake.begin = () => Promise.reject(new Error("the second run is refused"))));
  await page.evaluate(() => ["start", "start"].forEach((id) => document.getElementById(id).click()));
  assert.equal(await page.locator("dialog").count(), 1);
  await answer("Replace it");
  await page.waitForFunction(() => /the second run is refused/.test(document.getElementById("error").textContent));
  assert.equal(await begun(), before + 1);
});

test("no button replaces or deletes an adapter without a question", { skip }, async () => {
  await click(page, "start");
  await answer("Cancel");
  assert.equal((await session()).lines.length, 3);
  await click(page, "forget");
  assert.match(await answer("Cancel"), /deletes the saved adapters, your 64 preferences, instructions and settings/);
  assert.equal((await load("session", "session")).rows.length, 64);
});

test("a GPU that is lost before the first step of a new run brings the old adapter back", { skip }, async () => {
  await page.evaluate(() => {
    fake.begin = () => "";
    fake.step = () => Promise.reject(Object.assign(new Error("the device is gone"), { name: "GpuError" }));
  });
  await click(page, "start");
  await answer("Replace it");
  await page.waitForFunction(() => /the device is gone/.test(document.getElementById("error").textContent));
  await page.waitForFunction(() => document.getElementById("run-state").value === "Restored: step 3 of 3");
  assert.equal((await session()).lines.length, 3);
  assert.equal((await load("runs", "demo")).lines.length, 3);
});

test("rows that are too long are named", { skip }, async () => {
  await reload();
  await set(page, { max_steps: 3 });
  await page.evaluate(() => {
    const { begin } = fake;
    fake.begin = (...args) => (begin(...args), { rows: 64, dropped: [2, 5], truncated: [], remarks: [] });
  });
  await click(page, "start");
  await answer("Replace it");
  await page.waitForFunction(() => !document.getElementById("run-note").hidden);
  assert.match(await page.textContent("#run-note"), /^Left out of 64 preferences, because they have more tokens than the max length: numbers 2, 5\. Raise/);
  // The next test begins a new run, which a run that can continue would refuse.
  await runState(page, "Done: 3 steps");
});

test("each model keeps its own adapter", { skip }, async () => {
  await reload();
  await click(page, "draw-rows");
  await set(page, { max_steps: 4 });
  await click(page, "start");
  await answer("Replace it");
  await runState(page, "Done: 4 steps");
  await page.setInputFiles("#load-folder", "../../../models/demo");
  await page.waitForFunction(() => document.getElementById("model-name").textContent.startsWith("demo"));
  assert.deepEqual([(await session()).model.kind, (await session()).kept], ["folder", null]);
  await click(page, "load-demo");
  await runState(page, "Restored: step 4 of 4");
  assert.equal((await session()).lines.length, 4);
  const list = await page.evaluate(() => [...document.querySelectorAll("#models tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent)));
  assert.deepEqual(list, [["The demo model", "", "4 steps", "loaded"]]);
});

test("preferences and download work when the model cannot be loaded", { skip }, async () => {
  await page.route("**/model/*", (route) => route.abort());
  const count = (await session()).rows.length;
  await page.reload();
  await isReady();
  assert.match(await page.textContent("#model-name"), /not loaded\. Your preferences are still here, and you can download the adapter/);
  assert.ok(Number.parseInt(await value(page, "count")) === count && count > 0, await value(page, "count"));
  assert.equal(await value(page, "run-state"), "Saved: step 4 of 4");
  const [download] = await Promise.all([page.waitForEvent("download"), click(page, "download")]);
  assert.equal(download.suggestedFilename(), "jointwise-adapter.zip");
  await page.unroute("**/model/*");
  await page.evaluate(() => (document.getElementById("other-model").open = true));
  await page.click("#models button:text-is('Load')");
  await runState(page, "Restored: step 4 of 4");
});

test("a saved run that cannot be used is a way on and no dead end", { skip }, async () => {
  const texts = { version: 99, settings: null };
  for (const [name, change] of Object.entries(texts)) {
    await save("runs", "demo", { [name]: change });
    await reload();
    await page.waitForFunction(() => !document.getElementById("run-problem").hidden);
    assert.match(await page.textContent("#run-problem-text"), name === "version" ? /newer version of this page/ : /its settings, rows or metrics are damaged/);
    assert.ok(await page.isDisabled("#start"));
    const [download] = await Promise.all([page.waitForEvent("download"), click(page, "save-broken")]);
    assert.equal(download.suggestedFilename(), "jointwise-run.zip");
    // Nothing was changed so far.
    assert.deepEqual((await load("runs", "demo"))[name], change);
    if (name === "version") await save("runs", "demo", { version: 2 });
  }
  await page.evaluate(async () => {
    const { session } = await import("./session.js");
    session.rows = [];
  });
  await click(page, "start-anew");
  await page.waitForFunction(() => document.getElementById("run-problem").hidden && !document.getElementById("start").disabled);
  const rows = await session();
  assert.ok(rows.rows.length >= 64, `${rows.rows.length} preferences`);
  assert.equal(await load("runs", "demo"), undefined);
  await train(2);
});

test("a session of a newer page is not overwritten until the user starts anew", { skip }, async () => {
  await save("session", "session", { version: 99 });
  await reload();
  await page.waitForFunction(() => !document.getElementById("run-problem").hidden);
  await pair(page);
  await click(page, "side-a");
  await page.waitForTimeout(200);
  assert.equal((await load("session", "session")).version, 99);
  await click(page, "start-anew");
  await until(page, "the new session", async () => (await (await import("./store.js")).load("session", "session")).version === 2);
  assert.ok((await load("session", "session")).rows.length > 64);
});

test("settings that the form does not know do not stop the page", { skip }, async () => {
  await save("session", "form", { loss: "unknown", beta: "much", max_steps: "7" });
  await reload();
  await pair(page);
  assert.deepEqual(await page.evaluate(() => ["loss", "beta", "max_steps"].map((name) => document.forms.settings.elements[name].value)), ["sigmoid", "0.1", "7"]);
});

test("a session of version 1 is taken over, and a stopped run is restored", { skip }, async () => {
  await page.evaluate(async () => {
    const store = await import("./store.js");
    await store.clear();
    const settings = { objective: "jpo", max_steps: 60 };
    const state = JSON.stringify({ state: { step: 2, fingerprint: `${JSON.stringify(settings)} abc` }, reference: [] });
    const rows = [{ i_chosen: "i", r_chosen: "a", i_reject: "i", r_reject: "b" }];
    const run = { settings: { ...settings, max_steps: 2 }, data: `${JSON.stringify(rows[0])}\n`, lines: [{ step: 1, loss: 1 }, { step: 2, loss: 0.5 }], kept: { state, arena: new Uint8Array(3) }, started: 5 };
    await store.save(["session", "session", { model: { kind: "demo" }, rows, ...run }]);
  });
  await reload();
  await runState(page, "Restored: step 2 of 60");
  const begun = await page.evaluate(() => fake.asked.filter(({ method }) => method === "begin").at(-1).args[1]);
  assert.equal(begun.max_steps, 60);
  assert.equal(await page.textContent("#start"), "Train");
  assert.equal((await session()).rows.length, 1);
});

test("a browser that saves nothing is told of, and the page works on", { skip }, async () => {
  await page.evaluate(() => (IDBObjectStore.prototype.put = () => {
    throw new DOMException("the disk is full", "QuotaExceededError");
  }));
  await pair(page);
  await page.evaluate(() => (document.getElementById("error").hidden = true));
  await click(page, "side-a");
  await page.waitForFunction(() => !document.getElementById("error").hidden);
  assert.match(await error(), /does not save the session \(the disk is full\)\. Export your preferences/);
  assert.match(await page.textContent("#saved"), /^This browser does not save the session/);
  assert.equal((await session()).rows.length, 2);
});

test("a second tab is told, and takes over on request; the first then saves nothing", { skip }, async () => {
  await reload();
  const second = await context.newPage();
  await second.addInitScript(fakeEngine);
  await second.goto(site.url);
  await second.waitForSelector("#elsewhere:not([hidden])");
  assert.ok(await second.evaluate(() => document.getElementById("main").inert && !document.documentElement.dataset.ready));
  await second.click("#take-over");
  await second.waitForFunction(() => document.documentElement.dataset.ready === "true");
  await page.waitForSelector("#elsewhere:not([hidden])");
  assert.ok(await page.evaluate(() => document.getElementById("main").inert));
  const before = await load("session", "session");
  await page.evaluate(async () => {
    const { keep, session } = await import("./session.js");
    session.rows = [];
    await keep();
  });
  assert.deepEqual((await load("session", "session")).rows, before.rows);
  // A tab that waits goes on by itself when the other one closes.
  await page.reload();
  await page.waitForSelector("#elsewhere:not([hidden])");
  await second.close();
  await isReady();
});

test("training goes on in a hidden tab, and the title says how far it is", { skip }, async () => {
  const hide = (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  await click(page, "draw-rows");
  await set(page, { max_steps: 5 });
  await page.evaluate(() => {
    const { step } = fake;
    globalThis.free = [];
    fake.step = async () => {
      await new Promise((resolve) => free.push(resolve));
      return step();
    };
  });
  await click(page, "start");
  await answer("Replace it");
  const steps = (n) => page.waitForFunction(async (n) => (await import("./session.js")).session.lines.length >= n, n);
  const next = () => page.evaluate(() => free.shift()());
  await page.waitForFunction(() => free.length === 1);
  await next();
  await steps(1);
  await hide(true);
  await page.waitForFunction(() => free.length === 1);
  await next();
  await steps(2);
  assert.equal(await page.title(), "Step 2 of 5 – jointwise");
  // The browser stops the tab: no step for 10 s.
  await page.waitForFunction(() => document.title === "Waiting for you to show this tab, step 2 of 5 – jointwise");
  for (let n = 3; n <= 5; n++) {
    await page.waitForFunction(() => free.length === 1);
    await next();
    await steps(n);
  }
  await page.waitForFunction(() => free.length === 1);
  await next();
  await page.waitForFunction(() => document.title === "Done: 5 steps – jointwise");
  await hide(false);
  assert.equal(await page.title(), "jointwise");
});
