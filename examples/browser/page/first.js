// The first minute: one button lets the demo's grader pick, trains, and compares. It presses the same buttons as a user would.

import { generate, remove } from "./preferences.js";
import { session } from "./session.js";
import { $ } from "./ui.js";

/** Number of answers that the grader picks. */
const PICKS = 256;
/** Settings that show a change after less than a minute. Fields that the user has changed stay as they are. */
const SETTINGS = { learning_rate: 0.003, max_steps: 40 };

/** Rows of the grader. */
let rows = [];
/** The part that runs now: a number of an item of the list of steps, or null. */
let at = null;

/** Marks the parts of the list before `n` as done and part `n` as the current one. */
function show(n) {
  at = n;
  $("try-steps").hidden = n === null;
  [...$("try-steps").children].forEach((item, i) => {
    item.classList.toggle("done", i < n);
    if (i === n) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  });
}

/** Brings a section into sight, for keyboards and screen readers, too. */
function goTo(section) {
  $(section).querySelector("h2").focus({ preventScroll: true });
  $(section).scrollIntoView();
}

/** The button is for a visitor without a run. It needs the demo model, because only this model has a grader. */
function update() {
  const isFirst = session.model?.kind === "demo" && !session.kept;
  $("try").disabled = !isFirst || at !== null;
  $("try-row").hidden = !isFirst && at === null && session.model !== null;
}

/** Replaces values of the form by others, where the user has not changed them. */
function replace(before, after) {
  const { elements } = $("settings");
  for (const name of Object.keys(SETTINGS)) if (elements[name].value === String(before[name])) elements[name].value = after[name];
}

const defaults = () => Object.fromEntries(Object.keys(SETTINGS).map((name) => [name, $("settings").elements[name].defaultValue]));

async function begin() {
  show(0);
  goTo("training");
  update();
  const picked = await generate(PICKS, true);
  if (!picked) return;
  rows = picked;
  replace(defaults(), SETTINGS);
  // A run that cannot be used must be dealt with first.
  if ($("start").disabled) return end();
  show(1);
  $("start").click();
}

function end() {
  show(null);
  update();
}

export function setUp() {
  $("try").onclick = begin;
  document.addEventListener("model", () => {
    $("other-model").open = false;
    end();
  });
  document.addEventListener("trained", () => at !== null && show(2));
  document.addEventListener("compared", () => {
    if (at === null) return;
    end();
    $("next").hidden = false;
    goTo("change");
  });
  $("own").onclick = async () => {
    $("next").hidden = true;
    goTo("preferences");
    replace(SETTINGS, defaults());
    await remove(rows);
  };
  document.addEventListener("failed", () => {
    if (!session.model) $("other-model").open = true;
    end();
  });
}
