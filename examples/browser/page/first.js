// The first minute: one button lets the demo's grader pick, trains, and compares. It presses the same buttons as a user would.

import { generate } from "./preferences.js";
import { session } from "./session.js";
import { $ } from "./ui.js";

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

async function begin() {
  show(0);
  goTo("training");
  update();
  if (!(await generate())) return;
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
    goTo("change");
  });
  document.addEventListener("failed", () => {
    if (!session.model) $("other-model").open = true;
    end();
  });
}
