// Draws instructions for the pairs in section 2, in random order. Each instruction is drawn once before any is drawn again.

/** Instructions that were not drawn yet in this round. */
let waiting = [];

const random = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Returns the elements in random order (Fisher and Yates). */
function shuffled(list) {
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const j = random() % (i + 1);
    [all[i], all[j]] = [all[j], all[i]];
  }
  return all;
}

/** Draws the next instruction. It differs from `other`, if any instruction does. */
function take(instructions, other) {
  const isNext = (one) => one !== other;
  // The user may have edited the instructions since the last draw.
  waiting = waiting.filter((one) => instructions.has(one));
  if (!waiting.some(isNext)) waiting.push(...shuffled(instructions));
  const at = Math.max(0, waiting.findIndex(isNext));
  return waiting.splice(at, 1)[0];
}

/** Draws two instructions: different ones if `isJoint`, or else one twice. */
export function drawPair(instructions, isJoint) {
  const all = new Set(instructions);
  const first = take(all);
  return [first, isJoint ? take(all, first) : first];
}

/** Returns a seed for sampling. A new visit gets other seeds, so that it shows other responses. */
export const seed = random;
