// Section 3: trains step by step. Each step is one message to the worker and its answer. To pause, the page does not send the next message. A
// hidden tab goes on.

import { ask } from "./ask.js";
import { draw } from "./charts.js";
import { engine } from "./engine.js";
import { checkForm, fill, settings } from "./form.js";
import { currentRun, keepRun, newRun, session, setTrouble, startAnew, stepKept, toJsonl, trouble } from "./session.js";
import { showTitle } from "./title.js";
import { $, act, download, fail, keepFocus } from "./ui.js";
import { plain } from "./words.js";
import { zip } from "./zip.js";

export { fill, settings };

const KEPT_EVERY_MS = 5000;
/** Number of rows that a note names. */
const NAMED = 10;

/** State of the run: "idle", "running" or "paused". */
let state = "idle";
let keptAt = 0;
/** The active loop, or null. Its last step may end after the state has left "running". */
let looping = null;
/** True while the engine has the session's run on the device. */
let onDevice = false;
/** The run before, until the first step of a new run is saved. It comes back if the new run fails. */
let previous = null;

/** Tells whether the run can continue. */
const goesOn = () => session.kept !== null && !session.stopped && session.lines.length < session.settings?.max_steps;

function show(next, words) {
  state = next;
  keepFocus(enable, $("pause"), $("start"));
  if (words !== undefined) $("run-state").value = words;
  const isDone = state === "idle" && document.hidden && session.lines.length > 0;
  showTitle(isDone ? "done" : state, session.lines.length, session.settings?.max_steps);
  draw($("charts"), session.lines);
}

/** Enables the buttons and fields that the state allows. */
function enable() {
  $("start").disabled = state !== "idle" || trouble.text !== "";
  $("start").textContent = state === "idle" && goesOn() ? "Continue" : "Train";
  $("pause").disabled = state === "idle";
  $("pause").textContent = state === "paused" ? "Resume" : "Pause";
  $("stop").disabled = state === "idle" && !goesOn();
  $("download").disabled = !session.kept;
  // A run that can continue keeps its settings. After Stop, they can be changed.
  for (const field of $("settings").elements) field.disabled = state !== "idle" || goesOn();
}

/** Tells whether a run is on the way, or paused. */
export const isTraining = () => state !== "idle";

/** Saves the run's state, so that a reload finds it. */
async function keepState() {
  const kept = await engine.state();
  Object.assign(session, { kept, downloaded: false });
  [keptAt, previous] = [performance.now(), null];
  await keepRun();
}

/** Runs steps until the run is paused or finished. */
async function stepOn() {
  while (state === "running") {
    const line = await engine.step();
    if (line === null) {
      await keepState();
      show("idle", `Done: ${session.lines.length} steps`);
      document.dispatchEvent(new CustomEvent("trained"));
      return;
    }
    session.lines.push(line);
    if (state === "running") {
      show(state, `Step ${line.step} of ${session.settings.max_steps}`);
      if (performance.now() - keptAt > KEPT_EVERY_MS) await keepState();
    }
  }
}

async function loop() {
  try {
    // The user may resume the run while its state is being saved.
    while (state === "running") {
      await stepOn();
      if (state === "idle") return;
      await keepState();
      if (state === "paused") show(state, `Paused after step ${session.lines.length}`);
    }
  } catch (error) {
    goBack();
    if (!error.lost) {
      fail(error);
      await backOnDevice();
    }
    return "failed";
  } finally {
    looping = null;
  }
}

/** Goes back to the last saved step, where "Continue" starts, or to the run before. */
function goBack() {
  onDevice = false;
  if (previous) Object.assign(session, previous);
  previous = null;
  session.lines = session.lines.slice(0, stepKept());
  show("idle", "");
}

/** Puts the session's run on the device, at the last saved step. */
async function begin() {
  onDevice = false;
  tellRows(await engine.begin(session.data, session.settings, session.kept));
  session.lines = session.lines.slice(0, stepKept());
  onDevice = true;
}

/** Continues the run, which may not be on the device any more. */
async function beginAgain() {
  if (!onDevice) await begin();
}

/** Begins a new run. The session keeps the run before until the engine has accepted the new one. */
async function beginNew() {
  checkForm();
  if (!session.rows.length) throw new Error("There are no preferences yet. Choose or load some in section 2");
  const next = { ...newRun(), settings: settings(), data: toJsonl(session.rows), started: Date.now() / 1000 };
  const notes = await engine.begin(next.data, next.settings, null);
  previous = currentRun();
  Object.assign(session, next);
  [onDevice, keptAt] = [true, -Infinity];
  tellRows(notes);
}

/** Puts the session's run back on the device after a new run has failed. A run that was refused has left the device as it was. */
async function backOnDevice() {
  try {
    onDevice &&= await engine.hasRun();
    if (onDevice) return;
    if (!(await engine.hasModel())) document.dispatchEvent(new CustomEvent("unloaded"));
    else if (session.kept) await begin();
  } catch (error) {
    if (!error.lost) fail(error);
  }
}

