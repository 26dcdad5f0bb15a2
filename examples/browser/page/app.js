// The page: the device, then its sections.

import * as card from "./card.js";
import * as change from "./change.js";
import { engine, restart } from "./engine.js";
import * as model from "./model.js";
import * as preferences from "./preferences.js";
import { restore, session } from "./session.js";
import * as training from "./training.js";
import { $, fail, progress, status } from "./ui.js";

/** What to do where there is no WebGPU, by browser. */
function withoutWebGpu() {
  const agent = navigator.userAgent;
  if (!window.isSecureContext) return "WebGPU needs a secure page: https, or http://localhost.";
  if (/Firefox/.test(agent)) return "This Firefox has no WebGPU here. On Windows and Apple Silicon the newest version has it; on Linux set dom.webgpu.enabled in about:config, or take Chrome or Edge.";
  if (/Chrome|Chromium|Edg/.test(agent)) return "WebGPU is off in this browser. Look at chrome://gpu; on Linux start it with --enable-unsafe-webgpu --enable-features=Vulkan, and switch hardware acceleration on.";
  if (/Safari/.test(agent)) return "WebGPU needs Safari 26 or newer (macOS 26, iOS 26).";
  return "This browser has no WebGPU. Chrome, Edge, Safari 26 and Firefox have it.";
}

async function openDevice() {
  card.show(await engine.open());
  $("main").inert = false;
}

let recovering = false;

/** A lost device, or a worker that ended: a new one, and the session as it was kept. One that is lost at once again is left to the user. */
async function recover({ detail: error }) {
  if (recovering) return;
  recovering = true;
  $("main").inert = true;
  restart();
  try {
    status("Opening the GPU again…");
    progress(null);
    await openDevice();
    await model.reload(session.model);
    fail(`${error.message} (${session.kept ? "Restored: Go on begins at the last step kept" : "The session is as before the run"})`);
  } catch (again) {
    fail(`${error.message}. The GPU cannot be opened again (${again.message}): reload the page, the session is kept.`);
  } finally {
    progress(undefined);
    status("");
    recovering = false;
  }
}

async function main() {
  [model, preferences, training, change, card].forEach((part) => part.setUp());
  document.addEventListener("lost", recover);
  // An error stands until something else is asked for. Not at "change": what moves between a button's press and its release is not clicked.
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
    return fail(/no GPU found/.test(error.message) ? `${withoutWebGpu()} (The browser has WebGPU, but no adapter for it.)` : error);
  }
  progress(undefined);
  status("");
  await model.reload(session.model);
  document.documentElement.dataset.ready = "true";
}

main();
