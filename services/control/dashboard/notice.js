// Notices: one sentence at the corner of the page that goes away by itself.

import { byId } from "./format.js";

const SHOWN_MS = 8000;

// mood: "bad" where something was refused.
export function announce(text, mood = "good") {
  const place = byId("notice");
  place.dataset.mood = mood;
  place.textContent = text;
  setTimeout(() => { if (place.textContent === text) place.textContent = ""; }, SHOWN_MS);
}
