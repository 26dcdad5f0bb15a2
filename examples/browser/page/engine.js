// The engine's methods as promises; it lives in a worker. One that can do nothing more (a panic, a lost device) is told of by an event, "lost",
// and replaced by `restart`.

/** Told of {event, ...} messages. */
export const listeners = new Set();

let worker, waiting, number;

/** Fails what waits, and tells the page once. */
function lost(error) {
  error.lost = true;
  waiting.forEach(({ reject }) => reject(error));
  waiting.clear();
  document.dispatchEvent(new CustomEvent("lost", { detail: error }));
}

function start() {
  // A worker that is made of a blob inherits the page's Content-Security-Policy; one from a file would have none on a static host.
  const source = new Blob([`import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`], { type: "text/javascript" });
  const address = URL.createObjectURL(source);
  worker = new Worker(address, { type: "module" });
  waiting = new Map();
  number = 0;
  worker.onmessage = ({ data }) => {
    if (data.event) return listeners.forEach((tell) => tell(data));
    const request = waiting.get(data.id);
    // Already failed with the others.
    if (!request) return;
    if (data.lost) return lost(new Error(data.error));
    waiting.delete(data.id);
    if (data.error === undefined) request.resolve(data.result);
    else request.reject(new Error(data.error));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    lost(new Error(`the engine ended: ${event.message || "out of memory?"}`));
  };
}

function call(method, ...args) {
  if (!worker) start();
  return new Promise((resolve, reject) => {
    waiting.set(++number, { resolve, reject });
    worker.postMessage({ id: number, method, args });
  });
}

/** `engine.step()` is the worker's method `step`. */
export const engine = new Proxy({}, { get: (_, method) => (...args) => call(method, ...args) });

/** A fresh worker, and with it a fresh device. */
export function restart() {
  worker?.terminate();
  start();
}
