// A model's files from the Hugging Face hub. They are kept in the browser's cache, so that a reload downloads nothing; each is a Blob, which
// the browser holds on disk, and of which the engine reads a tensor at a time.

export const WEIGHTS = /\.safetensors$/;
const SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
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

/** Sizes of the weights, before any of them is downloaded. */
async function sizes(id, names) {
  const one = async (name) => {
    const response = await fetch(address(id, name), { method: "HEAD" });
    return Number(response.headers.get("content-length") ?? 0);
  };
  return Promise.all(names.map(one));
}

/** All files of a model, as File objects. */
export async function fromHub(id, onProgress) {
  if (!/^[\w.-]+\/[\w.-]+$/.test(id)) throw `${id}: expected org/name, as on huggingface.co`;
  const files = [];
  for (const name of SMALL) {
    const blob = await get(id, name);
    if (blob) files.push(new File([blob], name));
    else if (name === "config.json") throw `${id}: the hub has no such model, or it has no config.json`;
  }
  const index = await get(id, INDEX);
  const names = index ? [...new Set(Object.values(JSON.parse(await index.text()).weight_map))] : ["model.safetensors"];
  const total = (await sizes(id, names)).reduce((a, b) => a + b, 0);
  let done = 0;
  for (const name of names) {
    const blob = await get(id, name, (n) => onProgress((done += n), total, name));
    if (!blob) throw `${id}: the hub has no ${name}: models in safetensors only`;
    files.push(new File([blob], name));
  }
  return files;
}
