// Tests the page in headless Chromium, on Chromium's software adapter.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launchChromium, loseGpu, noChromium as skip } from "./browsers.js";
import { choose, click, heatMap, losses, pair, ready, runState, same, sameTokens, set, steps, until, value } from "./flow.js";
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
  page.setDefaultTimeout(300_000);
  // The browser logs an error for each file that the hub does not have. The page expects that, so the test ignores these errors.
  const ours = (message) => message.type() === "error" && !message.location().url.startsWith("https://huggingface.co/");
  page.on("console", (message) => ours(message) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
  mkdirSync(SHOTS, { recursive: true });
});

after(async () => {
  await context?.close();
  site?.close();
});

async function shoot(name) {
  for (const [colorScheme, width] of [["light", 1100], ["dark", 1100], ["light", 400], ["dark", 400]]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 900 });
    await page.screenshot({ path: join(SHOTS, `${name}-${colorScheme}-${width}.png`), fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${name}: ${wide} pixels wider than a screen of ${width}`);
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1100, height: 900 });
}

test("opens, and preferences are collected by key and by click", { skip }, async () => {
  await page.goto(site.url);
  await ready(page);
  await choose(page, "b");
  await pair(page);
  await shoot("1-pair");
  await page.keyboard.press("a");
  await pair(page);
  await page.click("input[value=joint]");
  await until(page, "a pair of two instructions", () => {
    const [a, b] = document.querySelectorAll(".side .instruction");
    return !document.getElementById("side-a").matches("[aria-disabled=true]") && a.textContent !== b.textContent;
  });
  await choose(page, "b");
  await pair(page);
  await page.focus("#side-b");
  await page.keyboard.press("u");
  await until(page, "the undone choice", () => document.getElementById("count").value.startsWith("2"));
  const rows = (await value(page, "rows")).trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(rows.map((row) => Object.keys(row).sort()), Array(2).fill(["i_chosen", "i_reject", "r_chosen", "r_reject"]));
});

test("trains like the program, with a pause and a reload", { skip }, async () => {
  await click(page, "draw-rows");
  await until(page, "the grader's rows", () => document.getElementById("count").value.startsWith("66"));
  await set(page, SETTINGS);
  await click(page, "start");
  await steps(page, 2);
  await click(page, "pause");
  await runState(page, "Paused after step");
  await shoot("2-paused");
  await page.reload();
  await ready(page);
  await runState(page, "Restored: step [23] of 4");
  await click(page, "start");
  await runState(page, "Done: 4 steps");
  same(await losses(page), native.losses(await value(page, "rows"), SETTINGS));
});

test("shows the change, with the numbers of the downloaded adapter", { skip }, async () => {
  await until(page, "the comparison", () => !document.getElementById("comparison").hidden);
  await click(page, "compare");
  const shown = await heatMap(page);
  await shoot("3-change");
  const [download] = await Promise.all([page.waitForEvent("download"), click(page, "download")]);
  const dir = native.folder();
  await download.saveAs(join(dir, "adapter.zip"));
  for (const { name, bytes } of stored(readFileSync(join(dir, "adapter.zip")))) writeFileSync(join(dir, name), bytes);
  assert.match(readFileSync(join(dir, "report.html"), "utf8"), /<svg/);
  sameTokens(shown, native.tokenLogps(dir, "Spell the word fox.", "f-o-x"));
});

test("goes on while the tab is hidden, survives a lost GPU, and gives the same numbers", { skip }, async () => {
  const [settings, hide] = [{ ...SETTINGS, max_steps: 6 }, (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden)];
  await set(page, settings);
  await click(page, "start");
  await steps(page, 2);
  await hide(true);
  await steps(page, 3);
  await hide(false);
  loseGpu(context);
  await page.waitForFunction(() => /Training can continue/.test(document.getElementById("error").textContent));
  await shoot("4-lost");
  await click(page, "start");
  await runState(page, "Done: 6 steps");
  same(await losses(page), native.losses(await value(page, "rows"), settings));
});

test("a hub model is planned before it is downloaded, and downloaded once", { skip }, async () => {
  const asked = [];
  let isAway = false;
  await context.route("https://huggingface.co/**", (route) => {
    if (isAway) {
      asked.push(route.request().url());
      return route.abort();
    }
    const [, id, name] = new URL(route.request().url()).pathname.match(/^\/(.+?)\/resolve\/main\/(.+)$/);
    const path = join(native.MODEL, name);
    const headers = { "access-control-allow-origin": "*", "access-control-expose-headers": "content-range" };
    if (id !== "some/demo" || !existsSync(path)) return route.fulfill({ status: 404, headers });
    const bytes = readFileSync(path);
    const range = route.request().headers().range?.match(/^bytes=(\d+)-(\d+)$/);
    asked.push(range ? `${name} ${range[2] - range[1] + 1}` : name);
    if (!range) return route.fulfill({ status: 200, headers, body: bytes });
    const [from, to] = [Number(range[1]), Number(range[2])];
    headers["content-range"] = `bytes ${from}-${to}/${bytes.length}`;
    return route.fulfill({ status: 206, headers, body: bytes.subarray(from, to + 1) });
  });
  const ask = async (id) => {
    // The page folds this after a model is loaded.
    await page.evaluate(() => (document.getElementById("other-model").open = true));
    await page.fill("#hub-id", id);
    await page.click("#hub button");
  };
  await ask("some/other");
  await page.waitForFunction(() => /the hub has no such model/.test(document.getElementById("error").textContent));
  await ask("some/demo");
  await until(page, "the plan", () => !document.getElementById("plan").hidden);
  assert.ok(!asked.includes("model.safetensors"), `downloaded before it was asked for: ${asked}`);
  assert.equal(await page.evaluate(() => document.querySelectorAll("#plan td button").length), 36);
  await page.locator("#plan td button").nth(3).click();
  assert.deepEqual(await page.evaluate(() => ["batch_size", "max_length", "recompute"].map((name) => document.forms.settings.elements[name].value)), ["1", "128", "block"]);
  // Memory is planned in blocks, so a small model's cells may be equal: the whole table is compared.
  const whole = await page.locator("#plan td button").allTextContents();
  const becomes = (isWhole) =>
    page.waitForFunction(
      ([whole, isWhole]) => ([...document.querySelectorAll("#plan td button")].map((button) => button.textContent).join() === whole) === isWhole,
      [whole.join(), isWhole],
    );
  await page.selectOption("#plan select", "nf4");
  await becomes(false);
  await page.selectOption("#plan select", "auto");
  await becomes(true);
  await shoot("5-plan");
  const load = async () => {
    await page.click("#plan button");
    await until(page, "the model", () => document.getElementById("model-name").textContent.startsWith("some/demo"));
  };
  await load();
  assert.equal(asked.filter((name) => name === "model.safetensors").length, 1);
  // The hub is away, and the page needs none.
  isAway = true;
  asked.length = 0;
  await page.reload();
  await ready(page);
  await until(page, "the model", () => document.getElementById("model-name").textContent.startsWith("some/demo"));
  assert.deepEqual(asked, []);
  const list = () => page.evaluate(() => [...document.querySelectorAll("#models tbody tr")].map((row) => row.cells[0].textContent));
  assert.deepEqual((await list()).sort(), ["The demo model", "some/demo"]);
  // The demo model's run is still there.
  await click(page, "load-demo");
  await runState(page, "Restored: step 6 of 6");
  await page.evaluate(() => (document.getElementById("other-model").open = true));
  await page.locator("#models tr", { hasText: "some/demo" }).locator("button", { hasText: "Delete" }).click();
  await page.click("dialog button.primary");
  await until(page, "the deletion", () => document.querySelectorAll("#models tbody tr").length === 1);
  assert.deepEqual(await list(), ["The demo model"]);
});

test("a request that does not end can be cancelled", { skip }, async () => {
  await context.unroute("https://huggingface.co/**");
  await context.route("https://huggingface.co/**", () => {});
  await page.evaluate(() => (document.getElementById("other-model").open = true));
  await page.fill("#hub-id", "https://huggingface.co/some/slow/tree/main");
  await page.click("#hub button");
  await page.waitForSelector("#cancel:not([hidden])");
  assert.equal(await value(page, "hub-id"), "some/slow");
  await page.waitForFunction(() => /has not answered for 1\d seconds/.test(document.getElementById("status").textContent));
  await page.click("#cancel");
  await page.waitForSelector("#cancel", { state: "hidden" });
  assert.ok(await page.evaluate(() => document.getElementById("error").hidden && !document.getElementById("status").textContent));
});

test("the page shows errors of files", { skip }, async () => {
  const dir = join(native.folder(), "broken");
  mkdirSync(dir);
  for (const name of ["tokenizer.json", "tokenizer_config.json", "model.safetensors"]) writeFileSync(join(dir, name), readFileSync(join(native.MODEL, name)));
  const config = readFileSync(join(native.MODEL, "config.json"), "utf8");
  const told = async (pattern) => {
    await page.setInputFiles("#load-folder", dir);
    await page.waitForFunction((p) => new RegExp(p).test(document.getElementById("error").textContent), pattern);
  };
  await told("config.json is missing");
  writeFileSync(join(dir, "config.json"), config.replace('"llama"', '"mamba"'));
  await told("config.json.*mamba");
  writeFileSync(join(dir, "config.json"), config);
  writeFileSync(join(dir, "model.safetensors"), readFileSync(join(native.MODEL, "model.safetensors")).subarray(0, 100_000));
  await told("model.safetensors: truncated");
  await page.evaluate(() => (document.getElementById("rows").value = "{\n"));
  await click(page, "apply-rows");
  await page.waitForFunction(() => /preferences\.jsonl:1: malformed JSON/.test(document.getElementById("error").textContent));
  await shoot("6-error");
});

test("measures all kernels", { skip }, async () => {
  await click(page, "bench");
  await until(page, "all kernels", () => !document.getElementById("copy-bench").hidden);
  const wrong = await page.evaluate(() => document.querySelectorAll("#bench-table tr.bad").length);
  assert.equal(wrong, 0, "kernels that compute wrongly");
  await shoot("7-card");
});

test("page and worker talk only to their own site and the hub, and run no injected script", { skip }, async () => {
  const own = await context.newPage();
  await own.goto(site.url);
  // The first tab has the session.
  await own.click("#take-over");
  await ready(own);
  const refused = () => {
    const seen = [];
    addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
    document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='globalThis.injected = 1'>");
    document.body.append(Object.assign(document.createElement("script"), { textContent: "globalThis.injected = 1" }));
    return Promise.allSettled(["https://example.org/", "https://huggingface.co.example.org/", "model/config.json"].map((url) => fetch(url)))
      .then((all) => ({ seen: seen.sort(), done: all.map((one) => one.status), injected: globalThis.injected ?? null }));
  };
  const page = await own.evaluate(refused);
  assert.deepEqual(page.done, ["rejected", "rejected", "fulfilled"]);
  assert.deepEqual(page.seen.filter((directive) => directive === "connect-src").length, 2);
  assert.ok(page.seen.some((directive) => directive.startsWith("script-src")), JSON.stringify(page.seen));
  assert.equal(page.injected, null);
  const [worker] = own.workers();
  const inside = await worker.evaluate(() => new Promise((resolve) => {
    addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective), { once: true });
    fetch("https://example.org/").catch(() => setTimeout(() => resolve("sent"), 1000));
  }));
  assert.equal(inside, "connect-src");
  await own.close();
});

test("the console has no errors", { skip }, () => assert.deepEqual(complaints, []));

/** Yields the files of a ZIP archive without compression. */
function* stored(zip) {
  let at = 0;
  while (zip.readUInt32LE(at) === 0x04034b50) {
    const [size, name, extra] = [zip.readUInt32LE(at + 18), zip.readUInt16LE(at + 26), zip.readUInt16LE(at + 28)];
    const start = at + 30 + name + extra;
    yield { name: zip.toString("utf8", at + 30, at + 30 + name), bytes: zip.subarray(start, start + size) };
    at = start + size;
  }
}

