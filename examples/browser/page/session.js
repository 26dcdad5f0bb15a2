// What the page holds, and keeps: the model's place, preferences, settings, metrics, and the last state of the run.

import * as store from "./store.js";

export const session = {
  /** {kind: "demo"} | {kind: "hub", id} | {kind: "folder", name}; null before the first. */
  model: null,
  /** Preferences, as rows of the training format. */
  rows: [],
  /** As the engine takes them; of the run under way. */
  settings: null,
  /** The rows that the run was begun with, as JSON lines. */
  data: null,
  /** Of metrics.jsonl. */
  lines: [],
  /** {state, arena} of the last step kept. */
  kept: null,
  /** When the run began, in seconds since 1970. */
  started: 0,
};

/** A full or forbidden store costs the next visit its session, nothing else. */
export async function keep() {
  try {
    await store.save("session", session);
  } catch (error) {
    console.warn("the session is not kept:", error);
  }
}

export async function restore() {
  try {
    Object.assign(session, (await store.load("session")) ?? {});
  } catch (error) {
    console.warn("no session can be kept here:", error);
  }
}

export const forget = () => store.clear();

export const toJsonl = (rows) => rows.map((row) => JSON.stringify(row)).join("\n") + (rows.length ? "\n" : "");

/** Rows of JSON lines; an error names its line. Fields are the engine's to judge. */
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
