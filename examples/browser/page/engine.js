// Calls the engine, which runs in a worker, and returns promises. After a panic or a lost device the worker is useless: the event "lost" then
// tells the page, and `restart` starts a new worker.

/** Functions that get the worker's {event, ...} messages. */
export const listeners = new Set();

let worker, waiting, number;

/** Rejects all waiting requests and tells the page once. */
function lost(error) {
  error.lost = true;
  waiting.forEach(({ reject }) => reject(error));
  waiting.clear();
  document.dispatchEvent(new CustomEvent("lost", { detail: error }));
}

function start() {
  // A worker made from a blob inherits the page's Content-Security-Policy. A worker made from a file on a static host would have none.
  const source = new Blob([`import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`], { type: "text/javascript" });
  const address = URL.createObjectURL(source);
  worker = new Worker(address, { type: "module" });
  waiting = new Map();
  number = 0;
  worker.onmessage = ({ data }) => {
    if (data.event) return listeners.forEach((tell) => tell(data));
    const request = waiting.get(data.id);
    // `lost` has already rejected this request.
    if (!request) return;
    if (data.lost) return lost(new Error(data.error));
    waiting.delete(data.id);
    if (data.error === undefined) request.resolve(data.result);
    else request.reject(new Error(data.error));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    lost(new Error(`the engine stopped: ${event.message || "it may have run out of memory"}`));
  };
}

function call(method, ...args) {
  if (!worker) start();
  return new Promise((resolve, reject) => {
    waiting.set(++number, { resolve, reject });
    worker.postMessage({ id: number, method, args });
  });
}

/** Proxy for the worker's methods: `engine.step()` calls the worker's `step`. */
export const engine = new Proxy({}, { get: (_, method) => (...args) => call(method, ...args) });

/** Cancels the requests to the hub. */
export const cancel = () => worker?.postMessage({ cancel: true });

/** Ends the worker, which frees the device. */
export function end() {
  worker?.terminate();
}

/** Starts a new worker, which opens a new device. */
export function restart() {
  worker?.terminate();
  start();
}
