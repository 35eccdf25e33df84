// Masks: from COCO's run-length encoding to pixels, and onto a canvas.

/** Colours by expression, in turn: red, turquoise, yellow, violet, green, orange, blue, pink. */
const COLOURS = [
  [255, 45, 85], [0, 200, 190], [255, 200, 0], [150, 60, 235],
  [60, 200, 50], [255, 120, 0], [20, 110, 255], [255, 90, 220],
];
const OPACITY = 0.3;
const OUTSIDE_OPACITY = 0.8;
const OUTLINE_PART = 240; // the outline is this part of the shorter side
const LETTERS_PART = 36; // and so are letters
const LETTERS_PX = [12, 40];

export const colourOf = (index) => COLOURS[index % COLOURS.length];
export const cssColour = (rgb) => `rgb(${rgb.join(" ")})`;

/**
 * Lengths of the runs of 0, 1, 0, ... in column-major order. From the fourth on, each is written
 * as its difference from the one two before it, in groups of five bits, lowest first; bit 5 says
 * that another group follows, and bit 4 of the last one is the sign.
 */
export function runLengths(counts) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, unit = 1, group;
    do {
      group = counts.charCodeAt(at++) - 48;
      value += (group & 31) * unit; // not <<: 32 bits may be too few
      unit *= 32;
    } while (group & 32);
    if (group & 16) value -= unit;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** A mask at a size to be shown, row by row, 1 where it is; the whole is never in memory. */
export function decodeMask({ size: [height, width], counts }, shownWidth, shownHeight) {
  const mask = new Uint8Array(shownWidth * shownHeight);
  // The first shown column or row whose centre lies at or beyond one of the mask's.
  const columnAt = (x) => Math.ceil((x * shownWidth) / width - 0.5);
  const rowAt = (y) => Math.ceil((y * shownHeight) / height - 0.5);
  let start = 0;
  runLengths(counts).forEach((length, index) => {
    const end = start + length;
    if (index % 2 === 1) {
      for (let x = Math.floor(start / height); x * height < end; x++) {
        const top = rowAt(Math.max(start - x * height, 0));
        const bottom = rowAt(Math.min(end - x * height, height));
        for (let column = columnAt(x); column < columnAt(x + 1); column++) {
          for (let row = top; row < bottom; row++) mask[row * shownWidth + column] = 1;
        }
      }
    }
    start = end;
  });
  return mask;
}

/** Paint all results over the image on a canvas: their masks, outlines and labels. */
export function paintResults(context, results) {
  const { width, height } = context.canvas;
  const pixels = context.getImageData(0, 0, width, height);
  const reach = Math.max(1, Math.round(Math.min(width, height) / OUTLINE_PART));
  results.forEach(({ rle }, index) => {
    tint(pixels, decodeMask(rle, width, height), colourOf(index), reach);
  });
  context.putImageData(pixels, 0, 0);
  paintLabels(context, results);
}

function tint({ data, width, height }, mask, colour, reach) {
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const here = mask[at];
      const edge = (x >= reach && mask[at - reach] !== here)
        || (x + reach < width && mask[at + reach] !== here)
        || (y >= reach && mask[at - reach * width] !== here)
        || (y + reach < height && mask[at + reach * width] !== here);
      if (!here && !edge) continue;
      const share = here ? (edge ? 1 : OPACITY) : OUTSIDE_OPACITY;
      for (let channel = 0; channel < 3; channel++) {
        const wanted = here ? colour[channel] : 255;
        data[at * 4 + channel] += (wanted - data[at * 4 + channel]) * share;
      }
    }
  }
}

/** Write what was found above its mask, or below where another label is in the way. */
function paintLabels(context, results) {
  const { width, height } = context.canvas;
  const [least, most] = LETTERS_PX;
  const size = Math.min(Math.max(Math.min(width, height) / LETTERS_PART, least), most);
  const pad = size * 0.3, tall = size * 1.2 + pad;
  context.font = `500 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  results.forEach((result, index) => {
    if (result.reason !== null) return;
    const text = labelOf(result);
    const wide = Math.min(context.measureText(text).width + 2 * pad, width);
    const [left, top, , bottom] = result.box_xyxy;
    const x = Math.min((left / result.width) * width, width - wide);
    const scale = height / result.height;
    const places = [top * scale - tall - pad, bottom * scale + pad]
      .map((y) => Math.min(Math.max(y, 0), height - tall));
    const free = places.find((y) => taken.every((each) =>
      Math.abs(each.y - y) >= tall || x >= each.x + each.wide || each.x >= x + wide));
    const y = free ?? places[0];
    taken.push({ x, y, wide });
    writeLabel(context, text, colourOf(index), { x, y, wide, tall, pad });
  });
}

function writeLabel(context, text, colour, { x, y, wide, tall, pad }) {
  const [red, green, blue] = colour;
  context.fillStyle = cssColour(colour);
  context.fillRect(x, y, wide, tall);
  context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "#000" : "#fff";
  context.fillText(text, x + pad, y + tall / 2, wide - 2 * pad);
}

function labelOf({ expression, confidence, doubt }) {
  const sure = confidence === null ? "" : ` ${confidence.toFixed(2)}`;
  return `${expression}${sure}${doubt === null ? "" : " doubtful"}`;
}
