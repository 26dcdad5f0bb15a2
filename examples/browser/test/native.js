// Runs the program on the page's rows, so that the tests can compare the numbers.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
export const MODEL = join(ROOT, "models/demo");
const TARGET = process.env.CARGO_TARGET_DIR ?? join(ROOT, "target");

export const folder = () => mkdtempSync(join(tmpdir(), "jointwise-browser-"));

export function jointwise(...args) {
  return execFileSync(join(ROOT, ".ci/with-driver"), [join(TARGET, "release/jointwise"), ...args.map(String)], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

/** Trains with the page's settings. Returns the lines of `metrics.jsonl`. */
export function metrics(jsonl, { max_steps, batch_size }) {
  const dir = folder();
  writeFileSync(join(dir, "rows.jsonl"), jsonl);
  const out = join(dir, "out");
  jointwise("train", "--model", MODEL, "--data", join(dir, "rows.jsonl"), "--lora-targets", "all-linear", "--learning-rate", "1e-3", "--max-length", 512, "--max-steps", max_steps, "--batch-size", batch_size, "--output-dir", out);
  return readFileSync(join(out, "metrics.jsonl"), "utf8").trim().split("\n").map((line) => JSON.parse(line));
}

export const losses = (jsonl, settings) => metrics(jsonl, settings).map((line) => line.loss);

/** Scores a text with an adapter. Returns the log-prob of each token except the first. */
export function tokenLogps(adapter, instruction, response) {
  const dir = folder();
  writeFileSync(join(dir, "rows.jsonl"), JSON.stringify({ instruction, response }) + "\n");
  const printed = jointwise("score", "--model", MODEL, "--adapter", adapter, "--data", join(dir, "rows.jsonl"), "--tokens");
  return JSON.parse(printed.split("\n")[0]).text.token_logps.slice(1);
}
