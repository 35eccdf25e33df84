// The list of results: a card for each expression.

import { colourOf, cssColour } from "./masks.js";

function element(name, { text, ...properties } = {}, children = []) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/**
 * Fill the list. `on` has what happens: `peek(shown)` while a card or a word is pointed at or has
 * the keyboard's focus, `peek(null)` after, `pin(shown)` when it is pressed, `save(kind, index)`.
 */
export function showResults(list, results, on) {
  list.replaceChildren(...results.map((result, index) => card(result, index, on)));
}

/** Mark what is pinned, for eyes and for screen readers. */
export function markPinned(list, pinned) {
  for (const button of list.querySelectorAll("[aria-pressed]")) {
    const pressed = pinned !== null && Number(button.dataset.index) === pinned.index
      && button.dataset.layer === String(pinned.layer);
    button.setAttribute("aria-pressed", String(pressed));
  }
}

function card(result, index, on) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = cssColour(colourOf(index));
  const title = mapButton(index, "score", on, { className: "title" });
  title.append(swatch, element("span", { text: result.expression }));
  const head = element("div", { className: "row head" }, [title, verdict(result)]);
  const made = element("li", { className: "card" }, [head]);
  if (result.confidence !== null) made.append(confidenceBar(result.confidence));
  for (const why of new Set([result.reason, result.doubt, result.outside])) {
    if (why) made.append(element("p", { className: "why", text: why }));
  }
  if (result.reason === null) made.append(facts(result));
  if (result.maps?.words) made.append(words(result.maps.words, index, on));
  if (result.reason === null) made.append(saveButtons(index, result.expression, on));
  return made;
}

function verdict({ reason, doubt }) {
  if (reason !== null) return element("span", { className: "badge absent", text: "not found" });
  if (doubt !== null) return element("span", { className: "badge doubtful", text: "doubtful" });
  return element("span", { className: "badge found", text: "found" });
}

function confidenceBar(confidence) {
  const scale = { min: 0, max: 1, low: 0.5, high: 0.5, optimum: 1 };
  const bar = element("meter", { ...scale, value: confidence });
  const text = `confidence ${confidence.toFixed(confidence < 0.1 ? 3 : 2)}`;
  return element("label", { className: "row confidence" }, [bar, element("span", { text })]);
}

function facts({ area_share: area, box_xyxy: box, separability, confidence, outside }) {
  const said = [`${(area * 100).toFixed(1)} % of the image`, `box ${box.join(", ")}`,
    `separability ${separability.toFixed(2)}`];
  if (confidence === null && outside === null) {
    said.push("no confidence: it was never fitted for this model");
  }
  return element("p", { className: "quiet facts", text: said.join(" · ") });
}

function words(found, index, on) {
  const row = element("p", { className: "row words" });
  row.setAttribute("aria-label", "Heat of each word");
  row.append(...found.map(({ text }, layer) =>
    mapButton(index, layer, on, { text, className: "word" })));
  return row;
}

function mapButton(index, layer, on, properties) {
  const button = element("button", { type: "button", ...properties });
  button.dataset.index = index;
  button.dataset.layer = layer;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse") on.peek({ index, layer });
  });
  button.addEventListener("pointerleave", () => on.peek(null));
  button.addEventListener("focus", () => {
    if (button.matches(":focus-visible")) on.peek({ index, layer });
  });
  button.addEventListener("blur", () => on.peek(null));
  button.addEventListener("click", () => on.pin({ index, layer }));
  return button;
}

function saveButtons(index, expression, on) {
  const made = ["mask", "cutout"].map((kind) => {
    const text = `Download ${kind}`;
    const button = element("button", { type: "button", text, className: "small" });
    button.setAttribute("aria-label", `Download the ${kind} of ${expression}`);
    button.addEventListener("click", () => on.save(kind, index));
    return button;
  });
  return element("p", { className: "row" }, made);
}
