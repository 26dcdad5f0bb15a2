// The session: the model's source, the preferences, and the training run of each model. The browser stores it.

import * as store from "./store.js";

/** Version of the saved format. Version 1 saved everything as one value, without a version. */
const VERSION = 2;

/** Returns a run that has not begun. */
export const newRun = () => ({
  /** Settings of the run, in the engine's format. */
  settings: null,
  /** Rows that the run started with, as JSON lines. */
  data: null,
  /** Metrics of the run: lines of metrics.jsonl. */
  lines: [],
  /** State of the run at the last saved step: {state, arena}. */
  kept: null,
  /** Start time of the run, in seconds since 1970. */
  started: 0,
  /** True after the user has ended the run before its last step. */
  stopped: false,
  /** True after the adapter was downloaded. */
  downloaded: false,
});
const RUN_FIELDS = Object.keys(newRun());

export const session = {
  /** Source of the model: {kind: "demo"} | {kind: "hub", id} | {kind: "folder", name}. It is null until a model is loaded. */
  model: null,
  /** Preferences, as rows of the training format. */
  rows: [],
  /** Saved runs by their model's key: {model, steps}. */
  runs: {},
  // Run of the current model.
  ...newRun(),
};

/** How saving goes: `problem` is the reason why nothing is saved, `at` the time of the last save, in ms since 1970. */
export const saving = { problem: "", at: 0 };

/** A saved session or run that cannot be used: `text` says why, `run` is what was saved. The page offers to start anew. */
export const trouble = { text: "", run: null };

/** Returns the name under which a model's run is saved. */
export const modelKey = (model) => [model?.kind, model?.id ?? model?.name].filter(Boolean).join(":");

/** Returns the run of the current model. */
export const currentRun = () => Object.fromEntries(RUN_FIELDS.map((name) => [name, session[name]]));

/** Returns the number of steps of a run at its last saved state. */
export const stepKept = ({ kept } = session) => (kept ? JSON.parse(kept.state).state.step : 0);

function shared() {
  const entries = Object.entries(session).filter(([name]) => !RUN_FIELDS.includes(name));
  return ["session", "session", { version: VERSION, ...Object.fromEntries(entries) }];
}

/** True while nothing may be saved: another tab has the session, or a newer version of the page saved it. */
let held = false;

export function holdSaving(isHeld) {
  held = isHeld;
}

async function write(act) {
  if (held) return;
  try {
    await act();
    Object.assign(saving, { problem: "", at: Date.now() });
  } catch (error) {
    saving.problem = error?.message || String(error);
  }
  document.dispatchEvent(new CustomEvent("saved"));
}

/** Saves the session, without the run. */
export const keep = () => write(() => store.save(shared()));

/** Saves the run of the current model, and the session. */
export const keepRun = () => write(() => {
  const key = modelKey(session.model);
  session.runs[key] = { model: session.model, steps: stepKept() };
  return store.save(["runs", key, { version: VERSION, ...currentRun() }], shared());
});

/** Removes the saved run of a model. */
export async function forgetRun(model) {
  delete session.runs[modelKey(model)];
  await write(() => store.remove("runs", modelKey(model)));
  await keep();
}

/** Removes the saved session with all runs. */
export const forget = () => store.clear();

const isRow = (row) => row !== null && typeof row === "object" && !Array.isArray(row);

/** Returns the reason why a saved run cannot be used; "" if it can. */
function whyUnusable(run) {
  if (run.version > VERSION) return "a newer version of this page saved it. Reload the page to get that version";
  const isSound = isRow(run.settings) && typeof run.data === "string" && Array.isArray(run.lines) && run.lines.every(isRow);
  if (!isSound) return "its settings, rows or metrics are damaged";
  try {
    if (run.kept && !(run.kept.arena.byteLength > 0 && Number.isInteger(stepKept(run)))) return "its adapter is damaged";
  } catch (error) {
    return `its adapter is damaged (${error.message})`;
  }
  return "";
}

