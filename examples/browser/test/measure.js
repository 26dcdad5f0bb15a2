// Prints a table: the size of the engine, the time until the page is ready, and the training speed, beside the program on the same driver.
// One run measures one browser after the other:
//   make site && cd examples/browser/test && ../../../.ci/with-driver npm run --silent measure
// With COLD=1, Mesa's cache of compiled shaders is empty when a browser starts, as on a first visit.

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

import { launchChromium, launchFirefox, noChromium, noFirefox, ON_VULKAN } from "./browsers.js";
import { click, pair, ready, runState, set, until, value } from "./flow.js";
import * as native from "./native.js";
import { SITE, serve } from "./site.js";

const SETTINGS = { max_steps: 12, batch_size: 8 };
/** Number of first steps that are not counted, because they compile shaders. */
const COLD = 2;

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const perSecond = (lines) => (1 / median(lines.slice(COLD).map((line) => line.seconds))).toFixed(2);

async function measure(page, url) {
  const started = performance.now();
  const since = () => ((performance.now() - started) / 1000).toFixed(1);
  await page.goto(url);
  await ready(page);
  const opened = since();
  await pair(page);
  const sampled = since();
  const adapter = await page.evaluate(() => document.querySelector("#caps dd").textContent);
  await click(page, "draw-rows");
  await until(page, "the grader's rows", () => Number.parseInt(document.getElementById("count").value) >= 64);
  await set(page, SETTINGS);
  await click(page, "start");
  await runState(page, `Done: ${SETTINGS.max_steps} steps`);
  const lines = await page.evaluate(async () => (await import("./session.js")).session.lines);
  return { cells: [adapter, opened, sampled, perSecond(lines)], rows: await value(page, "rows") };
}

const site = await serve();
const wasm = readFileSync(join(SITE, "pkg/jointwise_browser_bg.wasm"));
const mib = (bytes) => (bytes / 2 ** 20).toFixed(2);
console.log(`engine: ${mib(wasm.length)} MiB of wasm, ${mib(gzipSync(wasm, { level: 9 }).length)} MiB gzipped; its bindings ${mib(statSync(join(SITE, "pkg/jointwise_browser.js")).size)} MiB\n`);
console.log("| where | adapter | page ready, s | first samples, s | steps/s |\n|---|---|---|---|---|");
const print = (where, cells) => console.log(`| ${[where, ...cells].join(" | ")} |`);

let rows;
const browsers = [
  ["Chromium, SwiftShader", noChromium, () => launchChromium()],
  ["Chromium, OpenGL ES on Vulkan", noChromium, () => launchChromium(...ON_VULKAN)],
  ["Firefox, Vulkan", noFirefox, launchFirefox],
];
for (const [where, missing, launch] of browsers) {
  if (missing) {
    console.log(`| ${where} | ${missing} | | | |`);
    continue;
  }
  if (process.env.COLD) process.env.MESA_SHADER_CACHE_DIR = native.folder();
  const browser = await launch();
  try {
    const found = await measure(await browser.newPage(), site.url);
    rows = found.rows;
    print(where, found.cells);
  } catch (error) {
    console.log(`| ${where} | ${String(error.message).split("\n")[0]} | | | |`);
  } finally {
    await browser.close();
  }
}
if (rows) {
  const { name } = JSON.parse(native.jointwise("info", "--json")).device;
  print("the program", [name, "", "", perSecond(native.metrics(rows, SETTINGS))]);
}
site.close();
