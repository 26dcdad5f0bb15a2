// Downloads a model's files from the hub and keeps them in the browser's cache, with a manifest per model. A model with a manifest is complete
// and loads without the hub. Each file is a Blob on disk, from which the engine reads one tensor at a time.

import { WEIGHTS, checkText, checkedWeights, isWhole } from "./content.js";
import { address } from "./hub.js";

/** Files beside the weights: the model's configuration, the tokenizer, and the tokens that end an answer. */
export const SIDE = [
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
];
const CACHE = "jointwise-hub";
const INDEX = "model.safetensors.index.json";
/** Address of a model's manifest in the cache. The hub is never asked for it. */
const manifestAddress = (id) => `https://huggingface.co/${id}/jointwise-manifest`;
const KEPT = /^\/([^/]+\/[^/]+)\/(?:resolve\/main\/(.+)|jointwise-manifest)$/;

const noWeights = (id, name) => `${id}: the hub has no ${name} for this model, and only safetensors models are supported`;

/** Opens the cache. Returns null, and says so, if the browser does not allow it. */
async function openCache(tell) {
  try {
    return await caches.open(CACHE);
  } catch (error) {
    tell?.({ event: "note", text: `This browser does not keep the model's files (${error.message}). They are downloaded again on the next visit` });
    return null;
  }
}

/** Returns a file from the cache as a Blob, or null. */
async function match(cache, url) {
  try {
    return (await (await cache?.match(url))?.blob()) ?? null;
  } catch {
    return null;
  }
}

/** Returns a complete model's files as File objects, or null if the model is not kept. */
async function keptFiles(cache, id) {
  const manifest = await match(cache, manifestAddress(id));
  if (!manifest) return null;
  const files = [];
  for (const [name, size] of Object.entries(JSON.parse(await manifest.text()).files)) {
    const blob = await match(cache, address(id, name));
    // The browser may have removed a file.
    if (blob?.size !== size) return null;
    files.push(new File([blob], name));
  }
  return files;
}

async function keepManifest(cache, id, files) {
  const manifest = { version: 1, files: Object.fromEntries(files.map((file) => [file.name, file.size])) };
  await cache.put(manifestAddress(id), new Response(JSON.stringify(manifest))).catch(() => {});
}

/** A model that is being downloaded. */
class Download {
  constructor(id, cache, requests) {
    Object.assign(this, { id, cache, requests, isFull: false });
  }

  /** Returns a whole file from the cache as a Blob, or null. Deletes a file that is not whole. */
  async kept(name) {
    const blob = await match(this.cache, address(this.id, name));
    if (!blob || (await isWhole(name, blob))) return blob;
    await this.cache.delete(address(this.id, name));
    return null;
  }

  /** Returns a file as a Blob, from the cache if possible, or null if the hub does not have it. `onBytes` hears how much has arrived. */
  async get(name, onBytes) {
    return (await this.kept(name)) ?? (WEIGHTS.test(name) ? this.weights(name, onBytes) : this.text(name));
  }

  async text(name) {
    const response = await this.requests.ask(this.id, name);
    if (!response) return null;
    let text;
    try {
      text = await new Response(this.requests.counted(response, name)).text();
    } catch (error) {
      throw this.requests.failure(this.id, name, error);
    }
    checkText(`${this.id}/${name}`, name, text, response.headers.get("content-type"));
    await this.put(name, text);
    return new Blob([text]);
  }

  async weights(name, onBytes) {
    // The stream's own error is lost on its way through the cache.
    let broken;
    const open = async () => {
      const response = await this.requests.ask(this.id, name);
      if (!response) return null;
      let seen = 0;
      const counted = this.requests.counted(response, name, (n) => onBytes((seen += n)));
      const reader = counted.pipeThrough(checkedWeights(`${this.id}/${name}`)).getReader();
      const pull = async (controller) => {
        try {
          const { done, value } = await reader.read();
          if (done) controller.close();
          else controller.enqueue(value);
        } catch (error) {
          broken = this.requests.failure(this.id, name, error);
          controller.error(error);
        }
      };
      return new ReadableStream({ pull, cancel: (reason) => reader.cancel(reason) });
    };
    const stream = await open();
    if (!stream) return null;
    const isPut = await this.put(name, stream, () => broken);
    const kept = isPut && (await match(this.cache, address(this.id, name)));
    if (kept) return kept;
    // Without the cache, the file stays in memory. A stream that the cache has begun to read is asked for again.
    try {
      return await new Response(stream.locked ? await open() : stream).blob();
    } catch (error) {
      throw broken ?? this.requests.failure(this.id, name, error);
    }
  }

