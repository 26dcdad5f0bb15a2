// Runs the engine in a worker, so that it never blocks the page. A request is {id, method, args}. Its answer is {id, result} or {id, error}.
// Before the answer, the worker may send events: {event, ...}.

import init, { Engine } from "./pkg/jointwise_browser.js";
import { SIDE, WEIGHTS, fromHub, headersFromHub } from "./hub.js";

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

const methods = {
  async open() {
    await init();
    if (!navigator.gpu) throw "this browser has no WebGPU in workers";
    engine = await Engine.open();
    const caps = JSON.parse(engine.caps());
    // wgpu gives only the adapter's description, which most browsers leave empty.
    const info = (await navigator.gpu.requestAdapter())?.info;
    caps.name ||= [info?.vendor, info?.architecture, info?.description].filter(Boolean).join(" ");
    return caps;
  },

  /** Loads a model. `files` are File objects of a model folder, in any order. */
  load(name, files, settings) {
    const weights = files.filter((f) => WEIGHTS.test(f.name));
    if (weights.length === 0) throw "there is no .safetensors file in this folder";
    ["config.json", "tokenizer.json"].forEach((name) => need(files, name));
    const side = SIDE.map((name) => take(files, name)).filter(Boolean);
    return JSON.parse(
      engine.load(
        name,
        side.map((f) => f.name),
        side.map((f) => new Uint8Array(reader.readAsArrayBuffer(f))),
        weights.map((f) => f.name),
        weights.map((f) => new Readable(f)),
        JSON.stringify(settings),
      ),
    );
  },

  /** Downloads a hub model's files, or takes them from the cache. Sends its progress as events. */
  download: (id) => fromHub(id, (done, total, name) => postMessage({ event: "download", done, total, name })),

  /** Estimates the memory of a hub model for several settings. Reads only the config and the headers of the weights. */
  async planHub(id, settings) {
    const { config, headers } = await headersFromHub(id);
    const names = headers.map((h) => h.name);
    return JSON.parse(engine.plan(config, names, headers.map((h) => new Header(h)), JSON.stringify(settings)));
  },

  sample: (instructions, settings) =>
    engine.sample(instructions, JSON.stringify(settings), (prompt, text) => postMessage({ event: "text", prompt, text })),

  demoPrompts: (seed, n) => Engine.demo_prompts(seed, n),
  readRows: (name, bytes) => Engine.read_rows(name, bytes),
  demoPreferences: (seed, n) => Engine.demo_preferences(seed, n),

  begin: (jsonl, settings, kept) => engine.begin(jsonl, JSON.stringify(settings), kept?.state, kept?.arena),

  async step() {
    const line = await engine.step();
    return line === undefined ? null : JSON.parse(line);
  },

  async state() {
    const kept = await engine.state();
    return { state: kept.state, arena: kept.arena };
  },

  async adapter() {
    return (await engine.adapter()).map((file) => ({ name: file.name, bytes: file.bytes }));
  },

  report: (lines, started) => engine.report(JSON.stringify(lines), started),

  kernels: () => Engine.kernels(),
  ceilings: async () => JSON.parse(await engine.ceilings()),
  bench: async (kernel, ceilings) => JSON.parse(await engine.bench(kernel, JSON.stringify(ceilings))),

  score: async (instruction, response, template) => JSON.parse(await engine.score(instruction, response, template)),
};

// Requests run one after the other, because the engine has one device.
let last = Promise.resolve();
onmessage = ({ data: { id, method, args } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, result: await methods[method](...args) });
    } catch (error) {
      postMessage({ id, error: typeof error === "string" ? error : String(error?.message ?? error), lost: error?.name === "GpuError" });
    }
  });
};
