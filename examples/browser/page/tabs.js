// One tab at a time has the session, because two would overwrite each other's steps and preferences.

const NAME = "jointwise-session";
/** Time for a tab that is being reloaded to let go, in ms. */
const RELOAD = 1000;

/** Asks for the lock, which is held until the tab closes. Resolves when this tab has it. `onTaken` runs when another tab takes it. */
function request(options, onTaken) {
  return new Promise((resolve) => {
    const hold = () => new Promise(() => resolve());
    navigator.locks.request(NAME, options, hold).catch((error) => !options.signal?.aborted && onTaken(error));
  });
}

/** Waits until this tab alone has the session. `onBusy(takeOver)` runs while another tab has it, `onTaken` when another tab takes it. */
export async function claimSession(onBusy, onTaken) {
  if (!navigator.locks) return;
  const waiting = new AbortController();
  const free = request({ signal: waiting.signal }, onTaken);
  const timer = setTimeout(() => onBusy(takeOver), RELOAD);
  let taken;
  const byUser = new Promise((resolve) => (taken = resolve));
  function takeOver() {
    waiting.abort();
    request({ steal: true }, onTaken).then(taken);
  }
  await Promise.race([free, byUser]);
  clearTimeout(timer);
}
