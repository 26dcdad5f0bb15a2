// The session: the model's source, the preferences, the settings, the metrics, and the run's last saved state. The browser stores it.

import * as store from "./store.js";

export const session = {
  /** Source of the model: {kind: "demo"} | {kind: "hub", id} | {kind: "folder", name}. It is null until a model is loaded. */
  model: null,
  /** Preferences, as rows of the training format. */
  rows: [],
  /** Settings of the current run, in the engine's format. */
  settings: null,
  /** Rows that the current run started with, as JSON lines. */
  data: null,
  /** Metrics of the current run: lines of metrics.jsonl. */
  lines: [],
  /** State of the run at the last saved step: {state, arena}. */
  kept: null,
  /** Start time of the run, in seconds since 1970. */
  started: 0,
};

/** Saves the session. If the browser's storage is full or not allowed, only the next visit is affected: it starts without a session. */
export async function keep() {
  try {
    await store.save("session", session);
  } catch (error) {
    console.warn("the session could not be saved:", error);
  }
}

/** Loads the saved session, if there is one. */
export async function restore() {
  try {
    Object.assign(session, (await store.load("session")) ?? {});
  } catch (error) {
    console.warn("the saved session could not be loaded:", error);
  }
}

export const forget = () => store.clear();

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
