// What every part of the page uses: elements, messages, progress, downloads.

export const $ = (id) => document.getElementById(id);

/** An element with text or children; text is never parsed. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    // The page's Content-Security-Policy forbids the attribute.
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function status(text) {
  $("status").textContent = text;
}

export function fail(error) {
  $("error").textContent = error?.message ?? String(error);
  $("error").hidden = false;
}

/** A share of 1; null: under way, for how long nobody knows; undefined: over. */
export function progress(share) {
  $("progress").hidden = share === undefined;
  $("progress").classList.toggle("unknown", share === null);
  $("progress").firstElementChild.style.width = share ? `${100 * share}%` : "";
}

/** Runs what was asked for: an error is told on the page instead of the console, and there is progress meanwhile. */
export async function act(what, run) {
  if (what) status(what);
  progress(null);
  try {
    return await run();
  } catch (error) {
    fail(error);
    return undefined;
  } finally {
    progress(undefined);
    if (what) status("");
  }
}

export function download(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const mib = (bytes) => `${(bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: bytes < 2 ** 24 ? 1 : 0 })} MiB`;
