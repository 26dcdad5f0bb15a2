// Serves the built page with the tool that `make browser` uses.

import { spawn } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
const TARGET = process.env.CARGO_TARGET_DIR ?? join(ROOT, "target");
export const SITE = join(TARGET, "site");

/** Starts the server. Returns {url, close}. */
export async function serve() {
  const server = spawn(join(TARGET, "release/tool"), ["serve", SITE, "0"], { stdio: ["ignore", "pipe", "inherit"] });
  const url = await new Promise((resolve, reject) => {
    server.stdout.once("data", (line) => resolve(String(line).trim().replace("localhost", "127.0.0.1")));
    server.once("exit", (status) => reject(new Error(`the server ended with ${status}`)));
  });
  return { url, close: () => server.kill() };
}
