// Section 3: trains step by step. Each step is one message to the worker and its answer. To pause, the page does not send the next message.

import { draw } from "./charts.js";
import { engine } from "./engine.js";
import { checkForm, fill, settings } from "./form.js";
import { keep, session, toJsonl } from "./session.js";
import { $, act, fail, keepFocus } from "./ui.js";

export { fill, settings };

const KEPT_EVERY_MS = 5000;

/** State of the run: "idle", "running", "paused" (by the button) or "hidden" (the tab is hidden, so the page paused the run). */
let state = "idle";
let keptAt = 0;
/** True while `loop` is active. Its last step may end after the state has left "running". */
let looping = false;
/** True while the engine has the session's run on the device. */
let onDevice = false;

function show(next, words) {
  state = next;
  keepFocus(enable, $("pause"), $("start"));
  if (words !== undefined) $("run-state").value = words;
  draw($("charts"), session.lines);
}

/** Enables the buttons and fields that the state allows. */
function enable() {
  $("start").disabled = state !== "idle";
  $("start").textContent = session.kept && session.lines.length < session.settings?.max_steps ? "Continue" : "Train";
  $("pause").disabled = state === "idle";
  $("pause").textContent = state === "paused" ? "Resume" : "Pause";
  $("stop").disabled = state === "idle";
  $("download").disabled = !session.kept;
  for (const field of $("settings").elements) field.disabled = state !== "idle";
}

/** Tells whether a run is on the way, or paused. */
export const isTraining = () => state !== "idle";

/** Saves the run's state in the session, so that a reload finds it. */
async function keepState() {
  session.kept = await engine.state();
  keptAt = performance.now();
  await keep();
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

/** Reasons of a pause that the page shows, by state. */
const PAUSED = { paused: "", hidden: " because the tab is hidden" };

async function loop() {
  looping = true;
  try {
    // The user may resume the run while its state is being saved.
    while (state === "running") {
      await stepOn();
      if (state === "idle") return;
      await keepState();
      if (state in PAUSED) show(state, `Paused after step ${session.lines.length}${PAUSED[state]}`);
    }
  } catch (error) {
    goBack();
    if (!error.lost) fail(error);
  } finally {
    looping = false;
  }
}

/** Goes back to the last saved step, where "Continue" starts. */
function goBack() {
  onDevice = false;
  session.lines = session.lines.slice(0, stepKept());
  show("idle", "");
}

/** Puts the session's run on the device: from the first step, or from the last saved step. */
async function begin() {
  onDevice = false;
  await engine.begin(session.data, session.settings, session.kept);
  session.lines = session.lines.slice(0, stepKept());
  onDevice = true;
}

const stepKept = () => (session.kept ? JSON.parse(session.kept.state).state.step : 0);

function run() {
  show("running");
  if (!looping) loop();
}

/** Starts a new run, or continues from the last saved step. */
async function start() {
  const goesOn = session.kept && session.lines.length < session.settings.max_steps;
  const begun = await act(goesOn ? "Continuing…" : "Starting…", async () => {
    if (!goesOn) {
      checkForm();
      if (!session.rows.length) throw new Error("There are no preferences yet. Choose or load some in section 2");
      Object.assign(session, { settings: settings(), data: toJsonl(session.rows), lines: [], kept: null, started: Date.now() / 1000 });
    }
    if (!goesOn || !onDevice) await begin();
    return true;
  });
  if (!begun) return show("idle", "");
  keptAt = performance.now();
  run();
}

async function stop() {
  show("idle", `Stopped after step ${session.lines.length}`);
  await act("", keepState);
  // The trained adapter stays. The next start is a new run.
  session.settings = { ...session.settings, max_steps: session.lines.length };
  await keep();
  show("idle");
  document.dispatchEvent(new CustomEvent("trained"));
}

export function setUp() {
  $("start").onclick = start;
  $("pause").onclick = () => (state === "paused" ? run() : show("paused", "Pausing…"));
  $("stop").onclick = stop;
  $("settings").onsubmit = (event) => event.preventDefault();
  // A run that is paused has no step that could fail.
  document.addEventListener("lost", () => !looping && state !== "idle" && goBack());
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && state === "running") show("hidden", "Pausing…");
    else if (!document.hidden && state === "hidden") run();
  });
  document.addEventListener("model", async () => {
    if (session.settings) fill(session.settings);
    // Puts the run of an earlier visit back on the device, so that the user can look at it, download it and continue it.
    onDevice = false;
    if (session.kept) await act("Restoring the last session…", begin);
    show("idle", session.kept ? `Restored: step ${session.lines.length} of ${session.settings.max_steps}` : "");
  });
}
