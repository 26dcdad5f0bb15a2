// Asks the Hugging Face hub for files. Errors say what the hub answered and what to do.

/** Pages of the hub whose addresses look like those of a model. */
const NOT_MODELS = ["datasets", "spaces", "docs", "blog", "papers", "collections", "organizations", "api"];
/** Time without an answer after which the page tells the user, in ms. */
const PATIENCE = 10_000;

export const address = (id, name) => `https://huggingface.co/${id}/resolve/main/${name}`;

/** Returns the id of a model, org/name, from an id or from the address of one of the model's pages. */
export function modelId(text) {
  const typed = text.trim().replace(/^["'<]+|["'>]+$/g, "");
  const path = typed.replace(/^(https?:\/\/)?(www\.)?(huggingface\.co|hf\.co)\//i, "").replace(/^hf:\/\//, "").replace(/^models\//, "");
  const isAddress = path !== typed;
  const [org, name, ...more] = path.split(/[?#]/)[0].split("/");
  const isName = (part) => /^[\w.-]+$/.test(part ?? "");
  if (isAddress && NOT_MODELS.includes(org)) throw new Error(`${typed} is not the address of a model. Open the model's page on huggingface.co and copy its address`);
  const rest = isAddress ? [] : more.filter(Boolean);
  if (!isName(org) || !isName(name) || rest.length) throw new Error(`${typed}: expected a name such as HuggingFaceTB/SmolLM2-135M, or the address of a model's page on huggingface.co`);
  return `${org}/${name}`;
}

/** Error after the user has cancelled. */
export const CANCELLED = "Cancelled";

/** A series of requests that the user can cancel. `tell` hears when the hub does not answer: {event: "stalled", name, seconds}. */
export class Requests {
  constructor(tell) {
    this.tell = tell;
    this.controller = new AbortController();
    this.signal = this.controller.signal;
    this.heard("");
    this.timer = setInterval(() => {
      const ms = performance.now() - this.last;
      if (ms >= PATIENCE) tell({ event: "stalled", name: this.name, seconds: Math.round(ms / 1000) });
    }, 1000);
  }

  /** Notes that something has arrived, or that a request begins. */
  heard(name) {
    this.name = name;
    this.last = performance.now();
  }

  cancel() {
    this.controller.abort(CANCELLED);
  }

  end() {
    clearInterval(this.timer);
  }

  /** Returns what went wrong in words: a failed request, or the user's wish. */
  failure(id, name, error) {
    if (this.signal.aborted) return CANCELLED;
    if (typeof error === "string") return error;
    return `${id}/${name}: the connection to the hub failed (${error.message}). Check the connection and try again, or choose the model's folder on this machine`;
  }

  /** Asks for a file. Returns the response, or null if the hub says that the model has no such file. */
  async ask(id, name, headers = {}) {
    this.heard(name);
    let response;
    try {
      response = await fetch(address(id, name), { headers, signal: this.signal });
    } catch (error) {
      throw this.failure(id, name, error);
    }
    this.heard(name);
    if (response.ok) return response;
    response.body?.cancel().catch(() => {});
    return refusal(id, name, response.status, response.headers.get("x-error-code"));
  }

  /** Passes a response's body through, and counts its bytes. */
  counted(response, name, onBytes) {
    const count = (chunk, controller) => {
      this.heard(name);
      onBytes?.(chunk.byteLength);
      controller.enqueue(chunk);
    };
    return response.body.pipeThrough(new TransformStream({ transform: count }));
  }
}

/** Returns null if a file does not exist. Any other refusal is an error. */
function refusal(id, name, status, code) {
  const login = "Log in to huggingface.co, download the model there, then choose its folder";
  const unknown = `${id}: the hub has no such model, or it is private. Check the name`;
  if (code === "EntryNotFound") return null;
  if (code === "RepoNotFound") throw unknown;
  if (code === "GatedRepo") throw `${id}: the hub gives this model only to users who have accepted its terms. ${login}`;
  if (code === "DisabledRepo") throw `${id}: the hub has disabled this model`;
  if (code === "RevisionNotFound") throw `${id}: the hub has no branch "main" of this model`;
  if (status === 404) return null;
  if (status === 401 || status === 403) throw `${unknown}. If the name is right: ${login}`;
  if (status === 429) throw `${id}: the hub refuses more requests from this address for now. Try again in a few minutes`;
  throw `${id}/${name}: the hub answered with HTTP status ${status}. Try again later`;
}
