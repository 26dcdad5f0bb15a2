// Tests the page's words: errors in plain English, without flags of the command-line program, and settings that are checked before a run. In
// Chromium, with the test's answers in the engine's place.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launchChromium, noChromium as skip } from "./browsers.js";
import { click, openFake, set } from "./flow.js";
import { SITE, serve } from "./site.js";

let site, context, page;

before(async () => {
  if (skip) return;
  site = await serve();
  context = await launchChromium();
  page = await openFake(context, site.url);
  await click(page, "draw-rows");
});

after(async () => {
  await context?.close();
  site?.close();
});

const error = () => page.evaluate(() => document.getElementById("error").textContent);

/** Returns the error that a click shows. */
async function errorAfter(id) {
  await page.evaluate(() => (document.getElementById("error").textContent = ""));
  await click(page, id);
  await page.waitForFunction(() => !document.getElementById("error").hidden && document.getElementById("error").textContent);
  return error();
}

test("errors of the engine name the page's fields, and no flag and no parser", { skip }, async () => {
  const told = async (text) => {
    await page.evaluate((text) => (fake.begin = () => Promise.reject(new Error(text))), text);
    return errorAfter("start");
  };
  const texts = {
    "--beta: 0 is not above 0": "β: 0 is not above 0",
    "--lora-r: expected 1 ..= 4096, found 5000": "LoRA rank: expected 1 to 4096, found 5000",
    "--max-new-tokens: 256 behind a prompt of 900 tokens: the model has 1024 positions": "Max new tokens: 256 behind a prompt of 900 tokens: the model has 1024 positions",
    "--batch-size: a micro-batch of 8192 tokens has an activation of 300 MiB, and a binding of this device holds 128 MiB: take fewer rows with more --gradient-accumulation-steps, or a smaller --max-length":
      "Pairs per step: a micro-batch of 8192 tokens has an activation of 300 MiB, and a binding of this device holds 128 MiB: take fewer pairs per step, or a smaller “Max length (tokens)”",
    "llvmpipe was lost: gone. A smaller --batch-size makes submissions shorter, and --resume goes on from what is kept": "llvmpipe was lost: gone. A smaller “Pairs per step” makes submissions shorter, and “Continue” goes on from what is kept",
    "preferences.jsonl:2: malformed JSON: EOF while parsing an object, column 1": "preferences.jsonl:2: malformed JSON: the text ends inside of an object, at character 1",
    "config.json: malformed JSON: key must be a string at line 1 column 2": "config.json: malformed JSON: a name must be in double quotes, at line 1, character 2",
    "rows-with--dashes.jsonl: is empty": "rows-with--dashes.jsonl: is empty",
  };
  for (const [text, expected] of Object.entries(texts)) assert.equal(await told(text), expected);
  assert.doesNotMatch(await told("settings: invalid type: null, expected string or map at line 1 column 14"), /null|line 1/);
});

test("a setting out of range is named before a run begins, and gets the focus", { skip }, async () => {
  await page.evaluate(() => (fake.begin = () => Promise.reject(new Error("the run began"))));
  for (const [name, value, pattern] of [["beta", "0", /^β: enter a number above 0$/], ["rank", "1.5", /^LoRA rank: enter a whole number from 1 to 4,096$/], ["max_steps", "", /^Steps: enter a whole number/]]) {
    const before = await page.evaluate((name) => document.forms.settings.elements[name].value, name);
    await set(page, { [name]: value });
    assert.match(await errorAfter("start"), pattern);
    assert.equal(await page.evaluate(() => document.activeElement.name), name);
    await set(page, { [name]: before });
  }
  assert.equal(await errorAfter("start"), "the run began");
});

test("while a model is trained, a model's size can be checked, and another model is refused in words", { skip }, async () => {
  await page.evaluate(() => {
    fake.begin = () => "";
    fake.step = () => new Promise(() => {});
    fake.planHub = () => Promise.reject(new Error("nothing to plan"));
  });
  await click(page, "start");
  await page.waitForFunction(() => fake.asked.at(-1).method === "step");
  await page.evaluate(() => {
    document.getElementById("hub-id").value = "some/model";
    document.querySelector("#hub button").click();
  });
  await page.waitForFunction(() => fake.asked.at(-1).method === "planHub");
  const [, settings] = await page.evaluate(() => fake.asked.at(-1).args);
  assert.equal(settings.objective, "jpo");
  assert.equal(settings.lora.rank, 16);
  assert.match(await errorAfter("load-demo"), /Press Stop in section 3/);
});

test("a memory plan that fits nowhere says why without flags", { skip }, async () => {
  await page.evaluate(() => {
    const refused = "--batch-size: an activation of 300 MiB, and a binding of this device holds 128 MiB: take a smaller --max-length";
    fake.planHub = () => ["none", "elementwise", "block"].map((recompute) => ({ max_length: 128, batch_size: 1, recompute, peak_bytes: 0, refused }));
    document.getElementById("hub-id").value = "some/model";
    document.querySelector("#hub button").click();
  });
  await page.waitForFunction(() => !document.getElementById("plan").hidden);
  const texts = await page.evaluate(() => [document.getElementById("plan").textContent, ...[...document.querySelectorAll("#plan [title]")].map((cell) => cell.title)]);
  for (const text of texts) assert.doesNotMatch(text, /--[a-z]/);
});

test("a temperature that is no number is refused in words, and no instructions are told of", { skip }, async () => {
  await page.evaluate(() => (document.getElementById("temperature").value = ""));
  assert.equal(await errorAfter("pass"), "Temperature: enter a number from 0 to 4");
  await page.evaluate(() => {
    document.getElementById("temperature").value = 1;
    document.getElementById("prompts").value = " ";
  });
  await click(page, "pass");
  await page.waitForFunction(() => /no instructions/.test(document.getElementById("pair-note").textContent));
});

test("nothing is styled or scripted inline, and the policy refuses that", { skip }, async () => {
  const html = readFileSync(join(SITE, "index.html"), "utf8");
  const policy = html.match(/Content-Security-Policy" content="([^"]+)"/)[1];
  assert.doesNotMatch(policy, /'unsafe-(inline|eval)/);
  assert.doesNotMatch(html, /\sstyle=|<style|\son[a-z]+=|<script(?![^>]* src=)/);
  for (const name of readdirSync(SITE).filter((name) => name.endsWith(".js"))) assert.doesNotMatch(readFileSync(join(SITE, name), "utf8"), /setAttribute\("style"|innerHTML|insertAdjacentHTML/, name);
  const seen = await page.evaluate(() => new Promise((resolve) => {
    addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective), { once: true });
    document.body.setAttribute("style", "color: red");
  }));
  assert.equal(seen, "style-src-attr");
});
