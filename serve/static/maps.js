// The maps on the model's token grid: at the size of the canvas, as colours, and at one place.

/** Dark violet, purple, red, orange, pale yellow: lightness rises, so the order shows in grey. */
const HEAT = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
  [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];
/** Blue is background, red the object, white neither. */
const SIGNED = [[33, 80, 190], [150, 185, 240], [247, 247, 247], [250, 150, 110], [190, 20, 40]];
const OPACITY = 0.75;
const LINE = [255, 255, 255];

const largest = (rows) => rows.flat().reduce((most, each) => Math.max(most, Math.abs(each)), 1e-6);

/**
 * What a map shows: its rows, the values at both ends of its colours, and where a line is drawn.
 * `layer` is "score", "coarse", "refined" or the index of a word.
 */
export function mapOf(maps, layer, tau) {
  if (layer === "score") {
    const most = largest(maps.score);
    return { rows: maps.score, low: -most, high: most, colours: SIGNED, line: 0 };
  }
  if (typeof layer === "number") {
    const rows = maps.words[layer].attention;
    return { rows, low: 0, high: largest(rows), colours: HEAT, line: null };
  }
  const line = layer === "refined" ? tau : null;
  return { rows: maps[layer], low: 0, high: 1, colours: HEAT, line };
}

/**
 * Where a place of the image, as a share of its width (or height), lies on the grid, in tokens; NaN
 * where the model saw nothing. The grid covers `crop_xyxy` of the image resized to `resized_wh`.
 */
function gridPlace(share, resized, from, to, tokens) {
  const pixel = share * resized;
  if (pixel < from || pixel > to) return NaN;
  const place = ((pixel - from) / (to - from)) * tokens - 0.5;
  return Math.min(Math.max(place, 0), tokens - 1);
}

/** The value of the token at a place of the image, each a share of its side; NaN where none is. */
export function valueAt(maps, rows, xShare, yShare) {
  const [x0, y0, x1, y1] = maps.crop_xyxy;
  const column = gridPlace(xShare, maps.resized_wh[0], x0, x1, rows[0].length);
  const row = gridPlace(yShare, maps.resized_wh[1], y0, y1, rows.length);
  return rows[Math.round(row)]?.[Math.round(column)] ?? NaN;
}

/** A map at the size of the canvas, bilinear, row by row; NaN where the model saw nothing. */
export function enlarge(maps, rows, width, height) {
  const [x0, y0, x1, y1] = maps.crop_xyxy;
  const across = Float32Array.from({ length: width }, (_, x) =>
    gridPlace((x + 0.5) / width, maps.resized_wh[0], x0, x1, rows[0].length));
  const down = Float32Array.from({ length: height }, (_, y) =>
    gridPlace((y + 0.5) / height, maps.resized_wh[1], y0, y1, rows.length));
  const values = new Float32Array(width * height);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor(down[y]), below = down[y] - row;
    const upper = rows[row], lower = rows[row + 1] ?? upper;
    for (let x = 0; x < width; x++, at++) {
      const column = Math.floor(across[x]), right = across[x] - column;
      if (!upper || Number.isNaN(right)) {
        values[at] = NaN;
        continue;
      }
      const next = column + 1 < upper.length ? column + 1 : column;
      values[at] = (upper[column] * (1 - right) + upper[next] * right) * (1 - below)
        + (lower[column] * (1 - right) + lower[next] * right) * below;
    }
  }
  return values;
}

/** Paint an enlarged map over a canvas, with a line where its values pass `line`. */
export function paintMap(context, values, { low, high, colours, line }) {
  const { width, height } = context.canvas;
  const pixels = context.getImageData(0, 0, width, height);
  const { data } = pixels;
  const table = Array.from({ length: 256 }, (_, step) => between(colours, step / 255));
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const value = values[at];
      if (Number.isNaN(value)) continue;
      const passes = line !== null && (
        (x + 2 < width && (values[at + 2] > line) !== (value > line))
        || (y + 2 < height && (values[at + 2 * width] > line) !== (value > line)));
      const share = Math.min(Math.max((value - low) / (high - low), 0), 1);
      const colour = passes ? LINE : table[Math.round(share * 255)];
      const opacity = passes ? 1 : OPACITY;
      for (let channel = 0; channel < 3; channel++) {
        data[at * 4 + channel] += (colour[channel] - data[at * 4 + channel]) * opacity;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}

function between(colours, share) {
  const place = share * (colours.length - 1);
  const first = Math.min(Math.floor(place), colours.length - 2);
  return colours[first].map((from, channel) =>
    Math.round(from + (colours[first + 1][channel] - from) * (place - first)));
}

/** A CSS gradient of a map's colours, for its legend. */
export const gradient = ({ colours }) =>
  `linear-gradient(to right, ${colours.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ")})`;
