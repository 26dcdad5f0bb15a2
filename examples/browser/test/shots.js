// Takes screenshots of the page in each state of a visit, at two widths, light and dark, to be looked at.
//   make site && cd examples/browser/test && ../../../.ci/with-driver npm run --silent shots OUT_DIR

import { mkdirSync } from "node:fs";
import { join } from "node:path";

import { launchChromium } from "./browsers.js";
import { choose, click, pair, runState, steps, until } from "./flow.js";
import { serve } from "./site.js";

const out = process.argv[2] ?? "shots";
mkdirSync(out, { recursive: true });
const site = await serve();
const context = await launchChromium();

/** Takes the screenshots of one state: what is in sight at a section, and the whole page. */
async function shoot(page, name, section) {
  for (const width of [390, 1280]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize({ width, height: width < 500 ? 844 : 800 });
      await page.emulateMedia({ colorScheme });
      await page.evaluate((id) => (id ? document.getElementById(id).scrollIntoView({ behavior: "instant" }) : scrollTo(0, 0)), section);
      const path = join(out, `${name}-${width}-${colorScheme}`);
      await page.screenshot({ path: `${path}.png` });
      await page.screenshot({ path: `${path}-page.png`, fullPage: true });
    }
  }
}

try {
  const page = await context.newPage();
  await page.goto(site.url);
  await shoot(page, "0-opening");
  await pair(page);
  await shoot(page, "1-start");
  for (let n = 0; n < 7; n++) await choose(page, n % 2 ? "a" : "b");
  await pair(page);
  await shoot(page, "2-choosing", "preferences");
  await click(page, "try");
  await steps(page, 20);
  await click(page, "pause");
  await runState(page, "Paused");
  await shoot(page, "3-training", "training");
  await click(page, "pause");
  await until(page, "the comparison", () => !document.getElementById("comparison").hidden && document.getElementById("try-steps").hidden, undefined, 1200);
  await page.evaluate(() => document.querySelector("#heat button").click());
  await until(page, "the heat map", () => !document.getElementById("heat-map").hidden);
  await shoot(page, "4-comparing", "change");
  await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
  await shoot(page, "5-unfolded");
  await page.emulateMedia({ forcedColors: "active", colorScheme: "dark" });
  await page.screenshot({ path: join(out, "6-forced-colours-page.png"), fullPage: true });
} finally {
  await context.close();
  site.close();
}
