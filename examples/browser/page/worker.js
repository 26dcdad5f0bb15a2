// Runs the engine in a worker, so that it never blocks the page. A request is {id, method, args}. Its answer is {id, result} or {id, error}.
// Before the answer, the worker may send events: {event, ...}.

import init, { Engine } from "./pkg/jointwise_browser.js";
import { WEIGHTS } from "./content.js";
import { SIDE, deleteModel, fromHub, headersFromHub, listModels } from "./downloads.js";
import { Requests } from "./hub.js";
import * as store from "./store.js";

const reader = new FileReaderSync();

/** A file or a blob, read in pieces from the disk. */
class Readable {
  constructor(blob) {
    this.blob = blob;
    this.size = blob.size;
  }
  readAt(offset, length) {
    return new Uint8Array(reader.readAsArrayBuffer(this.blob.slice(offset, offset + length)));
  }
}

/** A file with only its header in memory, which is enough for a memory plan. */
class Header {
  constructor({ size, bytes }) {
    this.size = size;
    this.bytes = bytes;
  }
  readAt(offset, length) {
    return this.bytes.slice(offset, offset + length);
  }
}

let engine;

function take(files, name) {
  return files.find((f) => f.name === name);
}

function need(files, name) {
  if (!take(files, name)) throw `${name} is missing. Files found: ${files.map((f) => f.name).join(", ") || "none"}`;
}

const tell = (event) => postMessage(event);

/** Requests to the hub that are on their way, or null. */
let requests = null;

/** Runs requests to the hub, which the user can cancel. */
async function withHub(run) {
  requests = new Requests(tell);
  try {
    return await run(requests);
  } finally {
    requests.end();
    requests = null;
  }
}

const hex = (buffer) => Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Compiles the engine. Returns the digest of its file, which tells builds apart. */
async function startEngine() {
  const response = await fetch(new URL("pkg/jointwise_browser_bg.wasm", import.meta.url));
  const bytes = response.clone().arrayBuffer();
  await init({ module_or_path: response });
  return hex(await crypto.subtle.digest("SHA-256", await bytes));
}
const program = startEngine();
program.catch(() => {});

/** Kernel checks are kept for this program, browser and adapter. */
async function checksKey() {
  const adapter = await navigator.gpu.requestAdapter();
  const { vendor, architecture, device, description } = adapter?.info ?? {};
  const features = [...(adapter?.features ?? [])].sort();
  return JSON.stringify([await program, navigator.userAgent, vendor, architecture, device, description, features]);
}

async function loadChecks() {
  try {
    const kept = await store.load("session", "checks");
    return kept?.key === (await checksKey()) ? kept.checks : undefined;
  } catch {
    return undefined;
  }
}

let keptChecks;

/** Saves the kernel checks, if there are new ones. A failure costs the next visit a check. */
async function keepChecks() {
  const checks = engine.checks();
  if (checks === keptChecks) return;
  keptChecks = checks;
  await store.save(["session", "checks", { key: await checksKey(), checks }]).catch(() => {});
}

async function caps() {
  const caps = JSON.parse(engine.caps());
  // wgpu gives only the adapter's description, which most browsers leave empty.
  const info = (await navigator.gpu.requestAdapter())?.info;
  caps.name ||= [info?.vendor, info?.architecture, info?.description].filter(Boolean).join(" ");
  return caps;
}

const plain = (files) => files.map((file) => ({ name: file.name, bytes: file.bytes }));

