// Tests every kernel with Dawn for Node, without a browser. Dawn compiles the shaders with Tint, the third shader compiler in these tests.
// CASES=1000 runs all cases, in five minutes.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";

import { SITE } from "./site.js";

// The package has native code, which some machines lack.
const dawn = await import("webgpu").catch((error) => ({ missing: String(error).split("\n")[0] }));
// This variable protects the GPU object from garbage collection: https://github.com/dawn-gpu/node-webgpu
const gpu = dawn.missing ? null : dawn.create([]);
const adapter = await gpu?.requestAdapter();
const skip = adapter ? false : `Dawn finds no adapter: ${dawn.missing ?? "is a Vulkan driver installed?"}`;

const CASES = Number(process.env.CASES ?? 12);

let engine, Engine;

before(async () => {
  if (skip) return;
  Object.assign(globalThis, dawn.globals);
  // wgpu takes the GPU from a window or a worker, so Node must look like a worker.
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

test("every kernel computes correctly", { skip }, async (t) => {
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
