// Shows WGSL with its comments, keywords and numbers marked.

import { make } from "./ui.js";

const TOKENS = /(\/\/.*)|(@\w+)|\b(alias|break|case|const|continue|default|else|enable|fn|for|if|let|loop|override|return|storage|struct|switch|uniform|var|while|workgroup)\b|\b(0x[\da-f]+u?|\d[\d.]*(?:e[+-]?\d+)?[uif]?)\b/gi;
const CLASSES = ["comment", "attribute", "keyword", "number"];

/** Returns the text as an element. */
export function wgsl(text) {
  const code = make("code", {});
  let at = 0;
  for (const match of text.matchAll(TOKENS)) {
    const kind = CLASSES[match.slice(1).findIndex((group) => group !== undefined)];
    code.append(text.slice(at, match.index), make("span", { class: kind }, match[0]));
    at = match.index + match[0].length;
  }
  code.append(text.slice(at));
  // A scrolled text must be reachable by keyboard.
  return make("pre", { class: "wgsl", tabindex: "0" }, code);
}
