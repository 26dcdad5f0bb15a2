// Tests the page in headless Firefox. Its WebGPU is wgpu on the machine's Vulkan driver, so this tests a second browser and a second shader
// compiler.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launchFirefox, noFirefox as skip } from "./browsers.js";
import { choose, click, heatMap, losses, ready, runState, same, sameTokens, set, steps, until, value } from "./flow.js";
import * as native from "./native.js";
import { serve } from "./site.js";

const SETTINGS = { max_steps: 4, batch_size: 2 };

let site, browser, page;
const complaints = [];

before(async () => {
  if (skip) return;
  site = await serve();
  browser = await launchFirefox();
  page = await browser.newPage();
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
});

after(async () => {
  await browser?.close();
  site?.close();
});

test("collects preferences and trains like the program, with a reload", { skip }, async () => {
  await page.goto(site.url);
  await ready(page);
  for (const side of ["a", "b", "a"]) await choose(page, side);
  await click(page, "draw-rows");
  await until(page, "the grader's rows", () => Number.parseInt(document.getElementById("count").value) >= 64);
  await set(page, SETTINGS);
  await click(page, "start");
  await steps(page, 2);
  await click(page, "pause");
  await runState(page, "Paused after step");
  await page.reload();
  await ready(page);
  await runState(page, "Restored: step [23] of 4");
  await click(page, "start");
  await runState(page, "Done: 4 steps");
  same(await losses(page), native.losses(await value(page, "rows"), SETTINGS));
  await until(page, "the comparison", () => !document.getElementById("comparison").hidden);
});

test("the program reads its adapter, and computes the numbers of the heat map", { skip }, async () => {
  const shown = await heatMap(page);
  const files = await page.evaluate(async () => {
    const { engine } = await import("./engine.js");
    return (await engine.adapter()).map(({ name, bytes }) => [name, btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))]);
  });
  const dir = native.folder();
  for (const [name, bytes] of files) writeFileSync(join(dir, name), Buffer.from(bytes, "base64"));
  sameTokens(shown, native.tokenLogps(dir, "Spell the word fox.", "f-o-x"));
});

test("the page shows errors of files", { skip }, async () => {
  const told = async (input, name, text, pattern) => {
    await page.evaluate((input, name, text) => {
      const chosen = new DataTransfer();
      chosen.items.add(new File([text], name));
      const element = document.getElementById(input);
      element.files = chosen.files;
      element.dispatchEvent(new Event("change"));
    }, input, name, text);
    await page.waitForFunction((p) => new RegExp(p).test(document.getElementById("error").textContent), {}, pattern);
  };
  await told("load-rows", "rows.jsonl", '{"a": 1}\n{', "rows\\.jsonl:2: malformed JSON");
  await told("load-rows", "rows.csv", "prompt,chosen,rejected\na,b\n", "rows\\.csv:2: the row has 2 cells");
  await told("load-folder", "model.safetensors", "", "config.json is missing");
});

test("the console has no errors", { skip }, () => assert.deepEqual(complaints, []));
