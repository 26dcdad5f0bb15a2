// Helpers for every part of the page: elements, focus, messages, progress, downloads.

import { plain } from "./words.js";

export const $ = (id) => document.getElementById(id);

/** Creates an element with text or children. Text is never parsed as HTML. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    // The page's Content-Security-Policy forbids the `style` attribute.
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Runs a change that may disable the element with the focus. If it does, the focus moves to the first of the others that is enabled. */
export function keepFocus(change, ...others) {
  const focused = document.activeElement;
  change();
  if (focused?.disabled) others.find((one) => !one.disabled)?.focus();
}

export function status(text) {
  $("status").textContent = text;
}

/** Shows an error, in the page's words. Tells the page with an event, "failed". */
export function fail(error) {
  $("error").textContent = plain(error?.message ?? String(error));
  $("error").hidden = false;
  document.dispatchEvent(new CustomEvent("failed"));
}

/** Shows progress: a share from 0 to 1, null if the duration is unknown, or undefined when the work is finished. */
export function progress(share) {
  $("progress").hidden = share === undefined;
  $("progress").classList.toggle("unknown", share === null);
  $("progress").firstElementChild.style.width = share ? `${100 * share}%` : "";
}

/** Runs a user's action and shows progress meanwhile. An error is shown on the page, not in the console. */
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