/** Records that a saved run cannot be used. The browser keeps it until the user starts anew. */
export function setTrouble(text, run) {
  Object.assign(trouble, { text, run });
  Object.assign(session, newRun());
  document.dispatchEvent(new CustomEvent("trouble"));
}

/** Makes the saved run of a model the current run. */
export async function openRun(model) {
  let run;
  try {
    run = await store.load("runs", modelKey(model));
  } catch (error) {
    saving.problem = error?.message || String(error);
  }
  if (!held) Object.assign(trouble, { text: "", run: null });
  Object.assign(session, newRun());
  const reason = run && whyUnusable(run);
  if (reason) setTrouble(reason, run);
  else if (run) Object.assign(session, Object.fromEntries(RUN_FIELDS.filter((name) => name in run).map((name) => [name, run[name]])));
  document.dispatchEvent(new CustomEvent("trouble"));
}

/** Drops the run that cannot be used. Its preferences stay. Of a newer page's session, the preferences are taken over and the runs stay. */
export async function startAnew() {
  const isNewer = held;
  held = false;
  // A run keeps the preferences that it began with.
  if (!session.rows.length && typeof trouble.run?.data === "string") {
    try {
      session.rows = fromJsonl(trouble.run.data);
    } catch (error) {
      console.warn("the run's preferences are damaged:", error);
    }
  }
  Object.assign(trouble, { text: "", run: null });
  if (session.model && !isNewer) await forgetRun(session.model);
  else await keep();
  document.dispatchEvent(new CustomEvent("trouble"));
}

/** Converts a session of version 1. */
function fromVersion1({ model, rows, ...run }) {
  // Stop changed the number of steps, but not the fingerprint in the saved state, which begins with the settings.
  try {
    const { fingerprint } = JSON.parse(run.kept.state).state;
    const settings = JSON.parse(fingerprint.slice(0, fingerprint.lastIndexOf(" ")));
    run.stopped = settings.max_steps !== run.settings.max_steps;
    run.settings = settings;
  } catch {
    // Such a run is shown as damaged.
  }
  const steps = run.lines?.length ?? 0;
  return { model, rows, run: run.settings ? run : null, runs: run.settings ? { [modelKey(model)]: { model, steps } } : {} };
}

/** Loads the saved session, if there is one. */
export async function restore() {
  let saved;
  try {
    saved = await store.load("session", "session");
  } catch (error) {
    saving.problem = error?.message || String(error);
  }
  if (!saved) return;
  if (saved.version === undefined) {
    const { run, ...page } = fromVersion1(saved);
    saved = { version: VERSION, ...page };
    const entries = [["session", "session", saved]];
    if (run) entries.push(["runs", modelKey(saved.model), { version: VERSION, ...run }]);
    await write(() => store.save(...entries));
  }
  const rows = Array.isArray(saved.rows) ? saved.rows.filter(isRow) : [];
  if (saved.version > VERSION) {
    held = true;
    session.rows = rows;
    return setTrouble("a newer version of this page saved it. Reload the page to get that version", saved);
  }
  const { version, ...page } = saved;
  const isKnown = ["demo", "hub", "folder"].includes(page.model?.kind);
  Object.assign(session, page, { rows, model: isKnown ? page.model : null, runs: isRow(page.runs) ? page.runs : {} });
  if (session.model) await openRun(session.model);
}

export const toJsonl = (rows) => rows.map((row) => JSON.stringify(row)).join("\n") + (rows.length ? "\n" : "");

/** Parses rows from JSON lines. An error names its line. The engine checks the fields. */
export function fromJsonl(text) {
  const rows = [];
  text.split("\n").forEach((line, i) => {
    if (!line.trim()) return;
    try {
      rows.push(JSON.parse(line));
    } catch (error) {
      throw new Error(`preferences, line ${i + 1}: ${error.message}`);
    }
  });
  return rows;
}
