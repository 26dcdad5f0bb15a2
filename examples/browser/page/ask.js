// Asks a question before something is erased or taken over.

import { make } from "./ui.js";

/** Shows a question with a button that does it and one that cancels. Returns whether the user wants it. */
export function ask(question, yes) {
  const text = make("p", { id: "question" }, question);
  const answers = [make("button", { type: "button" }, "Cancel"), make("button", { type: "button", class: "primary" }, yes)];
  const dialog = make("dialog", { "aria-labelledby": "question" }, text, make("div", { class: "row" }, ...answers));
  document.body.append(dialog);
  return new Promise((resolve) => {
    answers.forEach((button, i) => (button.onclick = () => dialog.close(i ? "yes" : "")));
    dialog.onclose = () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    };
    dialog.showModal();
  });
}
