// Checks that a model's files are what their names say, before they are kept. A login page of a network may come in place of a file, and a
// download may end early.

export const WEIGHTS = /\.safetensors$/;
/** Longest header of a safetensors file, in bytes. */
const LONGEST = 100_000_000;

const headerLength = (bytes) => Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));

/** Returns the size of a safetensors file from its first bytes, or null if they are too few. */
export function sizeByHeader(bytes) {
  if (bytes.length < 8) return null;
  const length = headerLength(bytes);
  if (length > LONGEST) throw "it does not begin with a header";
  if (bytes.length < 8 + length) return null;
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)));
  } catch {
    throw "it does not begin with a header";
  }
  const ends = Object.entries(header).filter(([name]) => name !== "__metadata__").map(([, tensor]) => tensor?.data_offsets?.[1]);
  if (ends.some((end) => !Number.isInteger(end))) throw "its header is damaged";
  return 8 + length + Math.max(0, ...ends);
}

function join(parts, length) {
  const all = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Returns a stream that passes a safetensors file through, and fails if the file does not have the size that its header says. */
export function checkedWeights(place) {
  let [parts, seen, size] = [[], 0, null];
  /** Number of bytes that the next look at the header needs. */
  let needed = 8;
  const fail = (reason) => {
    throw `${place}: what arrived is not the whole file (${reason}). Try again`;
  };
  const readHeader = () => {
    const first = join(parts, seen);
    try {
      size = sizeByHeader(first);
    } catch (reason) {
      fail(reason);
    }
    if (size === null) needed = 8 + headerLength(first);
    else parts = [];
  };
  return new TransformStream({
    transform(chunk, controller) {
      seen += chunk.byteLength;
      if (size === null) parts.push(chunk);
      if (size === null && seen >= needed) readHeader();
      if (size !== null && seen > size) fail(`it has more than ${size} bytes`);
      controller.enqueue(chunk);
    },
    flush() {
      if (size === null) fail(`it ends after ${seen} bytes`);
      if (seen !== size) fail(`it ends after ${seen} of ${size} bytes`);
    },
  });
}

/** Checks a small file's text by its name. `type` is the content type of the answer. */
export function checkText(place, name, text, type) {
  const isPage = /text\/html/.test(type ?? "") || /^\s*<(!doctype|html)/i.test(text);
  if (isPage) throw `${place}: a web page came in place of the file. Perhaps this network asks for a login: open any web page to see it, then try again`;
  if (!name.endsWith(".json")) return;
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw `${place}: what arrived is not the whole file (${error.message}). Try again`;
  }
  if (value === null || typeof value !== "object") throw `${place}: what arrived is not a configuration. Try again`;
}

/** Returns whether a kept file is whole. */
export async function isWhole(name, blob) {
  try {
    if (!WEIGHTS.test(name)) {
      checkText("", name, await blob.text());
      return true;
    }
    const bytes = async (n) => new Uint8Array(await blob.slice(0, n).arrayBuffer());
    const start = await bytes(8);
    if (start.length < 8) return false;
    const length = headerLength(start);
    return length <= LONGEST && sizeByHeader(await bytes(8 + length)) === blob.size;
  } catch {
    return false;
  }
}
