// A model's files from the Hugging Face hub. They are kept in the browser's cache, so that a reload downloads nothing; each is a Blob, which
// the browser holds on disk, and of which the engine reads a tensor at a time.

export const WEIGHTS = /\.safetensors$/;
/** Files beside the weights that say what the tokenizer does and where an answer ends. */
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

const address = (id, name) => `https://huggingface.co/${id}/resolve/main/${name}`;

/** A response with the given path, from the cache if it is there; null where the hub has none. */
async function get(id, name, onBytes) {
  const cache = await caches.open(CACHE);
  const url = address(id, name);
  const kept = await cache.match(url);
  if (kept) return kept.blob();
  const response = await fetch(url);
  if (response.status === 404) return null;
  if (response.status === 401 || response.status === 403) throw `${id}: the hub asks for a login: download it, and choose the folder instead`;
  if (!response.ok) throw `${id}/${name}: the hub answers ${response.status}`;
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
  if (!blob) throw `${id}: the hub has no such model, or it has no config.json`;
  return blob;
}

/** Names of the files that hold the weights. */
async function weights(id) {
  const index = await get(id, INDEX);
  return index ? [...new Set(Object.values(JSON.parse(await index.text()).weight_map))] : ["model.safetensors"];
}

/** A safetensors file's size, and its beginning up to the end of its header. */
async function header(id, name) {
  const part = async (from, to) => {
    const response = await fetch(address(id, name), { headers: { range: `bytes=${from}-${to - 1}` } });
    if (response.status === 404) throw `${id}: the hub has no ${name}: models in safetensors only`;
    if (response.status !== 206) throw `${id}/${name}: the hub answers ${response.status}`;
    const size = Number(response.headers.get("content-range").split("/")[1]);
    return { size, bytes: new Uint8Array(await response.arrayBuffer()) };
  };
  const { size, bytes } = await part(0, 8);
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  return { name, size, bytes: (await part(0, Math.min(size, 8 + length))).bytes };
}

/** The config's text and the weights' headers: what a plan needs. */
export async function headersFromHub(id) {
  checkId(id);
  const text = await (await config(id)).text();
  return { config: text, headers: await Promise.all((await weights(id)).map((name) => header(id, name))) };
}

/** All files of a model, as File objects. */
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
    if (!blob) throw `${id}: the hub has no ${name}: models in safetensors only`;
    files.push(new File([blob], name));
  }
  return files;
}