  /** Puts a file into the cache. Returns whether it is kept: a full cache does not stop the download. An error of the file itself does. */
  async put(name, body, broken = () => undefined) {
    if (!this.cache || this.isFull) return false;
    const url = address(this.id, name);
    try {
      await this.cache.put(url, new Response(body, { headers: { "content-type": "application/octet-stream" } }));
      if (!broken()) return true;
    } catch (error) {
      this.isFull = !broken();
      if (this.isFull) this.requests.tell({ event: "note", text: `The browser's storage is full or closed (${error.name}), so the model's files are not kept. They are downloaded again on the next visit` });
    }
    await this.cache.delete(url).catch(() => {});
    if (broken()) throw broken();
    return false;
  }

  async config() {
    const blob = await this.get("config.json");
    if (!blob) throw `${this.id}: the hub has no such model, or the model has no config.json`;
    return blob;
  }

  /** Returns the names of the files with the weights, and the index of these files if there is one. */
  async weightNames() {
    const index = await this.get(INDEX);
    if (!index) return { index, names: ["model.safetensors"] };
    const map = JSON.parse(await index.text()).weight_map;
    if (!map) throw `${this.id}/${INDEX}: it names no files`;
    return { index, names: [...new Set(Object.values(map))] };
  }

  /** Reads a safetensors file's header. Returns the file's size, and its bytes up to the end of the header. */
  async header(name) {
    const part = async (from, to) => {
      const response = await this.requests.ask(this.id, name, { range: `bytes=${from}-${to - 1}` });
      if (!response) throw noWeights(this.id, name);
      const size = Number(response.headers.get("content-range")?.split("/")[1]);
      if (response.status !== 206 || !size) {
        response.body?.cancel().catch(() => {});
        throw `${this.id}/${name}: what the hub sent is not a part of the file (HTTP status ${response.status}). Perhaps this network asks for a login`;
      }
      try {
        return { size, bytes: new Uint8Array(await response.arrayBuffer()) };
      } catch (error) {
        throw this.requests.failure(this.id, name, error);
      }
    };
    const { size, bytes } = await part(0, 8);
    const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    return { name, size, bytes: (await part(0, Math.min(size, 8 + length))).bytes };
  }
}

/** Reads the parts of a model that a memory plan needs: the config's text and the headers of the weights. */
export async function headersFromHub(id, requests) {
  const cache = await openCache();
  const kept = await keptFiles(cache, id);
  const download = new Download(id, cache, requests);
  if (!kept) {
    const text = await (await download.config()).text();
    const { names } = await download.weightNames();
    return { config: text, headers: await Promise.all(names.map((name) => download.header(name))) };
  }
  const header = async (file) => {
    const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
    return { name: file.name, size: file.size, bytes: new Uint8Array(await file.slice(0, 8 + length).arrayBuffer()) };
  };
  const config = await kept.find((file) => file.name === "config.json").text();
  return { config, headers: await Promise.all(kept.filter((file) => WEIGHTS.test(file.name)).map(header)) };
}

/** Returns all files of a model as File objects. Downloads those that are not kept. Tells its progress: {event: "download", ...}. */
export async function fromHub(id, requests) {
  const cache = await openCache(requests.tell);
  const kept = await keptFiles(cache, id);
  if (kept) return kept;
  const download = new Download(id, cache, requests);
  const files = [new File([await download.config()], "config.json")];
  for (const name of SIDE.slice(1)) {
    const blob = await download.get(name);
    if (blob) files.push(new File([blob], name));
  }
  const { index, names } = await download.weightNames();
  if (index) files.push(new File([index], INDEX));
  const sizes = names.map(async (name) => (await download.kept(name))?.size ?? (await download.header(name)).size);
  const total = (await Promise.all(sizes)).reduce((n, size) => n + size, 0);
  let before = 0;
  for (const name of names) {
    const blob = await download.get(name, (n) => requests.tell({ event: "download", done: before + n, total, name }));
    if (!blob) throw noWeights(id, name);
    before += blob.size;
    files.push(new File([blob], name));
  }
  if (cache && !download.isFull) await keepManifest(cache, id, files);
  return files;
}

/** Lists the kept models: [{id, bytes, isComplete}]. */
export async function listModels() {
  const cache = await openCache();
  const models = new Map();
  for (const request of (await cache?.keys()) ?? []) {
    const [, id, name] = new URL(request.url).pathname.match(KEPT) ?? [];
    if (!id) continue;
    const model = models.get(id) ?? { id, bytes: 0, isComplete: false };
    models.set(id, model);
    if (name) model.bytes += (await match(cache, request))?.size ?? 0;
    else model.isComplete = true;
  }
  return [...models.values()];
}

/** Deletes a kept model. */
export async function deleteModel(id) {
  const cache = await openCache();
  for (const request of (await cache?.keys()) ?? []) {
    if (new URL(request.url).pathname.match(KEPT)?.[1] === id) await cache.delete(request);
  }
}
