// Starts the page: sets up the sections and opens the device.

import * as card from "./card.js";
import * as change from "./change.js";
import { engine, restart } from "./engine.js";
import * as first from "./first.js";
import * as model from "./model.js";
import * as preferences from "./preferences.js";
import { restore, session } from "./session.js";
import * as training from "./training.js";
import { $, fail, progress, status } from "./ui.js";

/** Returns advice for a browser without WebGPU. */
function withoutWebGpu() {
  const agent = navigator.userAgent;
  if (!window.isSecureContext) return "WebGPU needs a secure page: use https or http://localhost.";
  if (/Firefox/.test(agent)) return "WebGPU is not available in this Firefox. On Windows and Apple Silicon, install the newest version. On Linux, set dom.webgpu.enabled to true in about:config, or use Chrome or Edge.";
  if (/Chrome|Chromium|Edg/.test(agent)) return "WebGPU is not available in this browser. Turn on hardware acceleration in the settings, and see chrome://gpu for details. On Linux, start the browser with --enable-unsafe-webgpu --enable-features=Vulkan.";
  if (/Safari/.test(agent)) return "WebGPU needs Safari 26 or newer (macOS 26, iOS 26).";
  return "This browser has no WebGPU. Use Chrome, Edge, Firefox or Safari 26.";
}

async function openDevice() {
  card.show(await engine.open());
  $("main").inert = false;
}

let recovering = false;

/** Opens a new device and reloads the saved session, after the device was lost or the worker ended. A device that is lost
 * again during the recovery is reported, and not reopened. */
async function recover({ detail: error }) {
  if (recovering) return;
  recovering = true;
  $("main").inert = true;
  restart();
  try {
    status("Reopening the GPU…");
    progress(null);
    await openDevice();
    await model.reload(session.model);
    fail(`${error.message} (${session.kept ? "Training can continue from the last saved step." : "No training step was saved yet."})`);
  } catch (again) {
    fail(`${error.message}. The GPU could not be reopened (${again.message}). Reload the page: the session is saved.`);
  } finally {
    progress(undefined);
    status("");
    recovering = false;
  }
}

async function main() {
  [model, preferences, training, change, card, first].forEach((part) => part.setUp());
  document.addEventListener("lost", recover);
  // An error stays visible until the next click. A "change" event must not hide it: that would move the page between a button's press and its
  // release, and the browser would then report no click.
  document.addEventListener("click", () => ($("error").hidden = true), true);
  if (!navigator.gpu) {
    status("");
    return fail(withoutWebGpu());
  }
  progress(null);
  await restore();
  try {
    await openDevice();
  } catch (error) {
    status("");
    progress(undefined);
    return fail(/no GPU found/.test(error.message) ? `${withoutWebGpu()} (The browser supports WebGPU but found no GPU.)` : error);
  }
  progress(undefined);
  status("");
  await model.reload(session.model);
  document.documentElement.dataset.ready = "true";
}

main();
