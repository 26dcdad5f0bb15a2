// The settings form of section 3: reads, fills and checks it.

import { engine } from "./engine.js";
import { $, fail, make } from "./ui.js";
import { labelOf } from "./words.js";

const elements = () => $("settings").elements;

/** Losses of the engine by name: {name, formula, source, is_smoothed}. */
const losses = new Map();
/** Meaning of the letters in their formulas. */
let legend = "";

/** Fills the list of losses, which the engine has. */
export async function loadLosses() {
  try {
    const found = await engine.losses();
    found.losses.forEach((loss) => losses.set(loss.name, loss));
    elements().loss.replaceChildren(...found.losses.map(({ name }) => make("option", {}, name)));
    // The rest of the legend names flags of the command-line program.
    legend = found.legend.split(", β")[0];
  } catch (error) {
    fail(error);
  }
  $("settings").addEventListener("change", showLoss);
  showLoss();
}

/** Shows the formula of the chosen loss, and the field of its ε, if it has one. */
export function showLoss() {
  const loss = losses.get(elements().loss.value);
  // Settings that the form does not have are named after the program's flags.
  const formula = loss?.formula.replace(/ = --[a-z-]+/g, " as by default").replace(/, --[a-z-]+/g, "") ?? "";
  const source = loss ? make("span", {}, loss.source.split("; TRL")[0]) : "";
  $("loss-formula").replaceChildren(make("code", {}, formula), " ", source, loss ? make("span", {}, `Here ${legend}.`) : "");
  $("smoothing").hidden = !loss?.is_smoothed;
}

/** Returns the form's settings in the engine's format. A field that is disabled during a run counts. An invalid number counts as its default:
 * `checkForm` reports it before a run. */
export function settings() {
  const text = (name) => elements()[name].value;
  const number = (name) => Number(explain(elements()[name]) ? elements()[name].defaultValue : text(name));
  return {
    objective: text("objective"),
    loss: text("loss"),
    beta: number("beta"),
    label_smoothing: $("smoothing").hidden ? 0 : number("label_smoothing"),
    learning_rate: number("learning_rate"),
    max_steps: number("max_steps"),
    batch_size: number("batch_size"),
    max_length: number("max_length"),
    recompute: text("recompute"),
    base_dtype: text("base_dtype"),
    template: text("template"),
    lora: { rank: number("rank"), alpha: number("alpha"), targets: ["all-linear"] },
  };
}

/** Writes a value into a field, unless the field cannot have it. */
export function put(field, value) {
  const isKnown = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === String(value));
  const isFit = field.type !== "number" || Number.isFinite(Number(value));
  if (isKnown && isFit) field.value = value;
}

/** Writes settings into the form. Fields without a given setting do not change. */
export function fill(s) {
  const values = { ...s, rank: s.lora?.rank, alpha: s.lora?.alpha };
  for (const field of elements()) if (values[field.name] !== undefined) put(field, values[field.name]);
  showLoss();
}

/** Returns what is wrong with a number field, or "". */
function explain(field) {
  if (field.type !== "number") return "";
  const value = field.valueAsNumber;
  const [least, most] = [Number(field.min), field.max === "" ? Infinity : Number(field.max)];
  const isWhole = field.step !== "any";
  // A fraction may be small, but not 0, where the setting is a factor.
  const mayBeLeast = isWhole || "zero" in field.dataset;
  const isFine = (mayBeLeast ? value >= least : value > least) && value <= most && !(isWhole && !Number.isInteger(value));
  if (isFine) return "";
  if (!isWhole && mayBeLeast) return `${labelOf(field)}: enter a number from ${least} to ${most}`;
  const range = isWhole ? `a whole number from ${least} to ${most.toLocaleString("en")}` : `a number above ${least}`;
  return `${labelOf(field)}: enter ${range}`;
}

/** Returns the number in a field outside of the form. Throws an error if it is out of range. */
export function amount(id) {
  const field = $(id);
  const value = field.valueAsNumber;
  const isWhole = field.step === "";
  if (value >= Number(field.min) && value <= Number(field.max) && !(isWhole && !Number.isInteger(value))) return value;
  throw new Error(`${labelOf(field)}: enter a ${isWhole ? "whole number" : "number"} from ${field.min} to ${field.max}`);
}

/** Throws an error for the first field that is invalid, and moves the focus there. */
export function checkForm() {
  for (const field of elements()) {
    const wrong = explain(field);
    if (!wrong) continue;
    const folded = field.closest("details");
    if (folded) folded.open = true;
    field.setAttribute("aria-invalid", "true");
    field.addEventListener("input", () => field.removeAttribute("aria-invalid"), { once: true });
    field.focus();
    throw new Error(wrong);
  }
}
