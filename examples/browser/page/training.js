// Section 3: a run, step by step; each step is a message to the worker and back, so that pausing is not sending the next one.

import { draw } from "./charts.js";
import { engine } from "./engine.js";
import { keep, session, toJsonl } from "./session.js";
import { $, act, fail } from "./ui.js";

const KEPT_EVERY_MS = 5000;

/** "idle", "running", "paused" (by the button), "hidden" (by the browser). */
let state = "idle";
let keptAt = 0;
/** A loop is under way: its last step may outlive "running". */
let looping = false;
/** The engine holds the session's run. */
let onDevice = false;

/** The form's, as the engine takes them. */
export function settings() {
  const form = new FormData($("settings"));
  const number = (name) => Number(form.get(name));
  return {
    objective: form.get("objective"),
    loss: form.get("loss"),
    beta: number("beta"),
    learning_rate: number("learning_rate"),
    max_steps: number("max_steps"),
    batch_size: number("batch_size"),
    max_length: number("max_length"),
    recompute: form.get("recompute"),
    base_dtype: form.get("base_dtype"),
    template: form.get("template"),
    lora: { rank: number("rank"), alpha: number("alpha"), targets: ["all-linear"] },
  };
}

/** Settings into the form; those that are not given stay. */
export function fill(s) {
  const values = { ...s, rank: s.lora?.rank, alpha: s.lora?.alpha };
  for (const field of $("settings").elements) if (values[field.name] !== undefined) field.value = values[field.name];
}

function show(next, words) {
  state = next;
  $("start").disabled = state !== "idle";
  $("start").textContent = session.kept && session.lines.length < session.settings?.max_steps ? "Go on" : "Start";
  $("pause").disabled = state === "idle";
  $("pause").textContent = state === "paused" ? "Resume" : "Pause";
  $("stop").disabled = state === "idle";
  $("download").disabled = !session.kept;
  for (const field of $("settings").elements) field.disabled = state !== "idle";
  if (words !== undefined) $("run-state").value = words;
  draw($("charts"), session.lines);
}

/** The run's state into the session, where a reload finds it. */
async function keepState() {
  session.kept = await engine.state();
  keptAt = performance.now();
  await keep();
}

/** Steps until the run is paused or over. */
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

const PAUSED = { paused: "Paused", hidden: "Paused while the tab is hidden," };

async function loop() {
  looping = true;
  try {
    // It may be resumed while its state is being kept.
    while (state === "running") {
      await stepOn();
      if (state === "idle") return;
      await keepState();
      if (PAUSED[state]) show(state, `${PAUSED[state]} after step ${session.lines.length}`);
    }
  } catch (error) {
    // Back to the last step kept: "Go on" begins there.
    onDevice = false;
    session.lines = session.lines.slice(0, stepKept());
    show("idle", "");
    if (!error.lost) fail(error);
  } finally {
    looping = false;
  }
}

/** The session's run onto the device, from its beginning or from the last step kept. */
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

/** Begins anew, or at the last step kept. */
async function start() {
  const goesOn = session.kept && session.lines.length < session.settings.max_steps;
  const begun = await act(goesOn ? "Going on…" : "Starting…", async () => {
    if (!goesOn) {
      if (!session.rows.length) throw new Error("There are no preferences yet: choose some above, or let the grader draw them");
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
  // What was trained stays; a new start is a new run.
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
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && state === "running") show("hidden", "Pausing…");
    else if (!document.hidden && state === "hidden") run();
  });
  document.addEventListener("model", async () => {
    if (session.settings) fill(session.settings);
    // A run of an earlier visit is put back on the device, so that it can be looked at, taken home, and gone on with.
    onDevice = false;
    if (session.kept) await act("Restoring the last session…", begin);
    show("idle", session.kept ? `Restored: step ${session.lines.length} of ${session.settings.max_steps}` : "");
  });
}
