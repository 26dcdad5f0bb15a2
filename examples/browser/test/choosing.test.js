// Tests how pairs are drawn, chosen and undone, with keys, in Chromium. The engine's answers are the test's, so these tests need no GPU.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, noChromium as skip } from "./browsers.js";
import { click, openFake, pair, value } from "./flow.js";
import { serve } from "./site.js";

let site, context, page;

before(async () => {
  if (skip) return;
  site = await serve();
  context = await launchChromium();
});

after(async () => {
  await context?.close();
  site?.close();
});

/** Opens the page anew and ends the page of the test before. */
async function open() {
  await page?.close();
  page = await openFake(context, site.url);
}

const rows = () => page.evaluate(async () => (await import("./session.js")).session.rows);
const rowsBecome = (n) => page.waitForFunction(async (n) => (await import("./session.js")).session.rows.length === n, n);
const focused = () => page.evaluate(() => document.activeElement.id);

/** Skips `n` pairs. Returns the instructions of those that followed. */
const skipPairs = (n) =>
  page.evaluate(async (n) => {
    const seen = [];
    for (let i = 0; i < n; i++) {
      document.getElementById("pass").click();
      do await new Promise((resolve) => setTimeout(resolve)); while (document.querySelector(".side:is(:disabled, [aria-disabled=true])"));
      seen.push([...document.querySelectorAll(".side .instruction")].map((side) => side.textContent));
    }
    return seen;
  }, n);

const write = (n) => page.evaluate((n) => (document.getElementById("prompts").value = Array.from({ length: n }, (_, i) => `Task ${i}`).join("\n")), n);

test("a double click or a held key stores one choice", { skip }, async () => {
  await open();
  await page.dblclick("#side-a");
  await rowsBecome(1);
  await pair(page);
  await page.evaluate(() => document.activeElement.blur());
  for (let i = 0; i < 5; i++) await page.keyboard.down("b");
  await page.keyboard.up("b");
  await pair(page);
  await page.focus("#side-a");
  for (let i = 0; i < 5; i++) await page.keyboard.down("Enter");
  await page.keyboard.up("Enter");
  await pair(page);
  const stored = await rows();
  assert.equal(stored.length, 3, JSON.stringify(stored));
  assert.equal(new Set(stored.map((row) => row.r_chosen)).size, 3);
});

test("every instruction is drawn once before any is drawn again", { skip }, async () => {
  await open();
  for (const n of [7, 14]) {
    await write(n);
    const drawn = (await skipPairs(2 * n)).map(([a]) => a);
    for (const round of [drawn.slice(0, n), drawn.slice(n)]) assert.equal(new Set(round).size, n, `${n} instructions: ${round}`);
  }
});

test("pairs of two instructions favour no side and no instruction", { skip }, async () => {
  await open();
  await write(6);
  await page.evaluate(() => document.querySelector("[value=joint]").click());
  const drawn = await skipPairs(180);
  for (let i = 0; i < 6; i++) {
    const [a, b] = [0, 1].map((side) => drawn.filter((pair) => pair[side] === `Task ${i}`).length);
    // 30 are expected on each side, give or take 5.
    assert.ok(a > 10 && b > 10 && a < 50 && b < 50, `Task ${i}: ${a} times on side A, ${b} times on side B`);
  }
  assert.ok(drawn.every(([a, b]) => a !== b));
});

test("a reload brings other pairs", { skip }, async () => {
  await open();
  const seeds = () => page.evaluate(() => fake.asked.filter(({ method }) => method === "sample").map(({ args }) => args[1].seed));
  await skipPairs(2);
  const before = await seeds();
  await page.reload();
  await pair(page);
  await skipPairs(2);
  const again = await seeds();
  assert.ok(before.length >= 3 && again.length >= 3);
  assert.equal(new Set([...before, ...again]).size, before.length + again.length, `${before} and ${again}`);
});

test("a pair with equal or empty answers is drawn again, and can never be chosen", { skip }, async () => {
  await open();
  await page.evaluate(() => {
    const answers = [["same", "same"], ["", "other"], ["one", "two"]];
    fake.sample = () => answers.shift() ?? ["same", "same"];
  });
  const sides = () => page.evaluate(() => [...document.querySelectorAll(".side .response")].map((side) => side.textContent));
  await click(page, "pass");
  await page.waitForFunction(() => document.querySelector("#side-b .response").textContent === "two");
  assert.deepEqual(await sides(), ["one", "two"]);
  await click(page, "side-a");
  await page.waitForFunction(() => /the same, 4 times/.test(document.getElementById("pair-note").textContent));
  await click(page, "side-a");
  await page.keyboard.press("b");
  assert.deepEqual((await rows()).map((row) => row.r_chosen), ["one"]);
});