const methods = {
  async open() {
    if (!navigator.gpu) throw "this browser has no WebGPU in workers";
    keptChecks = await loadChecks();
    engine = await Engine.open(keptChecks);
    return caps();
  },
  caps,
  hasModel: () => engine?.has_model() ?? false,
  hasRun: () => engine?.has_run() ?? false,

  /** Loads a model. `files` are File objects of a model folder, in any order. Returns notes. */
  async load(name, files, baseDtype) {
    const weights = files.filter((f) => WEIGHTS.test(f.name));
    if (weights.length === 0) throw "there is no .safetensors file in this folder";
    ["config.json", "tokenizer.json"].forEach((name) => need(files, name));
    const side = SIDE.map((name) => take(files, name)).filter(Boolean);
    const notes = await engine.load(
      name,
      side.map((f) => f.name),
      side.map((f) => new Uint8Array(reader.readAsArrayBuffer(f))),
      weights.map((f) => f.name),
      weights.map((f) => new Readable(f)),
      baseDtype,
    );
    await keepChecks();
    return JSON.parse(notes);
  },

  /** Downloads a hub model's files, or takes them from the cache. Sends its progress as events. */
  download: (id) => withHub((requests) => fromHub(id, requests)),

  /** Estimates the memory of a hub model for several settings. Reads only the config and the headers of the weights. */
  async planHub(id, settings) {
    const { config, headers } = await withHub((requests) => headersFromHub(id, requests));
    const names = headers.map((h) => h.name);
    return JSON.parse(engine.plan(config, names, headers.map((h) => new Header(h)), JSON.stringify(settings)));
  },

  models: listModels,
  deleteModel,

  sample: (instructions, settings) =>
    engine.sample(instructions, JSON.stringify(settings), (prompt, text) => tell({ event: "text", prompt, text })),

  demoPrompts: (seed, n) => Engine.demo_prompts(seed, n),
  readRows: (name, bytes) => Engine.read_rows(name, bytes),
  demoPreferences: (seed, n) => Engine.demo_preferences(seed, n),

  /** Begins a run, or continues a saved one. Returns the rows that it does not use whole. */
  async begin(jsonl, settings, kept) {
    const notes = await engine.begin(jsonl, JSON.stringify(settings), kept?.state, kept?.arena);
    await keepChecks();
    return JSON.parse(notes);
  },

  async step() {
    const line = await engine.step();
    return line === undefined ? null : JSON.parse(line);
  },

  async state() {
    const kept = await engine.state();
    return { state: kept.state, arena: kept.arena };
  },

  adapter: async () => plain(await engine.adapter()),

  /** Makes the adapter's files and the report of a saved run, without a device. */
  savedFiles: ({ kept, settings, lines, started }) =>
    plain(Engine.saved_files(kept.state, kept.arena, JSON.stringify(settings), JSON.stringify(lines), started)),

  report: (lines, started) => engine.report(JSON.stringify(lines), started),

  kernels: () => Engine.kernels(),
  ceilings: async () => JSON.parse(await engine.ceilings()),
  bench: async (kernel, ceilings) => JSON.parse(await engine.bench(kernel, JSON.stringify(ceilings))),

  losses: () => JSON.parse(Engine.losses()),
  stepKernels: async () => JSON.parse(await engine.step_kernels()),
  timeStep: async (seconds, ceilings) => JSON.parse(await engine.time_step(seconds, JSON.stringify(ceilings))),

  score: async (instruction, response, template) => JSON.parse(await engine.score(instruction, response, template)),
};

/** Returns the buffers of a result, which are handed over instead of copied. */
const buffers = (result) => (result?.arena ? [result.arena.buffer] : []);

// Requests run one after the other, because the engine has one device. A wish to cancel does not wait.
let last = Promise.resolve();
onmessage = ({ data: { id, method, args, cancel } }) => {
  if (cancel) return requests?.cancel();
  last = last.then(async () => {
    try {
      await program;
      const result = await methods[method](...args);
      postMessage({ id, result }, buffers(result));
    } catch (error) {
      // A check may have found a wrong kernel: the next engine must not use it.
      if (error?.name === "GpuError") await keepChecks().catch(() => {});
      postMessage({ id, error: typeof error === "string" ? error : String(error?.message ?? error), lost: error?.name === "GpuError" });
    }
  });
};
