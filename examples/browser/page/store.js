// Stores the session in IndexedDB, one value per key. The page continues from it after a reload or a lost device.

const NAME = "jointwise";

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("session");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function within(mode, act) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction("session", mode);
      const request = act(transaction.objectStore("session"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

export const load = (key) => within("readonly", (s) => s.get(key));
export const save = (key, value) => within("readwrite", (s) => s.put(value, key));
export const clear = () => within("readwrite", (s) => s.clear());
