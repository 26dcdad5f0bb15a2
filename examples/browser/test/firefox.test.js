// The page in headless Firefox, whose WebGPU is wgpu, on the machine's Vulkan driver: a second browser, and a second shader compiler.

import { existsSync } from "node:fs";
import { after, before, test } from "node:test";
import puppeteer from "puppeteer-core";

import { choose, click, losses, ready, runState, same, set, until, value } from "./flow.js";
import * as native from "./native.js";
import { serve } from "./site.js";

const executablePath = ["/usr/bin/firefox-esr", "/usr/bin/firefox"].find(existsSync);
const skip = executablePath ? false : "Firefox is not installed";
const SETTINGS = { max_steps: 3, batch_size: 2 };

let site, browser, page;

before(async () => {
  if (skip) return;
  site = await serve();
  browser = await puppeteer.launch({
    browser: "firefox",
    executablePath,
    headless: true,
    extraPrefsFirefox: { "dom.webgpu.enabled": true, "dom.webgpu.workers.enabled": true, "gfx.webgpu.ignore-blocklist": true },
  });
  page = await browser.newPage();
});

after(async () => {
  await browser?.close();
  site?.close();
});

test("collects preferences and trains as the program does", { skip }, async () => {
  await page.goto(site.url);
  await ready(page);
  for (const side of ["a", "b", "a"]) await choose(page, side);
  await click(page, "draw-rows");
  await until(page, "the grader's rows", () => Number.parseInt(document.getElementById("count").value) >= 64);
  await set(page, SETTINGS);
  await click(page, "start");
  await runState(page, "Done: 3 steps");
  same(await losses(page), native.losses(await value(page, "rows"), SETTINGS));
  await until(page, "the comparison", () => !document.getElementById("comparison").hidden);
});
