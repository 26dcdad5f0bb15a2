// Downloads a model's files from the Hugging Face hub. The browser's cache stores them, so a reload downloads nothing. Each file is a Blob on
// disk, from which the engine reads one tensor at a time.

export const WEIGHTS = /\.safetensors$/;
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

const noWeights = (id, name) => `${id}: the hub has no ${name} for this model, and only safetensors models are supported`;

const address = (id, name) => `https://huggingface.co/${id}/resolve/main/${name}`;

/** Returns a file as a Blob, from the cache if possible, or null if the hub does not have it. */
async function get(id, name, onBytes) {
  const cache = await caches.open(CACHE);
  const url = address(id, name);
  const kept = await cache.match(url);
  if (kept) return kept.blob();
  const response = await fetch(url);
  if (response.status === 404) return null;
  if (response.status === 401 || response.status === 403) throw `${id}: the hub requires a login for this model. Download it yourself, then choose its folder`;
  if (!response.ok) throw `${id}/${name}: the hub returned HTTP status ${response.status}`;
  const counted = new TransformStream({
    transform(chunk, controller) {
      onBytes?.(chunk.byteLength);
      controller.enqueue(chunk);
    },
  });
  await cache.put(url, new Response(response.body.pipeThrough(counted), { headers: { "content-type": "application/octet-stream" } }));
  return (await cache.match(url)).blob();
}

function checkId(id) {
  if (!/^[\w.-]+\/[\w.-]+$/.test(id)) throw `${id}: expected org/name, as on huggingface.co`;
}

async function config(id) {
  const blob = await get(id, "config.json");
  if (!blob) throw `${id}: the hub has no such model, or the model has no config.json`;
  return blob;
}

/** Returns the names of the files with the weights. */
async function weights(id) {
  const index = await get(id, INDEX);
  return index ? [...new Set(Object.values(JSON.parse(await index.text()).weight_map))] : ["model.safetensors"];
}

/** Reads a safetensors file's header. Returns the file's size, and its bytes up to the end of the header. */
async function header(id, name) {
  const part = async (from, to) => {
    const response = await fetch(address(id, name), { headers: { range: `bytes=${from}-${to - 1}` } });
    if (response.status === 404) throw noWeights(id, name);
    if (response.status !== 206) throw `${id}/${name}: the hub returned HTTP status ${response.status}`;
    const size = Number(response.headers.get("content-range").split("/")[1]);
    return { size, bytes: new Uint8Array(await response.arrayBuffer()) };
  };
  const { size, bytes } = await part(0, 8);
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  return { name, size, bytes: (await part(0, Math.min(size, 8 + length))).bytes };
}

/** Reads the parts of a model that a memory plan needs: the config's text and the headers of the weights. */
export async function headersFromHub(id) {
  checkId(id);
  const text = await (await config(id)).text();
  return { config: text, headers: await Promise.all((await weights(id)).map((name) => header(id, name))) };
}

/** Downloads all files of a model. Returns File objects. */
export async function fromHub(id, onProgress) {
  checkId(id);
  const files = [new File([await config(id)], "config.json")];
  for (const name of SIDE.slice(1)) {
    const blob = await get(id, name);
    if (blob) files.push(new File([blob], name));
  }
  const names = await weights(id);
  const total = (await Promise.all(names.map((name) => header(id, name)))).reduce((n, h) => n + h.size, 0);
  let done = 0;
  for (const name of names) {
    const blob = await get(id, name, (n) => onProgress((done += n), total, name));
    if (!blob) throw noWeights(id, name);
    files.push(new File([blob], name));
  }
  return files;
}
