// Keeps what the user types, so that a reload does not lose it: settings, instructions, and how responses are sampled.

import { put, showLoss } from "./form.js";
import { saving } from "./session.js";
import * as store from "./store.js";
import { $ } from "./ui.js";

const SAMPLING = ["prompts", "temperature", "new-tokens"];

/** Own instructions, and other fields by name. Fields that the user has not changed are not in it. */
let typed = {};

/** Returns the user's own instructions, if there are any. */
export const ownPrompts = () => (typed.prompts?.trim() ? typed.prompts : undefined);

const keyOf = (field) => (field.form === $("settings") || field.type === "radio" ? field.name : field.id);

async function save() {
  try {
    await store.save(["session", "form", typed]);
  } catch (error) {
    saving.problem = error?.message || String(error);
    document.dispatchEvent(new CustomEvent("saved"));
  }
}

/** Notes the settings that the page itself has changed. */
export function noteSettings() {
  for (const field of $("settings").elements) if (field.name) typed[field.name] = field.value;
  return save();
}

/** Shows what the user typed on an earlier visit, and saves what the user types from now on. */
export async function setUp() {
  try {
    const saved = await store.load("session", "form");
    if (saved && typeof saved === "object") typed = saved;
  } catch (error) {
    saving.problem = error?.message || String(error);
  }
  const fields = [...$("settings").elements, ...SAMPLING.map($)];
  for (const field of fields) if (field && keyOf(field) in typed) put(field, typed[keyOf(field)]);
  showLoss();
  for (const radio of document.querySelectorAll("[name=pairing]")) if (radio.value === typed.pairing) radio.checked = true;
  document.addEventListener("input", ({ target }) => {
    if (!fields.includes(target) && target.name !== "pairing") return;
    typed[keyOf(target)] = target.value;
    save();
  });
}
