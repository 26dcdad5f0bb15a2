// Stores values in IndexedDB. "session" has what the whole page shares, "runs" has one training run per model.

const NAME = "jointwise";
const STORES = ["session", "runs"];

function open() {
  return new Promise((resolve, reject) => {
    // Version 1 had the store "session" alone.
    const request = indexedDB.open(NAME, 2);
    request.onupgradeneeded = () => {
      for (const name of STORES) if (!request.result.objectStoreNames.contains(name)) request.result.createObjectStore(name);
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Runs requests on the stores in one transaction. Returns the result of the last request. */
async function within(mode, act) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORES, mode);
      const request = act((name) => transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

export const load = (name, key) => within("readonly", (store) => store(name).get(key));

/** Saves entries together, or none of them. An entry is [store, key, value]. */
export const save = (...entries) => within("readwrite", (store) => entries.map(([name, key, value]) => store(name).put(value, key)).at(-1));

export const remove = (name, key) => within("readwrite", (store) => store(name).delete(key));

/** Removes all values. */
export const clear = () => within("readwrite", (store) => STORES.map((name) => store(name).clear()).at(-1));
