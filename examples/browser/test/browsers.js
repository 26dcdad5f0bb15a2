// Starts headless Chromium and Firefox for the tests and the measurements.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";
import puppeteer from "puppeteer-core";

import { folder } from "./native.js";

const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const FIREFOX = ["/usr/bin/firefox-esr", "/usr/bin/firefox"].find(existsSync);

/** Reasons to skip a browser; false if it is installed. */
export const noChromium = CHROMIUM ? false : "Chromium is not installed";
export const noFirefox = FIREFOX ? false : "Firefox is not installed";

/** Flags that make Chromium use the machine's OpenGL ES driver on Vulkan, in compatibility mode, instead of its software adapter SwiftShader. */
export const ON_VULKAN = ["--force-webgpu-compat", "--use-webgpu-adapter=opengles", "--use-angle=vulkan", "--enable-features=Vulkan", "--use-vulkan=native", "--ignore-gpu-blocklist"];

/** Starts Chromium with an empty profile. Returns a Playwright context with an added field, `profile`: the profile's folder. */
export async function launchChromium(...more) {
  const profile = folder();
  const args = ["--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-unsafe-webgpu"];
  const options = { executablePath: CHROMIUM, headless: false, ignoreDefaultArgs: ["--disable-gpu"], args: [...args, ...more], viewport: { width: 1100, height: 900 } };
  return Object.assign(await chromium.launchPersistentContext(profile, options), { profile });
}

/** Kills Chromium's GPU process (Linux only), so that all pages lose their devices. */
export function loseGpu({ profile }) {
  const isIts = (pid) => {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, "utf8");
      return command.includes("--type=gpu-process") && command.includes(`--user-data-dir=${profile}`);
    } catch {
      return false; // The process has ended meanwhile.
    }
  };
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name) && isIts(name));
  if (pids.length !== 1) throw new Error(`${pids.length} processes have the GPU`);
  process.kill(Number(pids[0]), "SIGKILL");
}

/** Starts Firefox. Returns a Puppeteer browser. Its WebGPU is wgpu on the machine's Vulkan driver. */
export function launchFirefox() {
  const extraPrefsFirefox = { "dom.webgpu.enabled": true, "dom.webgpu.workers.enabled": true, "gfx.webgpu.ignore-blocklist": true };
  return puppeteer.launch({ browser: "firefox", executablePath: FIREFOX, headless: true, extraPrefsFirefox });
}
