// The page: what is asked, what is shown, and what happens in between.

import * as api from "./api.js";
import { cocoJson, cutoutPng, fileName, maskPng, overlayPng, save } from "./downloads.js";
import { markPinned, showResults } from "./results.js";
import { Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const stage = new Stage($("canvas"), {
  box: $("legend"), text: $("legend-text"), low: $("legend-low"), bar: $("legend-bar"),
  high: $("legend-high"),
});

let limits = null; // of the server
let image = null; // the file
let results = [];
let asked = []; // the expressions of the results
let pinned = null; // {index, layer}: the map that is shown until it is pressed again
let peeked = null; // the map that is shown while something is pointed at
let tau = null; // null until the slider is moved: the bundle's own
let running = null; // an AbortController
let example = null; // the text of the expressions that an example brought

// Messages

function showError({ message, hint = "", status }) {
  $("error-text").textContent = message;
  $("error-hint").textContent = hint;
  $("error").hidden = false;
  $("status").textContent = "";
  if (status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

const clearError = () => { $("error").hidden = true; };

/** Run something that may fail; what fails is shown. */
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
    return undefined;
  }
}

// The server

async function loadInfo() {
  const found = await api.info();
  limits = found.limits;
  $("model").textContent = `${found.model} · ${found.precision} on ${found.provider}`;
  $("notice").hidden = !found.demonstrator;
  $("notice").textContent = `${found.model} is a demonstrator: it knows drawn scenes only, such as `
    + "the examples. For photographs, start rism serve with a bundle of a real model.";
  $("tau").value = found.tau;
  $("tau-value").textContent = found.tau.toFixed(2);
}

async function loadExamples() {
  $("examples").replaceChildren(...(await api.examples()).map(({ name, expressions }) => {
    const picture = document.createElement("img");
    Object.assign(picture, { src: api.thumbnailAddress(name), alt: "", width: 120, height: 90 });
    const button = document.createElement("button");
    button.type = "button";
    button.append(picture, name);
    button.addEventListener("click", () => attempt(() => takeExample(name, expressions)));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

// The image

async function takeExample(name, expressions) {
  const file = await api.exampleFile(name);
  example = expressions.join("\n");
  $("expressions").value = example;
  await openImage(file);
  scrollTo({ top: 0 }); // the examples are below the results
  await find();
}

async function takeFile(file) {
  if (limits && file.size > limits.body_bytes) {
    const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    throw new api.Refusal(413,
      `${file.name} has ${mebibytes(file.size)}, this server reads ${mebibytes(limits.body_bytes)}`,
      "send a smaller file, or start the server with a larger --max-body");
  }
  await openImage(file);
  if ($("expressions").value === example) $("expressions").value = "";
  example = null;
  $("expressions").focus();
}

async function openImage(file) {
  running?.abort();
  try {
    await stage.open(file);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new api.Refusal(415, `${file.name || "this"} is not an image that this browser can show`,
      "choose a PNG, JPEG, WebP or AVIF file; rism run reads some others");
  }
  clearError();
  image = file;
  $("empty").hidden = true;
  showAnswer([]);
}

// Asking

const wanted = () => $("expressions").value.split("\n").map((line) => line.trim()).filter(Boolean);

async function find() {
  const expressions = wanted();
  if (image === null) {
    throw new api.Refusal(0, "there is no image", "choose one, or take an example");
  }
  if (!expressions.length) {
    $("expressions").focus();
    throw new api.Refusal(0, "there is no expression", "write one, such as: the green van");
  }
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  clearError();
  $("status").textContent = "Looking …";
  $("panel").setAttribute("aria-busy", "true");
  try {
    const start = performance.now();
    const answer = await api.segment(image, expressions, { tau, signal });
    asked = expressions;
    showAnswer(answer.results, performance.now() - start, answer.timings_ms);
  } finally {
    if (running?.signal === signal) $("panel").removeAttribute("aria-busy");
  }
}

// Only the newest tau matters: while one is asked for, later ones wait, and all but the last are
// forgotten. Maps come with the last, when the slider rests.
let tauBusy = false;
let tauNext = null;

async function moveTau(maps) {
  tau = Number($("tau").value);
  $("tau-value").textContent = tau.toFixed(2);
  if (!results.length) return;
  draw();
  tauNext = { tau, maps };
  if (tauBusy) return;
  tauBusy = true;
  try {
    while (tauNext) {
      const [mine, from] = [tauNext, results];
      tauNext = null;
      const answer = await api.segment(image, asked, mine);
      if (results === from) showAnswer(withMaps(answer.results, from), null, answer.timings_ms);
    }
    clearError();
  } finally {
    tauBusy = false;
  }
}

/** Results without maps keep the earlier ones: the coarse and the refined do not depend on tau. */
const withMaps = (newer, older) =>
  newer.map((result, index) => ({ maps: older[index].maps, ...result }));

// What is shown

function showAnswer(found, took = null, timings = null) {
  const same = found.length === results.length;
  results = found;
  if (!same || took !== null) pinned = peeked = null;
  const focused = document.activeElement?.dataset ?? {};
  showResults($("results"), results, { peek, pin, save: saveOne });
  restoreFocus(focused);
  const there = results.length > 0;
  for (const id of ["views", "under", "tau-row", "downloads"]) $(id).hidden = !there;
  $("no-words").hidden = !there || results.some(({ maps }) => maps?.words);
  $("status").textContent = there ? summary(took) : "";
  $("timings").textContent = timings ? Object.entries(timings)
    .map(([stage_, ms]) => `${stage_} ${ms.toFixed(ms < 10 ? 1 : 0)} ms`).join(" · ") : "";
  draw();
}

function restoreFocus({ index, layer }) {
  if (index === undefined) return;
  $("results").querySelector(`[data-index="${index}"][data-layer="${layer}"]`)?.focus();
}

function summary(took) {
  const found = results.filter(({ reason }) => reason === null).length;
  const time = took === null ? "" : ` in ${(took / 1000).toFixed(2)} s`;
  return `${found} of ${results.length} found${time}`;
}

const view = () => document.querySelector("[name=view]:checked").value;

/** Which map is shown: what is pointed at, or pinned, or the view's map of the first result. */
function shownMap() {
  const chosen = peeked ?? pinned;
  if (!results.length) return null;
  if (view() === "final") return chosen;
  const { index, layer } = chosen ?? { index: 0, layer: "score" };
  return { index, layer: layer === "score" ? view() : layer };
}

let drawing = 0;

function draw() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    stage.draw(results, shownMap(), Number($("tau").value));
    markPinned($("results"), pinned);
  });
}

function peek(shown) {
  peeked = shown;
  draw();
}

function pin(shown) {
  const again = pinned?.index === shown.index && pinned?.layer === shown.layer;
  pinned = again ? null : shown;
  if (again) peeked = null;
  draw();
}

function readAt(event) {
  const box = $("canvas").getBoundingClientRect();
  const layer = view() === "final" ? "score" : view();
  const said = stage.read(results, layer, (event.clientX - box.left) / box.width,
    (event.clientY - box.top) / box.height);
  $("readout").textContent = said && `${layer}: ${said}`;
}

// Files

function saveOne(kind, index) {
  return attempt(async () => {
    const result = results[index];
    const png = kind === "mask" ? await maskPng(result) : await cutoutPng(image, result);
    save(png, fileName(image, result.expression, `${kind}.png`));
  });
}

// Events

const on = (id, event, work) => $(id).addEventListener(event, work);

on("file", "change", () => {
  const [file] = $("file").files;
  if (file) attempt(() => takeFile(file));
  $("file").value = "";
});
on("ask", "submit", (event) => { event.preventDefault(); attempt(find); });
on("expressions", "keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) attempt(find);
});
on("tau", "input", () => attempt(() => moveTau(false)));
on("tau", "change", () => attempt(() => moveTau(true)));
on("views", "change", draw);
on("canvas", "pointermove", readAt);
on("canvas", "pointerdown", readAt);
on("canvas", "pointerleave", () => { $("readout").textContent = ""; });
on("save-overlay", "click", () => attempt(async () =>
  save(await overlayPng(image, results), fileName(image, null, "overlay.png"))));
on("save-coco", "click", () => save(cocoJson(image, results), fileName(image, null, "coco.json")));
on("key-form", "submit", (event) => {
  event.preventDefault();
  api.setKey($("key").value);
  attempt(async () => {
    await loadInfo();
    clearError();
    $("key-form").hidden = true;
    $("key").value = "";
  });
});

document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData?.files ?? [];
  if (!file) return;
  event.preventDefault();
  attempt(() => takeFile(file));
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (!file && event.target === $("expressions")) return; // words
  event.preventDefault();
  attempt(async () => {
    if (!file) {
      throw new api.Refusal(0, "there is no file in what was dropped",
        "save the image first: this page fetches nothing from other places");
    }
    await takeFile(file);
  });
});

attempt(loadInfo);
attempt(loadExamples);
