// The engine's methods as promises; it lives in a worker. A worker that ended (a panic, a lost device) is replaced by `restart`.

/** Told of {event, ...} messages. */
export const listeners = new Set();

let worker, waiting, number;

function start() {
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  waiting = new Map();
  number = 0;
  worker.onmessage = ({ data }) => {
    if (data.event) return listeners.forEach((tell) => tell(data));
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.error === undefined) resolve(data.result);
    else reject(new Error(data.error));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    const error = new Error(`the engine ended: ${event.message || "out of memory?"}`);
    waiting.forEach(({ reject }) => reject(error));
    waiting.clear();
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
