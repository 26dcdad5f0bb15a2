// Starts the page: sets up the sections and opens the device.

import * as card from "./card.js";
import * as change from "./change.js";
import { end, engine, restart } from "./engine.js";
import * as first from "./first.js";
import { loadLosses } from "./form.js";
import * as kernels from "./kernels.js";
import * as model from "./model.js";
import * as preferences from "./preferences.js";
import { holdSaving, restore, saving, session } from "./session.js";
import { claimSession } from "./tabs.js";
import * as training from "./training.js";
import * as typed from "./typed.js";
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
    const saved = saving.problem ? "Download the adapter and export the preferences, then reload the page" : "Reload the page: the session is saved";
    fail(`${error.message}. The GPU could not be reopened (${again.message}). ${saved}.`);
    withoutGpu();
  } finally {
    progress(undefined);
    status("");
    recovering = false;
  }
}

/** Parts of the page that need a GPU. */
const ON_GPU = ["try-row", "model", "choosing", "training", "change", "card"];

/** Leaves in use what works without a GPU: the preferences, and the download of the adapter. */
function withoutGpu() {
  ON_GPU.forEach((id) => ($(id).inert = true));
  $("main").inert = false;
}

/** Says whether the browser keeps the session. */
function showSaving() {
  const { problem, at } = saving;
  const advice = "Export your preferences and download the adapter before you close this tab";
  if (problem) $("saved").textContent = `This browser does not save the session (${problem}). ${advice}.`;
  else if (at) $("saved").textContent = `The session is saved in this browser, last at ${new Date(at).toLocaleTimeString()}. After a reload, or after the GPU was lost, training can continue from the last saved step.`;
  $("saved").classList.toggle("error", Boolean(problem));
  if (problem && !told) fail(`This browser does not save the session (${problem}). ${advice}`);
  told = Boolean(problem);
}

/** True after the user was told that nothing is saved. */
let told = false;

/** Another tab has the session. */
function busy(takeOver) {
  status("");
  progress(undefined);
  $("elsewhere").hidden = false;
  $("take-over").onclick = () => {
    $("elsewhere").hidden = true;
    takeOver();
  };
}

/** Another tab has taken the session: nothing is trained or saved here any more. */
function taken() {
  holdSaving(true);
  end();
  document.dispatchEvent(new CustomEvent("taken"));
  $("main").inert = true;
  busy(() => location.reload());
}

async function main() {
  await claimSession(busy, taken);
  $("elsewhere").hidden = true;
  status("Opening the GPU…");
  progress(null);
  document.addEventListener("saved", showSaving);
  await restore();
  await loadLosses();
  await typed.setUp();
  [model, preferences, training, change, card, kernels, first].forEach((part) => part.setUp());
  if (saving.problem) showSaving();
  document.addEventListener("lost", recover);
  // The check of a model's kernels may have switched off some.
  document.addEventListener("model", () => engine.caps().then(card.show, () => {}));
  // An error stays visible until the next click. A "change" event must not hide it: that would move the page between a button's press and its
  // release, and the browser would then report no click.
  document.addEventListener("click", () => ($("error").hidden = true), true);
  try {
    if (!navigator.gpu) throw new Error(withoutWebGpu());
    await openDevice();
  } catch (error) {
    status("");
    progress(undefined);
    withoutGpu();
    return fail(/no GPU found/.test(error.message) ? `${withoutWebGpu()} (The browser supports WebGPU but found no GPU.)` : error);
  }
  progress(undefined);
  status("");
  await model.reload(session.model);
  document.documentElement.dataset.ready = "true";
}

main();