test("undo takes back a choice, and everything else that changes the preferences", { skip }, async () => {
  await open();
  const shown = () => page.evaluate(() => document.querySelector("#side-a .response").textContent);
  const first = await shown();
  await click(page, "side-a");
  await page.waitForFunction((first) => document.querySelector("#side-a .response").textContent !== first, first);
  await click(page, "draw-rows");
  await rowsBecome(65);
  await click(page, "clear-rows");
  await rowsBecome(0);
  for (const n of [65, 1, 0]) {
    await click(page, "undo");
    await rowsBecome(n);
  }
  assert.equal(await shown(), first, "the pair of the choice is shown again");
  assert.ok(await page.evaluate(() => document.getElementById("undo").disabled));
});

test("edits of the preferences' text are not lost by a choice", { skip }, async () => {
  await open();
  await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
  await page.fill("#rows", '{"prompt": "mine"}');
  await click(page, "side-a");
  await rowsBecome(1);
  const lines = (await value(page, "rows")).trim().split("\n").map((line) => JSON.parse(line));
  assert.equal(lines.length, 2);
  assert.equal(lines[0].prompt, "mine");
  await click(page, "apply-rows");
  await rowsBecome(2);
});

test("the focus stays where it was, and keys choose only where nothing else has it", { skip }, async () => {
  await open();
  await page.focus("#side-b");
  await page.keyboard.press("Enter");
  await rowsBecome(1);
  await pair(page);
  assert.equal(await focused(), "side-b");
  await page.keyboard.press("a");
  await rowsBecome(2);
  await pair(page);
  for (const selector of ["footer a", "#start", "#preferences summary"]) {
    await page.focus(selector);
    for (const key of ["a", "b", "ArrowLeft", "s", "u"]) await page.keyboard.press(key);
    assert.equal((await rows()).length, 2, `a key chose although ${selector} had the focus`);
  }
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press("ArrowRight");
  await rowsBecome(3);
  await pair(page);
  await page.evaluate(() => (document.getElementById("keys").checked = false));
  await page.keyboard.press("a");
  assert.equal((await rows()).length, 3);
  for (let i = 0; i < 3; i++) {
    await page.focus("#undo");
    await page.keyboard.press("Enter");
    await rowsBecome(2 - i);
  }
  assert.equal(await focused(), "side-a", "undo was disabled with the focus");
});

test("Train and Pause hand the focus on", { skip }, async () => {
  await open();
  await click(page, "draw-rows");
  await rowsBecome(64);
  await page.evaluate(() => (fake.step = () => new Promise((resolve) => (fake.go = () => resolve(null)))));
  await page.focus("#start");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("start").disabled);
  assert.equal(await focused(), "pause");
  await page.waitForFunction(() => globalThis.fake.go);
  await page.evaluate(() => fake.go());
  await page.waitForFunction(() => !document.getElementById("start").disabled);
  assert.equal(await focused(), "start");
});

test("the heat map shows the strength of a change in forced colours", { skip }, async () => {
  await open();
  const token = (text, change) => ({ text, n_tokens: 1, response: true, logp: -1 + change, reference: -1 });
  await page.evaluate((tokens) => (fake.score = () => tokens), [{ ...token("a", 0), logp: null }, token("b", 2), token("c", 0.5), token("d", -2), token("e", 0)]);
  await page.evaluate(() => document.querySelector("#heat button").click());
  await page.waitForFunction(() => !document.getElementById("heat-map").hidden);
  await page.emulateMedia({ forcedColors: "active" });
  const lines = await page.evaluate(() => [...document.querySelectorAll("#heat-map span")].map((span) => {
    const { textDecorationLine: line, textDecorationStyle: style, textDecorationThickness: thickness } = getComputedStyle(span);
    return [line, style, Number.parseFloat(thickness) || 0];
  }));
  const [first, up, slightly, down, same] = lines;
  assert.ok(up[0] === "underline" && slightly[0] === "underline" && down[0] === "underline", JSON.stringify(lines));
  assert.ok(up[2] > slightly[2] + 2, "a stronger change has a thicker line");
  assert.notEqual(up[1], down[1], "the style of the line tells the direction");
  assert.ok(first[0] === "none" && same[0] === "none", "what did not change has no line");
  await page.emulateMedia({ forcedColors: "none" });
});
