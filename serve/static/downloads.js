// Files made here, from the image and the run-length encoding of the masks.

import { decodeMask, paintResults } from "./masks.js";

/** Hand a file to the browser. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Name a file as `rism run` does: street.the-green-van.mask.png. */
export function fileName(image, expression, ending) {
  const stem = image.name.replace(/\.[^.]*$/, "") || "image";
  const words = (expression ?? "").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  return [stem, words.replace(/^-|-$/g, "").slice(0, 60), ending].filter(Boolean).join(".");
}

/** The mask as a PNG of one channel, 255 where it is. */
export async function maskPng({ rle, width, height }) {
  const mask = decodeMask(rle, width, height);
  const lines = new Uint8Array((width + 1) * height); // each begins with its filter, 0
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) lines[y * (width + 1) + 1 + x] = mask[y * width + x] * 255;
  }
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, 8); // bits; the rest is 0: grey, deflate, no interlacing
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  return new Blob([signature, chunk("IHDR", new Uint8Array(header.buffer)), chunk("IDAT", data),
    chunk("IEND", new Uint8Array())], { type: "image/png" });
}

function chunk(kind, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** The image with everything but the mask transparent. */
export async function cutoutPng(image, { rle, width, height }) {
  const context = await drawn(image, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  decodeMask(rle, width, height).forEach((inside, at) => {
    if (!inside) pixels.data[at * 4 + 3] = 0;
  });
  context.putImageData(pixels, 0, 0);
  return context.canvas.convertToBlob();
}

/** The image with all masks. */
export async function overlayPng(image, results) {
  const [{ width, height }] = results;
  const context = await drawn(image, width, height);
  paintResults(context, results);
  return context.canvas.convertToBlob();
}

async function drawn(image, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d");
  const bitmap = await createImageBitmap(image);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return context;
}

/** COCO's format: a category for each expression, an annotation for each that was found. */
export function cocoJson(image, results) {
  const [{ width, height }] = results;
  const categories = [...new Set(results.map(({ expression }) => expression))];
  const annotations = results.filter(({ reason }) => reason === null).map((result, index) => {
    const [x0, y0, x1, y1] = result.box_xyxy;
    return {
      id: index + 1, image_id: 1, category_id: categories.indexOf(result.expression) + 1,
      segmentation: result.rle, area: result.area_px, bbox: [x0, y0, x1 - x0, y1 - y0],
      iscrowd: 0, score: result.confidence,
    };
  });
  const coco = {
    images: [{ id: 1, file_name: image.name, width, height }],
    categories: categories.map((name, index) => ({ id: index + 1, name })),
    annotations,
  };
  return new Blob([JSON.stringify(coco, null, 1)], { type: "application/json" });
}