/** Says which rows a run does not use whole. */
function tellRows(notes) {
  const { rows, dropped = [], truncated = [], remarks = [] } = notes || {};
  const numbers = (list) => `${list.length === 1 ? "number" : "numbers"} ${list.slice(0, NAMED).join(", ")}${list.length > NAMED ? ", …" : ""}`;
  const texts = remarks.map(plain);
  if (dropped.length) texts.push(`Left out of ${rows} preferences, because they have more tokens than the max length: ${numbers(dropped)}. Raise the max length under Advanced, or shorten them`);
  if (truncated.length) texts.push(`Instructions cut to the max length: ${numbers(truncated)}`);
  $("run-note").textContent = texts.join(". ");
  $("run-note").hidden = texts.length === 0;
}

function run() {
  show("running");
  looping ??= loop();
}

/** True while a run is being begun, so that a second click begins no second run. */
let starting = false;

async function start() {
  if (starting) return;
  starting = true;
  try {
    await startRun();
  } finally {
    starting = false;
  }
}

/** Starts a new run, or continues from the last saved step. */
async function startRun() {
  const isNew = !goesOn();
  const steps = stepKept();
  const question = `A new run replaces the adapter that was trained for ${steps} ${steps === 1 ? "step" : "steps"}. It has not been downloaded.`;
  if (isNew && session.kept && !session.downloaded && !(await ask(question, "Replace it"))) return;
  let failure;
  const begin = isNew ? beginNew : beginAgain;
  const begun = await act(isNew ? "Starting…" : "Continuing…", () => begin().then(() => true, (error) => ((failure = error), Promise.reject(error))));
  if (!begun) {
    show("idle", "");
    // After a lost device, the page loads everything again.
    return failure.lost || !isNew ? undefined : backOnDevice();
  }
  if (!isNew) keptAt = performance.now();
  run();
}

/** Ends the run. The adapter stays, and the next start is a new run. */
async function stop() {
  const wasActive = state !== "idle";
  show("idle", wasActive ? "Stopping…" : "");
  if ((await looping) === "failed") return;
  if (!session.lines.length) {
    // Not even one step was done, so the run before comes back.
    goBack();
    return backOnDevice();
  }
  session.stopped = true;
  if (onDevice) await act("", keepState);
  else await keepRun();
  show("idle", `Stopped after step ${session.lines.length}`);
  if (wasActive && onDevice) document.dispatchEvent(new CustomEvent("trained"));
}

/** Returns the adapter's files and the report. Works without a model on the device, from the saved state. */
export async function adapterFiles() {
  if (!onDevice) return engine.savedFiles(currentRun());
  const report = { name: "report.html", bytes: new TextEncoder().encode(await engine.report(session.lines, session.started)) };
  return [...(await engine.adapter()), report];
}

/** Shows or hides the way on from a saved run that cannot be used. */
function showTrouble() {
  $("run-problem").hidden = !trouble.text;
  $("run-problem-text").textContent = `The saved training run cannot be used: ${plain(trouble.text)}. Your preferences are still here.`;
  enable();
}

/** Downloads a saved run that cannot be used, as it is. */
function downloadBroken() {
  const { kept, ...others } = trouble.run ?? {};
  const files = [{ name: "run.json", bytes: new TextEncoder().encode(JSON.stringify({ ...others, state: kept?.state }, null, 1)) }];
  if (kept?.arena?.byteLength) files.push({ name: "state.safetensors", bytes: new Uint8Array(kept.arena) });
  download("jointwise-run.zip", zip(files));
}

/** Puts the run of an earlier visit back on the device, so that the user can look at it, download it and continue it. */
async function restoreRun() {
  [onDevice, previous] = [false, null];
  if (goesOn()) fill(session.settings);
  const saved = currentRun();
  const restore = async () => {
    try {
      await begin();
    } catch (error) {
      if (error.lost) throw error;
      setTrouble(error.message, saved);
    }
  };
  if (session.kept) await act("Restoring the last session…", restore);
  show("idle", session.kept ? `Restored: step ${session.lines.length} of ${session.settings.max_steps}` : "");
}

export function setUp() {
  $("start").onclick = start;
  $("pause").onclick = () => (state === "paused" ? run() : show("paused", "Pausing…"));
  $("stop").onclick = stop;
  $("settings").onsubmit = (event) => event.preventDefault();
  $("start-anew").onclick = async () => {
    await startAnew();
    document.dispatchEvent(new CustomEvent("rows"));
    show("idle", "");
  };
  $("save-broken").onclick = downloadBroken;
  // A run that is paused has no step that could fail.
  document.addEventListener("lost", () => !looping && state !== "idle" && goBack());
  // Another tab has taken the session.
  document.addEventListener("taken", () => state !== "idle" && show("idle", ""));
  document.addEventListener("visibilitychange", () => !document.hidden && show(state));
  document.addEventListener("model", restoreRun);
  document.addEventListener("trouble", showTrouble);
  showTrouble();
  show("idle", session.kept ? `Saved: step ${stepKept()} of ${session.settings.max_steps}` : "");
}
