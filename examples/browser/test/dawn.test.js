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

/** Returns the header of a safetensors file with these tensors, as the engine reads it: [name, type, shape]. The tensors themselves are not there. */
function headerOf(tensors) {
  const bytesOf = { BF16: 2, F32: 4 };
  let end = 0;
  const entries = tensors.map(([name, dtype, shape]) => {
    const from = end;
    end += shape.reduce((n, dim) => n * dim, bytesOf[dtype]);
    return [name, { dtype, shape, data_offsets: [from, end] }];
  });
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const bytes = new Uint8Array(8 + json.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return { size: bytes.length + end, readAt: (offset, length) => bytes.slice(offset, offset + length) };
}

test("plans a model with a tensor of 604 MB and a file of more than 4 GiB", { skip }, () => {
  const [hidden, vocab, wide] = [1152, 262_144, 330_000];
  const config = { architectures: ["LlamaForCausalLM"], model_type: "llama", hidden_size: hidden, intermediate_size: wide, num_hidden_layers: 1, num_attention_heads: 4, num_key_value_heads: 1, head_dim: 256, vocab_size: vocab, rms_norm_eps: 1e-6, max_position_embeddings: 2048, hidden_act: "silu", tie_word_embeddings: true, rope_theta: 10_000 };
  const layer = "model.layers.0.";
  const rest = [["mlp.gate_proj", [wide, hidden]], ["mlp.up_proj", [wide, hidden]], ["mlp.down_proj", [hidden, wide]], ["self_attn.q_proj", [1024, hidden]], ["self_attn.k_proj", [256, hidden]], ["self_attn.v_proj", [256, hidden]], ["self_attn.o_proj", [hidden, 1024]], ["input_layernorm", [hidden]], ["post_attention_layernorm", [hidden]]];
  const files = [
    headerOf([["model.embed_tokens.weight", "BF16", [vocab, hidden]]]),
    headerOf([...rest.map(([name, shape]) => [`${layer}${name}.weight`, "F32", shape]), ["model.norm.weight", "F32", [hidden]]]),
  ];
  assert.ok(files[0].size > 600e6 && files[1].size > 2 ** 32);
  const lines = JSON.parse(engine.plan(JSON.stringify(config), ["a.safetensors", "b.safetensors"], files, "{}"));
  assert.equal(lines.length, 27);
  const [first] = lines;
  assert.ok(first.refused || first.peak_bytes > 2 ** 32, JSON.stringify(first));
});
