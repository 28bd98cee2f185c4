// Buttons that act on the run: they wait for the answer, say what was refused, and ask twice where it hurts.

import { element } from "./format.js";

const DOUBT_MS = 5000;

// about: {label, name, act, sure, className}. name: the accessible name, if it says more than the label. sure: what the
// button asks before it acts; without it one press is enough. act: does it and may return a sentence to show.
export function actionButton({ label, name, act, sure, className = "small" }) {
  const button = element("button", { type: "button", class: className, "aria-label": name, "data-key": name || label }, label);
  const calm = () => {
    button.removeAttribute("data-armed");
    button.textContent = label;
  };
  button.addEventListener("click", async () => {
    if (sure && !button.hasAttribute("data-armed")) {
      button.setAttribute("data-armed", "");
      button.textContent = sure;
      setTimeout(calm, DOUBT_MS);
      return;
    }
    calm();
    button.disabled = true;
    silence(button);
    try {
      const told = await act();
      if (told) say(button, "done", told);
    } catch (problem) {
      say(button, "error", problem.message);
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

// Whether an operator is in the middle of something here: rebuilding would take it away from under the finger.
export function isBusy(root) {
  return root.querySelector("[data-armed], button:disabled[data-key]") !== null;
}

// Rebuilds a part of the page and leaves the focus where it was.
export function rebuild(root, ...children) {
  const key = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  root.replaceChildren(...children);
  if (key) root.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

function say(button, mood, text) {
  silence(button);
  button.after(element("span", { class: `${mood} told`, role: mood === "error" ? "alert" : "status" }, text));
}

function silence(button) {
  if (button.nextElementSibling?.classList.contains("told")) button.nextElementSibling.remove();
}
