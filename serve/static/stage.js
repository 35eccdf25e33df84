// The canvas: the image, and over it the masks or a map.

import { enlarge, gradient, mapOf, paintMap, valueAt } from "./maps.js";
import { paintResults } from "./masks.js";

const LONG_SIDE = 1200; // of the canvas, whatever the size of the image
const NAMES = { score: "score map", coarse: "coarse map", refined: "refined map" };

export class Stage {
  #canvas;
  #context;
  #image = null; // at the size of the canvas
  #legend;
  #newest = null; // of the files that are being opened

  constructor(canvas, legend) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#legend = legend;
  }

  /** Show another image, a file. Rejects what this browser cannot show, and what is overtaken. */
  async open(file) {
    this.#newest = file;
    const bitmap = await createImageBitmap(file);
    if (this.#newest !== file) throw new DOMException("another image was opened", "AbortError");
    const { width, height } = bitmap;
    const scale = LONG_SIDE / Math.max(width, height);
    const shownWidth = Math.max(1, Math.round(width * scale));
    const shownHeight = Math.max(1, Math.round(height * scale));
    this.#image = new OffscreenCanvas(shownWidth, shownHeight);
    const context = this.#image.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, shownWidth, shownHeight);
    bitmap.close();
    this.#canvas.width = shownWidth;
    this.#canvas.height = shownHeight;
    this.#canvas.hidden = false;
  }

  /** Draw the image, and all masks, or with `shown` a map of one result: `{index, layer}`. */
  draw(results, shown, tau) {
    if (this.#image === null) return;
    const { width, height } = this.#canvas;
    this.#context.drawImage(this.#image, 0, 0);
    const map = shown && this.#map(results[shown.index], shown.layer, tau);
    if (map) {
      const { maps } = results[shown.index];
      paintMap(this.#context, enlarge(maps, map.rows, width, height), map);
    } else {
      paintResults(this.#context, results);
    }
    this.#explain(results, shown, map);
  }

  /** What the results say at a place of the canvas, each coordinate a share of its side. */
  read(results, layer, xShare, yShare) {
    return results.filter(({ maps }) => maps).map(({ expression, maps }) => {
      const value = valueAt(maps, maps[layer], xShare, yShare);
      return Number.isNaN(value) ? "" : `${expression} ${value.toFixed(2)}`;
    }).filter(Boolean).join(" · ");
  }

  #map(result, layer, tau) {
    return result?.maps ? mapOf(result.maps, layer, tau) : null;
  }

  #explain(results, shown, map) {
    const { box, text, low, bar, high } = this.#legend;
    box.hidden = !map;
    const found = results.filter(({ reason }) => reason === null).map((each) => each.expression);
    let label = found.length ? `The image with masks of ${found.join(", ")}` : "The image";
    if (map) {
      const { expression, maps } = results[shown.index];
      const name = NAMES[shown.layer] ?? `heat of “${maps.words[shown.layer].text}”`;
      label = `${expression}: ${name}`;
      text.textContent = label;
      low.textContent = map.low.toFixed(2);
      high.textContent = map.high.toFixed(2);
      bar.style.background = gradient(map);
    }
    this.#canvas.setAttribute("aria-label", label);
  }
}
