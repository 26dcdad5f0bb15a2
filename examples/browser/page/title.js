// Shows the progress of training in the tab's title, because a hidden tab goes on training. Some browsers stop a hidden tab after a while:
// the title says so, and training goes on when the tab is shown again.

/** Time without a step after which a hidden tab counts as stopped, in ms. A slow step may take longer. */
const PATIENCE = 10_000;

/** What the title tells: "running", "paused", "done" or "idle". */
let state = "idle";
let [step, total, last, longest] = [0, 0, 0, 0];

function update() {
  const waits = state === "running" && document.hidden && performance.now() - last > Math.max(PATIENCE, 3 * longest);
  const words = {
    running: waits ? `Waiting for you to show this tab, step ${step} of ${total}` : `Step ${step} of ${total}`,
    paused: `Paused at step ${step} of ${total}`,
    done: `Done: ${step} steps`,
    idle: "",
  }[state];
  document.title = words ? `${words} – jointwise` : "jointwise";
}

/** Shows the state of a run. */
export function showTitle(nextState, nextStep, nextTotal) {
  const now = performance.now();
  if (nextState === "running" && state === "running" && nextStep > step) longest = Math.max(longest, now - last);
  if (nextState !== state) longest = 0;
  if (nextState !== state || nextStep !== step) last = now;
  [state, step, total] = [nextState, nextStep, nextTotal];
  update();
}

setInterval(update, 1000);
document.addEventListener("visibilitychange", update);
