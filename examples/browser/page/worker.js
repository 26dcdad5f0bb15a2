// The engine in a worker, so that nothing that it does ever blocks the page. A request is {id, method, args}; its answer {id, result} or
// {id, error}; what comes in between is {event, ...}.

import init, { Engine } from "./pkg/jointwise_browser.js";
import { SIDE, WEIGHTS, fromHub, headersFromHub } from "./hub.js";

const reader = new FileReaderSync();

/** A file or a blob, read in pieces where it lies. */
class Readable {
  constructor(blob) {
    this.blob = blob;
    this.size = blob.size;
  }
  readAt(offset, length) {
    return new Uint8Array(reader.readAsArrayBuffer(this.blob.slice(offset, offset + length)));
  }
}

/** A file of which only the header is here: what a plan needs. */
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
  if (!take(files, name)) throw `${name}: is missing among ${files.map((f) => f.name).join(", ") || "no files"}`;
}

const methods = {
  async open() {
    await init();
    if (!navigator.gpu) throw "WebGPU is missing";
    engine = await Engine.open();
    const caps = JSON.parse(engine.caps());
    // wgpu passes on a description alone, which most browsers leave empty.
    const info = (await navigator.gpu.requestAdapter())?.info;
    caps.name ||= [info?.vendor, info?.architecture, info?.description].filter(Boolean).join(" ");
    return caps;
  },

  /** `files`: File objects of a model folder, in any order. */
  load(name, files, settings) {
    const weights = files.filter((f) => WEIGHTS.test(f.name));
    if (weights.length === 0) throw "no .safetensors file among them";
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

  /** Files of a model on the hub, downloaded once and kept; progress as events. */
  download: (id) => fromHub(id, (done, total, name) => postMessage({ event: "download", done, total, name })),

  /** Memory by setting, of a model on the hub: its config and the headers of its weights are read, nothing else. */
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

// One after the other: the engine has one device.
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
