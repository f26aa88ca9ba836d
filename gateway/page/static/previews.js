// What is made of a picture's file: its size in pixels, small copies, and what is sent of it.

import { isTurnedUnseen } from "./orientation.js";

const PART_BYTE_COUNT = 512 * 1024; // Exif and a colour profile may come before the size.
const PREVIEW_EDGE = 192;
const NO_SIZE = { width: 0, height: 0 };

const measured = new WeakMap();
const previews = new WeakMap();
const waiting = [];
let lastMeasure = Promise.resolve();
let worker;
let current = null;

/** Returns {width, height} of a picture's file, upright; 0 and 0 if the browser cannot tell. */
export function measure(blob) {
  if (measured.has(blob)) return measured.get(blob);
  lastMeasure = lastMeasure.then(() => size(blob));
  measured.set(blob, lastMeasure);
  return lastMeasure;
}

// The beginning of a file is enough most often, and a large one is not read.
async function size(blob) {
  if (await isTurnedUnseen(blob)) return NO_SIZE;
  const beginning = await sizeOf(blob.slice(0, PART_BYTE_COUNT, blob.type));
  return beginning.width || blob.size <= PART_BYTE_COUNT ? beginning : sizeOf(blob);
}

async function sizeOf(blob) {
  const image = new Image();
  const url = URL.createObjectURL(blob);
  try {
    const loaded = new Promise((resolve) => (image.onload = image.onerror = resolve));
    image.src = url;
    await loaded;
    const { naturalWidth: width, naturalHeight: height } = image;
    return width && height ? { width, height } : NO_SIZE;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Returns a square ImageBitmap of the picture's middle; null if the browser cannot show it. */
export function preview(blob) {
  if (!previews.has(blob)) previews.set(blob, square(blob));
  return previews.get(blob);
}

async function square(blob) {
  const { width, height } = await measure(blob);
  if (!width) return null;
  const edge = Math.min(width, height);
  const area = [Math.floor((width - edge) / 2), Math.floor((height - edge) / 2), edge, edge];
  return ask({ job: "bitmap", blob, area, width: PREVIEW_EDGE, height: PREVIEW_EDGE });
}

/** Returns the whole picture as an ImageBitmap of this size, before all previews that wait. */
export async function stretched(blob, width, height) {
  const whole = await measure(blob);
  if (!whole.width) return null;
  const area = [0, 0, whole.width, whole.height];
  return ask({ job: "bitmap", blob, area, width, height }, true);
}

/** Returns a file as a data: URL, before all previews that wait; null if it cannot be read. */
export const dataURL = (blob) => ask({ job: "dataURL", blob }, true);

function ask(job, isFirst = false) {
  return new Promise((resolve) => {
    const entry = { job, resolve };
    if (isFirst) waiting.unshift(entry);
    else waiting.push(entry);
    next();
  });
}

// One at a time: a large picture takes a lot of memory while it is decoded.
function next() {
  if (current || !waiting.length) return;
  current = waiting.shift();
  started().postMessage(current.job);
}

function started() {
  if (worker) return worker;
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data }) => answered(data));
  worker.addEventListener("error", () => {
    worker = undefined; // it may not have been loaded; the next job tries it once more
    answered(null);
  });
  return worker;
}

function answered(result) {
  current?.resolve(result);
  current = null;
  next();
}

/** Returns a canvas that shows a bitmap, or a part of it. */
export function canvasOf(bitmap, area = [0, 0, bitmap.width, bitmap.height]) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = area.slice(2);
  const context = canvas.getContext("2d");
  // Transparent pixels become white, as in the vision service.
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, ...area, 0, 0, canvas.width, canvas.height);
  return canvas;
}
