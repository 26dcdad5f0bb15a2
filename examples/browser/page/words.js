// Puts the engine's errors and notes into the page's words. The engine names flags of the command-line program, and serde's errors.

/** Names of the settings form's fields whose flag has another name. */
const FIELDS = { "lora-r": "rank", "lora-alpha": "alpha", "chat-template": "template" };
/** Words for flags that have no field in the settings form. */
const OTHERS = { temperature: "Temperature", "max-new-tokens": "Max new tokens", prompt: "Instruction", model: "Model", data: "Preferences", resume: "Continue" };

/** Phrases of the engine, and plain ones. Each is replaced wherever it occurs. */
const PHRASES = [
  [/^settings: .*/s, "The page and its engine do not understand each other. Reload the page. If that does not help, delete the saved session in section 5"],
  [/take fewer rows with more --gradient-accumulation-steps, or/g, "take fewer pairs per step, or"],
  [/ \.\.=? /g, " to "],
  [/,? at line (\d+) column (\d+)/g, ", at line $1, character $2"],
  [/, column (\d+)/g, ", at character $1"],
  [/EOF while parsing (?:an? )?(\w+)/g, "the text ends inside of a $1"],
  [/a object/g, "an object"],
  [/\bkey must be a string/g, "a name must be in double quotes"],
  [/\bexpected value/g, "a value is missing or misspelt"],
  [/\bexpected ident/g, "a word is misspelt (true, false and null are known)"],
  [/\btrailing characters/g, "there is more text after the end"],
  [/\btrailing comma/g, "there is a comma too many"],
  [/control character \(.*?\) found while parsing a string/g, "a text contains a line break or a tab (write \\n or \\t)"],
  [/invalid type: (.*?), expected /g, "found $1, expected "],
];

/** Returns the label of a field of a form, without its explanation. */
export const labelOf = (field) => field.labels[0].firstChild.textContent.trim();

/** Returns the page's name of a flag. */
function name(flag) {
  const field = document.forms.settings?.elements[FIELDS[flag] ?? flag.replaceAll("-", "_")];
  if (field) return labelOf(field);
  return OTHERS[flag] ?? flag.replaceAll("-", " ");
}

/** Returns an error's or a note's text without flags and serde's phrases. */
export function plain(text) {
  const reworded = PHRASES.reduce((soFar, [from, to]) => soFar.replace(from, to), text);
  // A flag at the beginning is the culprit. A flag inside is advice.
  return reworded.replace(/^--([a-z][a-z0-9-]*)/, (_, flag) => name(flag)).replace(/(?<![\w-])--([a-z][a-z0-9-]*)/g, (_, flag) => `“${name(flag)}”`);
}
