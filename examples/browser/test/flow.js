// What a person does on the page, for any driver that has page.evaluate.

import assert from "node:assert/strict";

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits for what an expression on the page gives; an error shown meanwhile is the test's. */
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

export const click = (page, id) => page.evaluate((id) => document.getElementById(id).click(), id);
export const value = (page, id) => page.evaluate((id) => document.getElementById(id).value, id);

export const ready = (page) => until(page, "the page", () => document.documentElement.dataset.ready === "true");

/** Waits for a pair, then chooses. */
export async function choose(page, side) {
  await until(page, "a pair", () => !document.getElementById("side-a").disabled);
  const before = await page.evaluate(() => document.getElementById("side-a").querySelector(".response").textContent);
  await click(page, `side-${side}`);
  return before;
}

export const set = (page, fields) =>
  page.evaluate((fields) => Object.entries(fields).forEach(([name, value]) => (document.forms.settings.elements[name].value = value)), fields);

export const runState = (page, pattern) =>
  until(page, `the run's state ${pattern}`, (p) => new RegExp(p).test(document.getElementById("run-state").value) && document.getElementById("run-state").value, pattern);

export const steps = (page, n) => until(page, `${n} steps`, async (n) => (await import("./session.js")).session.lines.length >= n, n);

/** Shows the heat-map: log π of each token but the first. */
export async function heatMap(page) {
  await page.evaluate(() => document.querySelector("#heat button").click());
  await until(page, "the heat-map", () => !document.getElementById("heat-map").hidden);
  const tokens = await page.evaluate(() => [...document.querySelectorAll("#heat-map span")].map((s) => [s.title, s.style.background]));
  assert.ok(tokens.filter(([, background]) => background.includes("rgba")).length > 5, "the heat-map has colours");
  return tokens.slice(1).map(([title]) => Number(title.match(/^log π (\S+),/)[1]));
}

/** To half of the last digit that is shown, and float32 noise. */
export function sameTokens(shown, expected) {
  assert.equal(shown.length, expected.length);
  shown.forEach((logp, i) => assert.ok(Math.abs(logp - expected[i]) < 6e-4, `token ${i + 1}: ${logp}, native ${expected[i]}`));
}

/** Losses of all steps so far, as kept by the page. */
export const losses = (page) =>
  page.evaluate(async () => {
    const { session } = await import("./session.js");
    return session.lines.map((line) => line.loss);
  });

/** float32 noise on a loss: sums of a few hundred log-probs near 1e2 with an epsilon of 6e-8, times β. */
export const NOISE = 2e-5;

export function same(actual, expected) {
  assert.equal(actual.length, expected.length);
  actual.forEach((loss, i) => assert.ok(Math.abs(loss - expected[i]) < NOISE, `step ${i + 1}: ${loss}, native ${expected[i]}`));
  // The first loss is ln 2 whatever is trained: the last one must have moved, or the comparison says nothing.
  assert.ok(Math.abs(actual.at(-1) - actual[0]) > 100 * NOISE, `nothing was learnt: ${actual}`);
}
