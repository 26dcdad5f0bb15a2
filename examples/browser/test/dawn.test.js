// Every kernel through Dawn for Node: Tint, a third compiler of the shaders, without a browser. CASES=1000 runs all cases, in five minutes.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";

import { SITE } from "./site.js";

// Native, and absent on some machines.
const dawn = await import("webgpu").catch((error) => ({ missing: String(error).split("\n")[0] }));
// The collector must not take it: https://github.com/dawn-gpu/node-webgpu
const gpu = dawn.missing ? null : dawn.create([]);
const adapter = await gpu?.requestAdapter();
const skip = adapter ? false : `Dawn finds no adapter: ${dawn.missing ?? "is a Vulkan driver installed?"}`;

const CASES = Number(process.env.CASES ?? 12);

let engine, Engine;

before(async () => {
  if (skip) return;
  Object.assign(globalThis, dawn.globals);
  // wgpu asks a window or a worker for its GPU: Node is to be a worker.
  globalThis.WorkerGlobalScope = class {
    static [Symbol.hasInstance](object) {
      return object === globalThis;
    }
  };
  Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true });
  const bindings = await import(join(SITE, "pkg/jointwise_browser.js"));
  await bindings.default({ module_or_path: readFileSync(join(SITE, "pkg/jointwise_browser_bg.wasm")) });
  Engine = bindings.Engine;
  engine = await Engine.open();
});

test("every kernel is right", { skip }, async (t) => {
  const kernels = Engine.kernels();
  assert.ok(kernels.length > 10, `all kernels: ${kernels}`);
  for (const kernel of kernels) {
    await t.test(kernel, async () => {
      const cases = JSON.parse(await engine.cases(kernel, CASES));
      assert.ok(cases.length > 0, `${kernel}: nothing was compared`);
      for (const [label, error] of cases) assert.ok(error <= 1, `${label}: ${error} times the tolerance`);
    });
  }
});
