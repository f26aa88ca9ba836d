// One picture of a message: what it is, what it is called, how it looks small, and how it is sent.

import { addIcons, h, icon } from "./dom.js";
import { addWords, t } from "./language.js";
import { newId } from "./store.js";
import { canvasOf, dataURL, preview } from "./previews.js";

addWords({
  en: {
    "picture.unmeasured": "size not known here",
    "picture.dataURL": "data: URL",
    "picture.gone": "{name} can no longer be read. Remove it, or add it again.",
  },
  zh: {
    "picture.unmeasured": "尺寸未知",
    "picture.dataURL": "data: 网址",
    "picture.gone": "无法再读取“{name}”，请移除或重新添加。",
  },
});

addIcons({
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  link:
    "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7L12 7" +
    "M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7L12 17",
});

function picture(kind, values) {
  const defaults = { name: "", blob: null, url: "", width: 0, height: 0, number: 0 };
  return { id: newId(), kind, ...defaults, detail: "auto", cap: null, plan: null, ...values };
}

export const ofFile = (blob) => picture("file", { name: blob.name, blob });
export const ofAddress = (url) => picture("url", { name: hostOf(url), url });
// One tile a frame, as InternVL was trained on videos.
export const ofFrame = (blob, i) =>
  picture("frame", { name: blob.name, blob, number: i + 1, detail: "low" });

function hostOf(address) {
  const url = new URL(address);
  if (url.protocol === "data:") return t("picture.dataURL");
  return url.host || url.pathname.split("/").pop();
}

/**
 * Returns what each picture is called beside the others, in their order: "Frame1" for a video's
 * frames, "Image-1" for pictures where there are several, "" for one alone.
 */
export function pictureLabels(pictures) {
  let place = 0;
  return pictures.map(({ kind, number }) => {
    if (kind === "frame") return `Frame${number}`;
    return pictures.length > 1 ? `Image-${++place}` : "";
  });
}

/** Returns a picture's label and name, and its size, as words for a screen reader. */
export function spoken({ name, width, height }, label) {
  const size = width ? `${width} × ${height}` : t("picture.unmeasured");
  return { label: [label, name].filter(Boolean).join(" "), size };
}

/**
 * Returns a picture's address, which of a file is its data: URL.
 *
 * @throws {Error} the file cannot be read any more; the message is a sentence to show.
 */
export async function addressOf({ name, blob, url }) {
  const address = blob ? await dataURL(blob) : url;
  if (!address) throw new Error(t("picture.gone", { name }));
  return address;
}

/**
 * Returns the part of a chat request that holds a picture.
 *
 * @throws {Error} as addressOf.
 */
export async function picturePart({ detail, cap, ...picture }) {
  const image = { url: await addressOf(picture) };
  if (cap) image.max_dynamic_patch = cap;
  else if (detail !== "auto") image.detail = detail;
  return { type: "image_url", image_url: image };
}

/** Returns a small square of a picture that fills itself once there is something to show. */
export function thumbnail(picture) {
  const box = h("span", { class: "pictures-thumbnail" });
  fill(box, picture);
  return box;
}

async function fill(box, picture) {
  const bitmap = picture.blob && (await preview(picture.blob));
  if (bitmap) return box.append(canvasOf(bitmap));
  const isAddress = picture.kind === "url";
  const words = isAddress ? picture.name : formatOf(picture);
  box.append(icon(isAddress ? "link" : "picture"), h("small", {}, words));
}

/** Returns the format of a picture's file as people call it, by its type or its name. */
export function formatOf({ name, blob }) {
  const type = blob.type.split("/")[1];
  return (type || (/\.(\w{2,5})$/.exec(name)?.[1] ?? "")).toUpperCase();
}
