// Tests a visitor's first minute: what is in sight, and the way from opening the page to a trained adapter.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox, noChromium, noFirefox } from "./browsers.js";
import { choose, click, openFake, set, until, value } from "./flow.js";
import { serve } from "./site.js";

let site, context, page;

before(async () => {
  site = await serve();
  if (noChromium) return;
  context = await launchChromium();
  page = await openFake(context, site.url);
});

after(async () => {
  await context?.close();
  site?.close();
});

test("only what the first minute needs is in sight, and the rest explains itself", { skip: noChromium }, async () => {
  const visible = (selector) => page.evaluate((selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility()).map((one) => one.name || one.id || one.textContent.trim()), selector);
  assert.deepEqual(await visible("#settings :is(input, select)"), ["max_steps"]);
  assert.deepEqual(await visible("button"), ["try", "side-a", "side-b", "pass", "undo", "start", "pause", "stop", "compare", "download", "forget"]);
  assert.match(await page.evaluate(() => document.querySelector(".lead").textContent), /^Pick the better answer 20 times, press Train, see what changed\.$/);
  const silent = await page.evaluate(() => [...document.forms.settings.elements].filter((field) => !document.getElementById(field.getAttribute("aria-describedby"))?.textContent.trim().endsWith(".")).map((field) => field.name));
  assert.deepEqual(silent, [], "settings without a sentence");
  assert.equal(await page.evaluate(() => document.querySelector("#hub button").textContent), "Check size (downloads nothing)");
});

test("the page counts towards about 20 preferences", { skip: noChromium }, async () => {
  assert.equal(await value(page, "count"), "0 of about 20");
  for (let n = 0; n < 7; n++) await choose(page, "a");
  assert.equal(await value(page, "count"), "7 of about 20");
  for (let n = 7; n < 20; n++) await choose(page, "b");
  assert.equal(await value(page, "count"), "20 preferences, enough to train");
});

test("charts say what good looks like, and changed answers come first", { skip: noChromium }, async () => {
  await page.evaluate(() => (fake.sample = (instructions, { tuned }) => instructions.map((text) => (tuned && /[37]/.test(text) ? "new" : "old"))));
  await set(page, { max_steps: 3 });
  assert.ok(!(await page.evaluate(() => document.getElementById("try-steps").checkVisibility())));
  await click(page, "start");
  await until(page, "the comparison", () => !document.getElementById("comparison").hidden);
  const charts = await page.evaluate(() => [...document.querySelectorAll("#charts figure")].map((figure) => figure.querySelector(".note")?.textContent ?? ""));
  assert.equal(charts.length, 6);
  for (const text of charts) assert.match(text, /Good: [^.]+\./);
  const lines = await page.evaluate(() => [...document.querySelectorAll("#comparison tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent)));
  assert.equal(lines.length, 8);
  assert.deepEqual(lines.slice(0, 3).map(([instruction, , after]) => [instruction, after]), [["Instruction 3", "new"], ["Instruction 7", "new"], ["Instruction 1", "no change"]]);
  assert.match(await value(page, "compared"), /^2 of 8 answers changed/);
});

test("after the grader's turn, one click leads to own picks, and only the grader's are removed", { skip: noChromium }, async () => {
  await page.close();
  page = await openFake(context, site.url);
  await choose(page, "a");
  await click(page, "try");
  await until(page, "the invitation", () => document.getElementById("own").checkVisibility());
  const form = () => page.evaluate(() => ["max_steps", "learning_rate"].map((name) => document.forms.settings.elements[name].value));
  assert.deepEqual(await form(), ["40", "0.003"]);
  await click(page, "own");
  await until(page, "the removal", () => document.getElementById("count").value === "1 of about 20");
  assert.deepEqual(await form(), ["60", "0.001"]);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "2 Your preferences");
  await click(page, "undo");
  await until(page, "the grader's picks", () => document.getElementById("count").value === "257 preferences, enough to train");
});

/** Presses the one button, and waits for the comparison. The settings are small, because the test's adapters are slow. */
async function oneClick(page, settings) {
  await until(page, "the first pair", () => document.documentElement.dataset.ready === "true" && !document.getElementById("try").disabled);
  await set(page, settings);
  await page.evaluate(() => (document.getElementById("new-tokens").value = 12));
  await click(page, "try");
  await until(page, "training", () => document.querySelector("#try-steps [aria-current]")?.textContent === "2. The model trains");
  const isCompared = () => !document.getElementById("comparison").hidden && document.getElementById("try-steps").hidden;
  await until(page, "the comparison", isCompared).catch(async (error) => {
    error.message += `; the run: ${await value(page, "run-state")}, ${await page.evaluate(() => document.getElementById("status").textContent)}`;
    throw error;
  });
  const found = await page.evaluate(async () => {
    const { session } = await import("./session.js");
    return { rows: session.rows.length, steps: session.lines.length, isTrained: Boolean(session.kept), changed: document.getElementById("compared").value, isHidden: document.getElementById("try-row").hidden, focus: document.activeElement.textContent };
  });
  assert.equal(found.rows, 256);
  assert.equal(found.steps, settings.max_steps);
  assert.ok(found.isTrained && found.isHidden, JSON.stringify(found));
  assert.match(found.changed, /^[0-8] of 8 answers changed/);
  assert.equal(found.focus, "4 What changed");
  assert.ok(await page.evaluate(() => !document.getElementById("download").disabled));
}

test("one click leads from the open page to a trained adapter and its answers, in Chromium", { skip: noChromium }, async () => {
  const real = await launchChromium();
  try {
    const page = await real.newPage();
    await page.goto(site.url);
    await oneClick(page, { max_steps: 4, batch_size: 2 });
  } finally {
    await real.close();
  }
});

test("one click leads to a trained adapter in Firefox, and the heat map shows parts of characters as text", { skip: noFirefox }, async () => {
  const browser = await launchFirefox();
  try {
    const page = await browser.newPage();
    await page.goto(site.url);
    await oneClick(page, { max_steps: 8, batch_size: 4 });
    const response = "مرحبا 你好 👩‍🚀 é";
    await page.evaluate((response) => {
      document.getElementById("heat-response").value = response;
      document.querySelector("#heat button").click();
    }, response);
    await until(page, "the heat map", () => !document.getElementById("heat-map").hidden);
    const spans = await page.evaluate(() => [...document.querySelectorAll("#heat-map .response")].map((span) => [span.textContent, span.title]));
    const text = spans.map(([text]) => text).join("");
    assert.ok(text.includes(response), text);
    const [, title] = spans.find(([text]) => text.trim() === "你");
    assert.match(title, /^log π -\d+\.\d+, before .*\(3 tokens\)$/);
  } finally {
    await browser.close();
  }
});
